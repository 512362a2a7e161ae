"""Local SGD: many local steps, then everyone takes the mean of the weights."""

from __future__ import annotations

from laconic.exchange.base import Exchange
from laconic.sync.base import Sync
from laconic.sync.diloco import outward
from laconic.sync.timetable import timetable


def local_steps(
    exchange: Exchange | None = None,
    every: int = 50,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
) -> Sync:
    """Take ``every`` steps alone, then move to the mean of all workers' weights.

    It is :func:`diloco` with an outer step of exactly the mean. What is sent is the change since the last mean, not
    the weights themselves, so any compressor with feedback may be used.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    with ``every=1`` and plain SGD it is data-parallel SGD.
    Raises: as :func:`diloco`.
    Source: Stich 2018, arXiv:1805.09767.
    """
    plan = timetable("local_steps", every, fragments, overlap, mixing, pattern)
    return outward("local_steps", exchange, plan, lr=1.0, momentum=0.0)
