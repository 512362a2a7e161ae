"""Outer loops on a quadratic: what a round leaves of the error is known, so that stability has a boundary."""

from __future__ import annotations

import torch

from laconic.links import memory


def distance(sync, contraction, rounds, every=1, dims=1):
    """How far from 0 the shared weights are after so many rounds that each remove ``contraction`` of the error."""
    keep = (1 - contraction) ** (1 / every)  # what one inner step leaves

    def work(link):
        x = torch.ones(dims, dtype=torch.float64)
        state = sync.init([x])
        for _ in range(rounds * every):
            updates, state = sync.after_step([x * keep], state, link)
            x = updates.get(0, x * keep)
        return float(sync.model([x], state)[0].norm())

    return memory.run(1, work)[0]
