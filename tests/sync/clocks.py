"""Workers of different speed, without a stopwatch: each link's clock stands still until its worker spends time."""

from __future__ import annotations

import contextlib
import random

from laconic import attach
from laconic.links import memory
from laconic.links.base import Link
from laconic.links.meter import Meter
from tests.tiny import batch, loss, model, sgd


class Still(Meter):
    """A meter of virtual seconds: compressing takes none."""

    def compressing(self):
        return contextlib.nullcontext()


class Clocked(Link):
    """A memory link whose clock its worker moves; messages take no time."""

    def __init__(self, link):
        super().__init__(link.rank, link.size)
        self.under, self.meter, self.seconds = link, link.meter, 0.0

    def now(self):
        return self.seconds

    def send(self, message, to):
        self.under.send(message, to)

    def recv(self, source, timeout=None):
        return self.under.recv(source, timeout)


def uneven(method, seconds, rounds, each=None, net=model, optimizer=sgd, noise=None, data=batch, of_loss=loss):
    """Train workers whose steps take so many seconds until so many rounds have ended.

    ``each(sync, made, rank)`` is called after every step. ``noise(rank, step)`` multiplies a step's seconds.
    Returns for each worker how many steps its rounds had, the shared weights, and what it was attached by.
    """

    def work(link):
        clocked, made = Clocked(link), net()
        sync, taken, number = attach(made, optimizer(made), method, clocked), [0], 0
        while sync.rounds < rounds:
            clocked.seconds += seconds[link.rank] * (noise(link.rank, number) if noise else 1.0)
            of_loss(made, data(link.rank, number)).backward()
            before = sync.rounds
            sync.step()
            sync.zero_grad()
            number += 1
            taken[-1] += 1
            if each is not None:
                each(sync, made, link.rank)
            if sync.rounds > before:
                taken.append(0)
        sync.drain()
        return taken[:-1], list(sync.weights().values()), sync

    return memory.run(len(seconds), work)


def jitter(seed, share=0.1):
    """Noise of so large a share, the same in every run."""
    return lambda rank, step: 1 + share * (2 * random.Random(f"{seed}/{rank}/{step}").random() - 1)
