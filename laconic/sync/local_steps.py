"""Local SGD: many local steps, then everyone takes the mean of the weights."""

from __future__ import annotations

from laconic.exchange.base import Exchange
from laconic.sync.base import Sync
from laconic.sync.diloco import diloco


def local_steps(exchange: Exchange | None = None, every: int = 50) -> Sync:
    """Take ``every`` steps alone, then move to the mean of all workers' weights.

    It is :func:`diloco` with an outer step of exactly the mean. What is sent is the change since the last mean, not
    the weights themselves, so any compressor with feedback may be used.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    with ``every=1`` and plain SGD it is data-parallel SGD.
    Raises: as :func:`diloco`.
    Source: Stich 2018, arXiv:1805.09767.
    """
    sync = diloco(exchange, every=every, lr=1.0, momentum=0.0)
    return sync._replace(name=sync.name.replace("diloco", "local_steps", 1))
