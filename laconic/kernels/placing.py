"""Annealing over the order of hosts, for :func:`laconic.plan.pipette.place`.

The random numbers are given, five for each try: so the compiled loop and the plain one (``anneal.py_func``) walk the
same way.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(cache=True)
def cost(order, stages, passing, summing, inside, rounds, early):
    """Seconds that an order of hosts adds to a step: ``Placing.cost``."""
    rows = order.size // stages
    slowest = 0.0
    for r in range(rows):
        row = 0.0
        for i in range(stages - 1):
            row += passing[order[r * stages + i], order[r * stages + i + 1]]
        slowest = max(slowest, row)
    last = 0.0
    for i in range(stages):
        outside, within = 0.0, 0.0
        for r in range(rows):
            here = order[r * stages + i]
            if rows > 1:
                outside = max(outside, summing[here, order[(r + 1) % rows * stages + i]])
            within = max(within, inside[here])
        last = max(last, outside + within - early * i)
    return rounds * slowest + last


@njit(cache=True)
def moved(order, there, a, b, move, at):
    """Write into ``there`` what one of five moves makes of the segment from a to b (a < b)."""
    n = order.size
    there[:] = order
    if move == 0:  # reverse it
        for k in range(a, b + 1):
            there[k] = order[a + b - k]
        return
    if move == 2:  # swap its ends
        there[a], there[b] = order[b], order[a]
        return
    if move == 1:  # move one, else move all of it, reversed if the move is the fourth
        b = a
    size = b - a + 1
    at = int(at * (n - size + 1))  # its first place among the others
    for k in range(n):
        if at <= k < at + size:
            there[k] = order[b - (k - at)] if move == 4 else order[a + k - at]
        else:
            other = k if k < at else k - size
            there[k] = order[other] if other < a else order[other + size]


@njit(cache=True)
def anneal(order, stages, passing, summing, inside, rounds, early, draws, cooling):
    """The best order met, and what it costs; the walk begins at ``order``."""
    n = order.size
    now, there, best = order.copy(), order.copy(), order.copy()
    value = cost(now, stages, passing, summing, inside, rounds, early)
    least, warmth = value, 1.0
    for k in range(len(draws)):
        a = int(draws[k, 0] * n)
        b = int(draws[k, 1] * (n - 1))
        if b >= a:
            b += 1
        moved(now, there, min(a, b), max(a, b), int(draws[k, 2] * 5), draws[k, 3])
        after = cost(there, stages, passing, summing, inside, rounds, early)
        take = after <= value
        if not take and not math.isinf(after):
            worse = after - value
            # Its mantissa in [0.1, 1): exploring knows no scale.
            mantissa = worse / 10.0 ** (math.floor(math.log10(worse)) + 1)
            take = draws[k, 4] < math.exp(-mantissa / warmth)
        if take:
            now[:] = there
            value = after
            if value < least:
                best[:] = there
                least = value
        warmth *= cooling
    return best, least


# Compiled, or read from the cache, when this is imported.
_two = np.zeros((2, 2))
anneal(np.arange(2), 1, _two, _two, np.zeros(2), 1.0, 0.0, np.zeros((1, 5)), 1.0)
