"""Sparse gossip while training, and one mean of everyone's weights at the end."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.exchange.neighbours import neighbours
from laconic.links.base import Link
from laconic.sync.base import Params, Sync, Updates, master
from laconic.sync.gossip import mixed


def single_merge(exchange: Exchange | None = None, every: int = 100, overlap: int = 0) -> Sync:
    """:func:`gossip` by a few random neighbours, and when training ends the mean of all workers' weights.

    The little gossip keeps the workers' weights such that their mean is good; the mean is taken once, exactly, of the
    parameters that are trained. Statistics of normalisation layers belong to the weights before it, and have to be
    estimated again (``recalibrates``).

    Wire:   the exchange's, once every ``every`` steps; at the end ``2 (n-1)/n`` times the weights' bytes.
    Law:    with an exchange of everyone, ``every=1`` and plain SGD it is data-parallel training; without any
            (``neighbours(budget=0)``) it trains alone and averages once.
    Raises: as :func:`gossip`.
    Source: arXiv:2507.06542 ("A Single Merging Suffices").
    """
    inner = mixed("single_merge", exchange if exchange is not None else neighbours(), every, overlap)
    merge = everyone()

    def finish(params: Params, state: Any, link: Link) -> tuple[Updates, Any]:
        assert inner.finish is not None
        updates, state = inner.finish(params, state, link)
        here: list[Tensor] = [updates.get(i, master(p)) for i, p in enumerate(params)]
        merged, _ = link.start(merge.run, here, merge.init(here), link).result()
        return dict(enumerate(merged)), state

    return inner._replace(finish=finish, recalibrates=True)
