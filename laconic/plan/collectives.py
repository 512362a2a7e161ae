"""What collectives cost by the classic model: a message of x bytes over one link takes ``alpha + x beta`` seconds.

Adding x bytes takes ``x gamma``, and each worker has one port in and one out, which work at the same time. Every cost
here is a :class:`Work`: how often each of these is paid. :mod:`laconic.plan.genmodel` adds what this model leaves out.

Source: Thakur, Rabenseifner and Gropp 2005 (IJHPCA); two levels and more: Cho et al. 2019 (BlueConnect).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from laconic.errors import ConfigError, unknown
from laconic.plan.rounds import at_least


class Rates(NamedTuple):
    """What is paid: seconds a message's start takes, seconds a byte on a port, and seconds a byte added.

    ``delta`` is seconds a byte of memory touched while adding, ``epsilon`` seconds a byte for each worker by which
    those that meet at a port are more than ``w_t`` (:mod:`laconic.plan.genmodel`).
    """

    alpha: float
    beta: float
    gamma: float = 0.0
    delta: float = 0.0
    epsilon: float = 0.0
    w_t: float = math.inf


class Work(NamedTuple):
    """How often each rate is paid: messages one after the other, bytes through the busiest port, bytes added, bytes of
    memory touched, and bytes times workers beyond the bearable number at a port.
    """

    rounds: float
    moved: float
    added: float = 0.0
    touched: float = 0.0
    crowded: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """What it takes: the sum of all terms."""
        return sum(count * rate for count, rate in zip(self, rates[:5], strict=True))


def depth(workers: int) -> int:
    """``ceil(log2 n)``."""
    return (workers - 1).bit_length()


# -- the table: bytes S at each worker, n workers -------------------------------------------------------------------


def ring(workers: int, nbytes: float) -> Work:
    """All-reduce by a ring: reduce-scatter, then all-gather."""
    share = nbytes * (workers - 1) / workers
    return Work(2 * (workers - 1), 2 * share, share)


def doubling(workers: int, nbytes: float) -> Work:
    """All-reduce by recursive doubling: whole vectors each step."""
    levels = workers.bit_length() - 1
    return _plus(Work(levels, levels * nbytes, levels * nbytes), _folding(workers, nbytes))


def rhd(workers: int, nbytes: float) -> Work:
    """All-reduce by recursive halving and doubling."""
    core = 1 << (workers.bit_length() - 1)
    share = nbytes * (core - 1) / core
    return _plus(Work(2 * (workers.bit_length() - 1), 2 * share, share), _folding(workers, nbytes))


def tree(workers: int, nbytes: float) -> Work:
    """All-reduce by a binomial tree, up and down."""
    levels = depth(workers)
    return Work(2 * levels, 2 * levels * nbytes, levels * nbytes)


def double_tree(workers: int, nbytes: float, segments: int = 16) -> Work:
    """All-reduce by two binary trees at once, in so many segments one behind the other. Approximate."""
    levels = depth(workers)
    if workers == 1:
        return Work(0, 0)
    return Work(2 * (levels + segments - 1), 2 * nbytes * (1 + (levels - 1) / segments), nbytes)


def star(workers: int, nbytes: float, serial: bool = False) -> Work:
    """All-reduce by a hub that all send to; ``serial``: it takes the messages' starts one after the other."""
    if workers == 1:
        return Work(0, 0)
    return Work(2 * (workers - 1) if serial else 2, 2 * (workers - 1) * nbytes, (workers - 1) * nbytes)


def cps(workers: int, nbytes: float) -> Work:
    """All-reduce with a parameter server on every worker, each for a share: two rounds of everyone to everyone."""
    share = nbytes * (workers - 1) / workers
    return Work(2 if workers > 1 else 0, 2 * share, share)


def ring_scatter(workers: int, nbytes: float) -> Work:
    """Reduce-scatter by a ring."""
    share = nbytes * (workers - 1) / workers
    return Work(workers - 1, share, share)


def ring_gather(workers: int, nbytes: float) -> Work:
    """All-gather by a ring; S is what all hold in the end."""
    return Work(workers - 1, nbytes * (workers - 1) / workers)


def bruck_gather(workers: int, nbytes: float) -> Work:
    """All-gather by doubling (Bruck); S is what all hold in the end."""
    return Work(depth(workers), nbytes * (workers - 1) / workers)


def pairwise(workers: int, nbytes: float) -> Work:
    """All-to-all, a partner a round; S is all that a worker holds."""
    return Work(workers - 1, nbytes * (workers - 1) / workers)


def bruck(workers: int, nbytes: float) -> Work:
    """All-to-all by Bruck's way: fewer messages, more bytes."""
    return Work(depth(workers), nbytes * depth(workers) / 2)


def binomial(workers: int, nbytes: float) -> Work:
    """Broadcast down a binomial tree."""
    return Work(depth(workers), depth(workers) * nbytes)


def van_de_geijn(workers: int, nbytes: float) -> Work:
    """Broadcast of long vectors: scatter, then all-gather round a ring."""
    return Work(depth(workers) + workers - 1, 2 * nbytes * (workers - 1) / workers)


def chain(workers: int, nbytes: float, segments: int = 1) -> Work:
    """Broadcast (or reduce, additions aside) along a chain, in so many segments one behind the other."""
    steps = max(0, workers - 2 + segments) if workers > 1 else 0
    return Work(steps, steps * nbytes / segments)


def scatter(workers: int, nbytes: float) -> Work:
    """Scatter from, or gather to, one worker by a binomial tree; S is what that one holds."""
    return Work(depth(workers), nbytes * (workers - 1) / workers)


TABLE: dict[str, dict[str, Callable[..., Work]]] = {
    "all-reduce": {
        "ring": ring,
        "doubling": doubling,
        "rhd": rhd,
        "tree": tree,
        "double tree": double_tree,
        "star": star,
        "cps": cps,
    },
    "reduce-scatter": {"ring": ring_scatter},
    "all-gather": {"ring": ring_gather, "bruck": bruck_gather},
    "all-to-all": {"pairwise": pairwise, "bruck": bruck},
    "broadcast": {"binomial": binomial, "scatter and gather": van_de_geijn, "chain": chain},
    "reduce": {"chain": chain},
    "gather": {"binomial": scatter},
    "scatter": {"binomial": scatter},
}


def work(operation: str, algorithm: str, workers: int, nbytes: float, **settings: Any) -> Work:
    """The cost of a collective by name.

    Raises: ConfigError for a name that is not in the table, with the nearest, and for no workers or negative bytes.
    """
    at_least(workers, f"{algorithm} {operation}")
    if not nbytes >= 0:
        raise ConfigError(f"{operation}: its bytes are {nbytes}, wanted a number from 0 on")
    if operation not in TABLE:
        raise unknown("collective", operation, TABLE)
    if algorithm not in TABLE[operation]:
        raise unknown(f"way of {operation}", algorithm, TABLE[operation])
    return TABLE[operation][algorithm](workers, nbytes, **settings)


def least(workers: int, nbytes: float) -> Work:
    """What no all-reduce can do without: rounds, bytes out of each worker, and additions at each."""
    share = nbytes * (workers - 1) / workers
    return Work(depth(workers), 2 * share, share)


# -- uneven links, and levels --------------------------------------------------------------------------------------


def uneven_ring(edges: Sequence[tuple[float, float]], nbytes: float) -> float:
    """Seconds of a ring all-reduce over edges of ``(alpha, beta)`` each: every step waits for the slowest of them."""
    count = len(edges)
    return 2 * (count - 1) * max(alpha + nbytes / count * beta for alpha, beta in edges)


def blue_connect(levels: Sequence[tuple[int, Rates]], nbytes: float) -> float:
    """Seconds of rings in every dimension of ``p_1 x … x p_k`` workers, the innermost first, each on what is left.

    Law: bytes out of each worker are a flat ring's; its start-ups fall from ``2 (n-1)`` to the sum of ``2 (p_i - 1)``.
    """
    seconds, inner = 0.0, 1
    for size, rates in levels:
        seconds += ring(size, nbytes / inner).seconds(rates)
        inner *= size
    return seconds


def two_level(hosts: int, local: int, nbytes: float, inside: Rates, between: Rates, ports: int = 1) -> float:
    """Seconds of a reduce-scatter on each host, rings of equal shards between hosts, and an all-gather on each.

    The shards of a host share ``ports`` connections to the outside, whose rates ``between`` are.
    """
    shards = Work(*ring(hosts, nbytes))._replace(added=ring(hosts, nbytes).added / local)
    return ring(local, nbytes).seconds(inside) + shards._replace(moved=shards.moved / ports).seconds(between)


def leaders(hosts: int, local: int, nbytes: float, inside: Rates, between: Rates) -> float:
    """Seconds of a sum at each host's leader, a ring among leaders, and a broadcast on each host, by binomial trees.

    In the plan of that name (:func:`laconic.plan.groups.leaders`) a host's workers send to their leader all at once.
    """
    return tree(local, nbytes).seconds(inside) + ring(hosts, nbytes).seconds(between)


# -- where one becomes better than another -----------------------------------------------------------------------


def doubling_until(workers: int, rates: Rates) -> float:
    """Bytes under which recursive doubling beats halving and doubling; for a power of two of at least 4 workers."""
    levels, share = depth(workers), (workers - 1) / workers
    dearer = rates.beta * (levels - 2 * share) + rates.gamma * (levels - share)
    return math.inf if dearer <= 0 else levels * rates.alpha / dearer


def star_until(workers: int, rates: Rates) -> float:
    """Bytes under which a star beats a ring: it starts fewer messages, and sends n times the bytes through its hub."""
    if workers < 3:
        return 0.0
    dearer = (workers - 1) * (1 - 1 / workers) * (2 * rates.beta + rates.gamma)
    return math.inf if dearer <= 0 else 2 * (workers - 2) * rates.alpha / dearer


def best_segments(workers: int, nbytes: float, rates: Rates) -> float:
    """The segments, not rounded, with which a chain is quickest: ``sqrt((n-2) S beta / alpha)``, and at least 1."""
    if workers < 3:
        return 1.0
    return math.inf if rates.alpha == 0 else max(1.0, math.sqrt((workers - 2) * nbytes * rates.beta / rates.alpha))


def _folding(workers: int, nbytes: float) -> Work:
    """What workers beyond a power of two add: their vectors to others beforehand, and the result back."""
    return Work(2, 2 * nbytes, nbytes) if workers & (workers - 1) else Work(0, 0)


def _plus(a: Work, b: Work) -> Work:
    return Work(*(x + y for x, y in zip(a, b, strict=True)))
