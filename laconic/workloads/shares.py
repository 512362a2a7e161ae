"""Who learns from which examples: shares that are disjoint and cover everything, and endless shuffled streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from laconic.errors import ConfigError

Places = Int[np.ndarray, "count"]


def deal(count: int, worker: int, workers: int, seed: int) -> Places:
    """This worker's share of ``count`` examples, dealt like cards from one deck shuffled by ``seed``.

    Law:    the shares of all workers are disjoint, cover ``range(count)`` and differ in size by at most one.
    Raises: ConfigError if there are more workers than examples.
    """
    _enough(count, worker, workers)
    return np.random.default_rng([seed, 0]).permutation(count)[worker::workers]


def deal_by_label(labels: Int[np.ndarray, "count"], worker: int, workers: int, seed: int, skew: float = 0.0) -> Places:
    """This worker's share when a part ``skew`` of the examples is dealt by label and the rest at random.

    The part dealt by label is sorted by label and cut into ``workers`` runs of equal length, so with ``skew`` 1
    each worker sees few labels, and with 0 this is :func:`deal`.

    Law:    the shares of all workers are disjoint and cover all examples.
    Raises: ConfigError unless ``0 <= skew <= 1``, or if there are more workers than examples.
    Source: Hsieh et al. 2020, arXiv:1910.00189, section 2.2 (degree of skewness).
    """
    if not 0 <= skew <= 1:
        raise ConfigError(f"skew must be from 0 (every worker alike) to 1 (sorted by label), got {skew}")
    _enough(len(labels), worker, workers)
    deck = np.random.default_rng([seed, 0]).permutation(len(labels))
    alike, rest = np.split(deck, [round((1 - skew) * len(labels))])
    by_label = rest[np.argsort(labels[rest], kind="stable")]
    return np.concatenate([alike[worker::workers], np.array_split(by_label, workers)[worker]])


def stream(share: Places, batch_size: int, worker: int, seed: int) -> Iterator[Places]:
    """Batches of ``share`` without end: each pass goes over all of it once, in an order of its own.

    Every batch is full: one that a pass cannot fill is completed from the next pass.
    """
    rng = np.random.default_rng([seed, 1, worker])
    waiting = share[:0]
    while True:
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, rng.permutation(share)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def positive(name: str, value: int) -> int:
    """``value``, if it is at least 1; otherwise a ConfigError that names the option."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, got {value}")
    return value


def _enough(count: int, worker: int, workers: int) -> None:
    if not 0 <= worker < workers:
        raise ConfigError(f"worker must be from 0 to workers - 1 = {workers - 1}, got {worker}")
    if workers > count:
        raise ConfigError(f"{workers} workers cannot share {count} examples: some would have none; use fewer workers")
