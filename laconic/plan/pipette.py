"""Pipette: how long a step takes on links that differ, and which host should take which place.

A :class:`Placing` is the question: what each pair of hosts costs. The answer is the hosts in the order of their places:
``order[r * p + i]`` holds stage i of pipeline r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.kernels import loops

COOLING = 0.999  # of the temperature, at each try
TRIES = 6000  # after which a worse state is no longer taken

Matrix = NDArray[np.float64]


class Form(NamedTuple):
    """One (pipeline, tensor, data, micro-batch) of the search space."""

    pipeline: int
    tensor: int
    data: int
    micro_batch: int


def forms(hosts: int, each: int, layers: int, batch: int, tensor: Sequence[int] = (1, 2, 4, 8)) -> list[Form]:
    """All that the published configurator looks at, for ``hosts`` of ``each`` workers.

    Tensor ways stay within a host; stages divide hosts and layers; a micro-batch of 1, 2, 4 or 8 divides what a copy
    takes of the batch.

    Source: Li et al. 2024, arXiv:2405.18093, section IV, and its code.
    """
    workers = hosts * each
    found = []
    for t in (t for t in tensor if t <= each and each % t == 0):
        for p in range(min(hosts, layers), 0, -1):
            if hosts % p or layers % p:
                continue
            d = workers // (p * t)
            if batch % d == 0:
                found += [Form(p, t, d, b) for b in (1, 2, 4, 8) if batch // d % b == 0]
    return found


def latency(pipeline: int, micro_batches: int, work: float, passing: float, data: float = 0.0) -> float:
    """Seconds of a step, as published. ``work`` is one stage's forward and backward pass of a micro-batch, ``passing``
    the slowest pipeline's messages there and back (C_pp), ``data`` the exchange of gradients.

    The messages come again for each p micro-batches: a stage has but p in flight, and waits for the first of them to
    return. The rest of ``m / p`` is left out, so a step with ``m < 2 p`` that is no multiple is told too short; the
    order of turns, simulated (:func:`laconic.plan.pipeline.simulate`), is right for all of them.

    Law:    without messages and p dividing m, ``(m + p - 1) work + data``.
    Source: arXiv:2405.18093, section V, equations 3 and 4.
    """
    rounds = micro_batches // pipeline
    if not rounds:
        return charged_once(pipeline, micro_batches, work, passing, data)
    return rounds * (passing + pipeline * work) + (pipeline - 1) * work + data


def charged_once(pipeline: int, micro_batches: int, work: float, passing: float, data: float = 0.0) -> float:
    """The older model, which charges the messages once a step."""
    return passing + pipeline * work + (micro_batches - 1) * work + data


def data_seconds(nbytes: float, inside: float, between: float, inner: int, outer: int) -> float:
    """All-reduce of ``nbytes`` first within hosts of ``inner`` copies, then on a ring of ``outer`` hosts: twice what a
    ring takes inside, and once what it takes between.

    Source: arXiv:2405.18093, section V, equation 5.
    """
    within = 2 * 2 * (inner - 1) / inner * over(nbytes, inside) if inner > 1 else 0.0
    return within + (2 * (outer - 1) / outer * over(nbytes, between) if outer > 1 else 0.0)


def over(nbytes: float, bandwidth: float) -> float:
    """Seconds for so many bytes; endless on a link that carries nothing."""
    if not nbytes:
        return 0.0
    return nbytes / bandwidth if bandwidth > 0 else math.inf


@dataclass(frozen=True)
class Placing:
    """What the places cost.

    ``passing[a, b]`` are the seconds of a micro-batch's messages between neighbouring stages on hosts a and b, there
    and back; ``summing[a, b]`` those of one copy's gradients from a to b around the ring of all the hosts of a stage;
    ``inside[a]`` those that the sum takes within host a. ``rounds`` is how often the messages of a pipeline are waited
    for, ``early`` how long before the first stage each stage is done.
    """

    stages: int
    passing: Matrix
    summing: Matrix
    inside: Matrix
    rounds: float = 1.0
    early: float = 0.0

    def __post_init__(self) -> None:
        hosts = len(self.passing)
        if hosts % self.stages:
            raise ConfigError(f"placing: {self.stages} stages do not divide {hosts} hosts")
        if any(matrix.shape != (hosts, hosts) for matrix in (self.passing, self.summing)):
            raise ConfigError(f"placing: the matrices are not both {hosts} x {hosts}, a row for each host")
        if any(np.isnan(matrix).any() or (matrix < 0).any() for matrix in (self.passing, self.summing, self.inside)):
            raise ConfigError("placing: seconds must be 0 or more; a pair that cannot talk has infinity")

    def cost(self, order: NDArray[np.intp]) -> float:
        """Seconds that the order adds to a step: the slowest pipeline's messages, and the last stage to have summed."""
        table = order.reshape(-1, self.stages)
        pipelines = self.passing[table[:, :-1], table[:, 1:]].sum(axis=1).max() if self.stages > 1 else 0.0
        outside = self.summing[table, np.roll(table, -1, axis=0)].max(axis=0) if len(table) > 1 else 0.0
        summed = outside + self.inside[table].max(axis=0) - self.early * np.arange(self.stages)
        return float(self.rounds * pipelines + max(0.0, summed.max()))


class Placed(NamedTuple):
    """Hosts in the order of their places, what they cost, and what the order that was given costs; seconds a step."""

    order: tuple[int, ...]
    seconds: float
    before: float


def place(placing: Placing, seed: int = 0, tries: int = TRIES, runs: int = 3) -> Placed:
    """Look for the order of hosts that costs least, by annealing.

    A try reverses, moves or swaps. A worse order is taken with probability ``exp(-x / T)``, where x is the worsening's
    mantissa in [0.1, 1): exploring knows no scale. Each run begins at the best that is known.

    Law:    what is returned never costs more than the order 0, 1, 2, …; the same seed gives the same.
    Source: arXiv:2405.18093, section VI, and its code (five moves, T = 0.999^k).
    """
    hosts = len(placing.passing)
    best = np.arange(hosts)
    least = before = placing.cost(best)
    if hosts < 2 or not _differ(placing):
        return Placed(tuple(range(hosts)), before, before)
    compiled, rng = loops("placing"), np.random.default_rng(seed)
    walk = compiled.anneal if compiled else _plain()
    matrices = (
        np.ascontiguousarray(matrix, dtype=float) for matrix in (placing.passing, placing.summing, placing.inside)
    )
    given = (placing.stages, *matrices, float(placing.rounds), float(placing.early))
    for _ in range(runs):
        best, least = walk(best, *given, rng.random((tries, 5)), COOLING)
    return Placed(tuple(int(host) for host in best), float(least), before)


def _plain() -> Any:
    """The same walk without the compiler, thousands of times slower."""
    from laconic.kernels import placing

    return placing.anneal.py_func


def _differ(placing: Placing) -> bool:
    """Whether it matters at all which host is where."""
    apart = ~np.eye(len(placing.passing), dtype=bool)
    off = (placing.passing[apart], placing.summing[apart], placing.inside)
    return any(not np.all(values == values[0]) for values in off if values.size)
