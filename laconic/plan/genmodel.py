"""GenModel: what an all-reduce costs, with the memory that sums touch and the crowding of many flows at one port.

``T = A alpha + B beta + C gamma + D delta + max(w - w_t, 0) B epsilon``: rounds, bytes through the busiest port, bytes
added, bytes of memory touched by sums, and bytes times the flows beyond what a port bears. The table has closed forms,
and :func:`price` reckons the same for any plan, round by round, from its transfers.

Source: "Revisiting the Time Cost Model of AllReduce", arXiv:2409.04202. A round that has several degrees ``w`` is
priced by each port's own; the paper's form is for plans whose rounds are all alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.plan import collectives
from laconic.plan.collectives import Work
from laconic.plan.ports import Ports
from laconic.plan.rounds import Plan

# -- the table -----------------------------------------------------------------------------------------------------


def star(workers: int, nbytes: float, w_t: float = math.inf) -> Work:
    """A hub that sums all in one pass."""
    plain = collectives.star(workers, nbytes)
    touched = (workers + 1) * nbytes if workers > 1 else 0.0
    return plain._replace(touched=touched, crowded=_beyond(workers, w_t) * plain.moved)


def ring(workers: int, nbytes: float, w_t: float = math.inf) -> Work:
    """A ring: sums of two, one after the other."""
    plain = collectives.ring(workers, nbytes)
    return plain._replace(touched=3 * plain.added, crowded=_beyond(min(2, workers), w_t) * plain.moved)


def rhd(workers: int, nbytes: float, w_t: float = math.inf) -> Work:
    """Halving and doubling, of a power of two: sums of two.

    Raises: ConfigError for another number, of whose fold the table does not speak; :func:`price` does.
    """
    if workers & (workers - 1):
        raise ConfigError(f"rhd: the table is for a power of two, got {workers} workers; price the plan instead")
    return hcps((2,) * (workers.bit_length() - 1), nbytes, w_t)


def cps(workers: int, nbytes: float, w_t: float = math.inf) -> Work:
    """A server on every worker: each share is summed in one pass."""
    return hcps((workers,), nbytes, w_t)


def hcps(factors: Sequence[int], nbytes: float, w_t: float = math.inf) -> Work:
    """:func:`cps` in groups of ``factors[0]``, then of ``factors[1]`` between these, and so on.

    Law: bytes and additions are a ring's; memory touched is least with one factor, most with twos alone, and of two
    factors less with the larger one first.
    """
    total, inner = Work(0, 0), 1
    for size in factors:
        if size == 1:
            continue
        inner *= size
        moved = 2 * (size - 1) / inner * nbytes
        level = Work(2, moved, moved / 2, (size + 1) / inner * nbytes, _beyond(size, w_t) * moved)
        total = Work(*(a + b for a, b in zip(total, level, strict=True)))
    return total


TABLE: dict[str, Callable[..., Work]] = {"star": star, "ring": ring, "rhd": rhd, "cps": cps}


def _beyond(degree: int, w_t: float) -> float:
    return max(degree - w_t, 0.0)


# -- any plan ------------------------------------------------------------------------------------------------------


class Terms(NamedTuple):
    """Seconds by their cause: starts, bytes, additions, memory, and crowding."""

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    delta: float = 0.0
    epsilon: float = 0.0

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self)


class Priced(NamedTuple):
    """What a plan costs: its terms, and for each round the degree ``w`` of its most crowded port or line."""

    terms: Terms
    degrees: list[int]

    @property
    def seconds(self) -> float:
        """All terms."""
        return self.terms.seconds


def price(plan: Plan, ports: Ports, nbytes: float, one_pass: bool = True) -> Priced:
    """What ``plan`` costs for a vector of ``nbytes`` over ``ports``.

    A round takes as long as its slowest transfer, whose port or line carries all that passes through it, and then as
    long as its slowest sums. The degree of a port is the flows through it and one, in the one direction or the other:
    the paper's table charges a hub that sends to all as it charges one that all send to. ``one_pass=False`` prices sums
    that take one part after the other, which touch three times what they add.

    Raises: ConfigError for a plan of another number of workers than the ports are of.
    """
    if plan.workers != ports.workers:
        raise ConfigError(f"{plan.name}: a plan of {plan.workers} workers for a network of {ports.workers}")
    total, degrees = Terms(), []
    for table in plan.tables:
        sent, degree = _sending(table, ports, nbytes / plan.blocks)
        summed = _summing(table, ports, nbytes / plan.blocks, one_pass, plan.blocks)
        total = Terms(*(a + b + c for a, b, c in zip(total, sent, summed, strict=True)))
        degrees.append(degree)
    return Priced(total, degrees)


def _sending(table: NDArray[np.int64], ports: Ports, block: float) -> tuple[Terms, int]:
    n = ports.workers
    pairs, inverse = np.unique(table[:, 0] * n + table[:, 1], return_inverse=True)
    nbytes = np.bincount(inverse, weights=(table[:, 3] - table[:, 2]) * block)
    sources, targets = pairs // n, pairs % n
    places, betas = ports.route(sources, targets)
    width = ports.count + 1  # the last is none
    busy = np.bincount(places.ravel(), (betas * nbytes[:, None]).ravel(), width)
    carried = np.bincount(places.ravel(), np.broadcast_to(nbytes[:, None], places.shape).ravel(), width)
    flows = np.bincount(places.ravel(), minlength=width)
    busy[-1] = carried[-1] = flows[-1] = 0
    crowded = np.zeros(width)
    crowded[:-1] = np.maximum(flows[:-1] + 1 - ports.w_t, 0) * np.where(ports.epsilon > 0, ports.epsilon, 0)
    late = carried * crowded
    slowest = (busy + late)[places].argmax(axis=1)  # of each pair: the thing that it waits for
    thing = places[np.arange(len(places)), slowest]
    start = ports.start(sources, targets)
    worst = (start + busy[thing] + late[thing]).argmax()
    terms = Terms(alpha=start[worst], beta=busy[thing[worst]], epsilon=late[thing[worst]])
    return Terms(*map(float, terms)), int(flows.max()) + 1


def _summing(table: NDArray[np.int64], ports: Ports, block: float, one_pass: bool, blocks: int) -> Terms:
    added, touched = summed(table, ports.workers, blocks)
    if not one_pass:
        touched = 3 * added
    seconds = block * (added * ports.gamma + touched * ports.delta)
    worst = seconds.argmax()
    return Terms(
        gamma=float(block * added[worst] * ports.gamma[worst]), delta=float(block * touched[worst] * ports.delta[worst])
    )


def summed(table: NDArray[np.int64], workers: int, blocks: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Blocks that each worker adds in a round, and blocks of memory that it touches if it sums in one pass."""
    adding = table[table[:, 4] == 1]
    if not len(adding):
        return np.zeros(workers), np.zeros(workers)
    added = np.bincount(adding[:, 1], adding[:, 3] - adding[:, 2], workers).astype(float)
    # Each part is read, and where there are any, what is there is read and the sum written.
    start, stop = adding[:, 1] * blocks + adding[:, 2], adding[:, 1] * blocks + adding[:, 3]
    order = np.argsort(start, kind="stable")
    start, stop = start[order], stop[order]
    before = np.concatenate([[0], np.maximum.accumulate(stop)[:-1]])
    fresh = np.maximum(stop - np.maximum(start, before), 0)
    return added, added + 2.0 * np.bincount(adding[order, 1], fresh, workers)
