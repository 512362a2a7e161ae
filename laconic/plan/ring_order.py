"""The order of a ring over uneven links: it is as slow as its slowest edge, so that one is made as quick as can be.

A bottleneck travelling salesman: exact for few workers, by search among many.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

EXACT = 12  # workers up to which every order is considered
SWEEPS = 200  # improvements at most, among many


def ring_order(cost: NDArray[np.float64]) -> tuple[int, ...]:
    """An order of the workers whose costliest edge, from each to the next and from the last to the first, is least.

    ``cost[i, j]`` is what it takes from i to j. Of several best orders the same one on every machine.

    Law: exact for up to ``EXACT`` workers; never worse than the order of the ranks.
    """
    count = len(cost)
    if count <= 2:
        return tuple(range(count))
    starts: list[Sequence[int]] = [_greedy(cost), tuple(range(count)), *([_exact(cost)] if count <= EXACT else [])]
    ranked = [(_rank(cost, order), list(order)) for order in starts]
    return _searched(cost, min(ranked)[1])


def worst_edge(cost: NDArray[np.float64], order: Sequence[int]) -> float:
    """What the costliest edge of a ring takes."""
    at = np.array(order)
    return float(cost[at, np.roll(at, -1)].max()) if len(at) > 1 else 0.0


def _exact(cost: NDArray[np.float64]) -> tuple[int, ...]:
    """By bisection over the edges' costs: is there a ring of edges that cost no more?"""
    count = len(cost)
    limits = np.unique(cost[~np.eye(count, dtype=bool)])
    low, high = 0, len(limits) - 1
    best = _ring_within(cost, limits[high])
    while low < high:
        middle = (low + high) // 2
        found = _ring_within(cost, limits[middle])
        if found:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def _ring_within(cost: NDArray[np.float64], limit: float) -> tuple[int, ...]:
    """A ring of edges that cost at most ``limit``; empty if there is none.

    ``ends[seen]`` is a set of workers, as bits: where a path from worker 0 through all of ``seen`` may end.
    """
    count = len(cost)
    onward = [sum(1 << j for j in range(count) if j != i and cost[i, j] <= limit) for i in range(count)]
    ends = [0] * (1 << count)
    ends[1] = 1
    for seen in range(1, 1 << count, 2):
        at = ends[seen]
        while at:
            worker = (at & -at).bit_length() - 1
            at &= at - 1
            free = onward[worker] & ~seen
            while free:
                bit = free & -free
                ends[seen | bit] |= bit
                free ^= bit
    seen = (1 << count) - 1
    last = next((i for i in range(count) if ends[seen] >> i & 1 and onward[i] & 1), None)
    if last is None:
        return ()
    path = [last]
    while seen != 1:  # backwards: who may have come before
        seen &= ~(1 << path[-1])
        if seen == 1:
            path.append(0)
            break
        path.append(next(i for i in range(count) if ends[seen] >> i & 1 and onward[i] >> path[-1] & 1))
    return tuple(reversed(path))


def _greedy(cost: NDArray[np.float64]) -> tuple[int, ...]:
    """From worker 0 always to the nearest that is left."""
    left, order = set(range(1, len(cost))), [0]
    while left:
        order.append(min(left, key=lambda j: (cost[order[-1], j], j)))
        left.remove(order[-1])
    return tuple(order)


def _rank(cost: NDArray[np.float64], order: Sequence[int]) -> tuple[float, float]:
    """The worst edge, and then all of them: where the worst cannot be avoided, it is taken no oftener than need be."""
    at = np.array(order)
    edges = cost[at, np.roll(at, -1)]
    return float(edges.max()), float(edges.sum())


def _searched(cost: NDArray[np.float64], order: list[int]) -> tuple[int, ...]:
    """Turn round a part of the ring, or move a worker, where that makes the worst edge better; until nothing does."""
    count = len(order)
    best = _rank(cost, order)
    for _ in range(SWEEPS):
        at = np.array(order)
        worst = int(cost[at, np.roll(at, -1)].argmax())
        turned = order[worst + 1 :] + order[: worst + 1]  # the worst edge leads from the last to the first
        tries = [turned[:k][::-1] + turned[k:] for k in range(2, count)]
        for mover in (turned[0], turned[-1]):
            rest = [rank for rank in turned if rank != mover]
            tries += [[*rest[:k], mover, *rest[k:]] for k in range(1, count - 1)]
        for take in (2, 3):
            head, rest = turned[:take], turned[take:]
            tries += [[*rest[:k], *head, *rest[k:]] for k in range(1, count - take)]
        found = min(tries, key=lambda order: _rank(cost, order))
        rank = _rank(cost, found)
        if rank >= best:
            break
        best, order = rank, found
    start = order.index(0)
    return tuple(order[start:] + order[:start])
