"""Holmes: training across clusters that only a slow link joins, and stages as large as their machines are fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from laconic.errors import ConfigError
from laconic.plan.pipeline import Hop, steady

EAGER = 1.05  # the published factor on the faster stages' shares


def shares(layers: int, speeds: Sequence[float], eager: float = EAGER) -> list[int]:
    """The published split: each of the faster stages gets ``floor(eager * layers * its share of the speed)``, the
    slowest what is left.

    Raises: ConfigError for no speeds, or one that is not positive; if the slowest would be left with nothing.
    Source: Yang et al. 2023, arXiv:2312.03549, section 3.3 (as we remember it).
    """
    _check(layers, speeds)
    slowest = min(range(len(speeds)), key=lambda i: (speeds[i], -i))
    found = [max(1, math.floor(eager * layers * speed / sum(speeds))) for speed in speeds]
    found[slowest] = 0
    found[slowest] = layers - sum(found)
    if found[slowest] < 1:
        raise ConfigError(
            f"holmes: at a factor of {eager} nothing is left of {layers} layers for the slowest of "
            f"{len(speeds)} stages; take a factor nearer to 1, or fewer stages"
        )
    return found


def rounded(layers: int, speeds: Sequence[float]) -> list[int]:
    """Layers in proportion to speeds, to the nearest whole: the largest remainders are rounded up.

    Law:    they sum up to ``layers``, none is without; equal speeds differ by one layer at most.
    Raises: ConfigError for no speeds, one that is not positive, or fewer layers than stages.
    """
    _check(layers, speeds)
    spare = layers - len(speeds)  # beyond the one that each has
    wanted = [max(0.0, layers * speed / sum(speeds) - 1) for speed in speeds]
    scale = spare / sum(wanted) if sum(wanted) else 0.0
    wanted = [x * scale for x in wanted]
    found = [1 + math.floor(x + 1e-9) for x in wanted]
    by_remainder = sorted(range(len(speeds)), key=lambda i: (found[i] - 1 - wanted[i], i))
    for i in by_remainder[: layers - sum(found)]:
        found[i] += 1
    return found


def split(
    layers: int,
    speeds: Sequence[float],
    seconds: Callable[[Sequence[int]], float] | None = None,
    excess: Callable[[Sequence[int]], float] = lambda layers: 0.0,
    givers: Callable[[Sequence[int]], Collection[int]] | None = None,
) -> list[int]:
    """Layers of each stage: in proportion to speeds, and then single layers are moved while ``seconds`` get less.

    ``excess`` is by how many bytes a split is more than the machines' memory; one with less of it comes before any that
    is faster. Layers leave only ``givers`` of a split, the stages that are too slow or too full (all, if nobody says).
    Without ``seconds`` it is :func:`rounded`.

    Law:    never slower than :func:`rounded`, if that fits.
    Raises: ConfigError as :func:`rounded`; if moving layers leads to none that fits.
    """
    now = rounded(layers, speeds)
    if seconds is None:
        return now
    cost = (excess(now), seconds(now))
    for _ in range(layers):
        some = range(len(now)) if givers is None else givers(now)
        near = [_moved(now, i, j) for i in some if now[i] > 1 for j in range(len(now)) if i != j]
        if not near:
            break
        costs = [(excess(there), seconds(there)) for there in near]
        least = min(range(len(near)), key=lambda i: costs[i])
        if costs[least] >= cost:
            break
        now, cost = near[least], costs[least]
    if cost[0] > 0:
        raise ConfigError(
            f"holmes: no split of {layers} layers fits the machines' memory; the nearest, {now}, is "
            f"{cost[0]:.3g} bytes over"
        )
    return now


def pipeline_seconds(
    layers: Sequence[int], speeds: Sequence[float], micro_batches: int, passing: Sequence[float] = ()
) -> float:
    """Seconds of a step's pipeline when stage i takes ``layers[i] / speeds[i]`` for a micro-batch.

    A third of that is the forward pass. ``passing[i]`` are the seconds that a message holds the line from stage i to
    the next, and back.
    """
    whole = [n / speed for n, speed in zip(layers, speeds, strict=True)]
    forward, backward = [x / 3 for x in whole], [2 * x / 3 for x in whole]
    return float(steady(len(layers), micro_batches, 1, forward, backward, [Hop(seconds) for seconds in passing]).total)


class Crossing(NamedTuple):
    """Bytes that pass the slow cut in one direction in a step, either way of lying across it."""

    stages: float
    copies: float

    @property
    def stages_win(self) -> bool:
        """Whether pipelines, and not copies, should lie across."""
        return self.stages < self.copies


def crossing(
    batch: int,
    sequence: int,
    hidden: int,
    parameters: float,
    clusters: int = 2,
    value_bytes: int = 2,
    gradient_bytes: int = 2,
) -> Crossing:
    """What crosses each cut between neighbouring clusters: ``B s h`` activations, or ``2 (G - 1) / G P`` of gradients.

    All pipelines together pass each example once there and its gradient once back, whatever the micro-batch. Copies
    in G clusters send each parameter's gradient around their ring.

    Law:    with equal bytes a value, stages across exactly when ``B s h < 2 (G - 1) / G P``.
    Raises: ConfigError for fewer than two clusters.
    Source: arXiv:2312.03549, section 3.1.
    """
    if clusters < 2:
        raise ConfigError(f"crossing: it takes at least two clusters to have a link between, got {clusters}")
    return Crossing(
        stages=float(batch) * sequence * hidden * value_bytes,
        copies=2 * (clusters - 1) / clusters * parameters * gradient_bytes,
    )


def stages_of(workers: Sequence[int], tensor: int, data: int) -> list[int]:
    """How many stages each cluster holds when none is cut by a border: its workers over ``t d``.

    Raises: ConfigError if a cluster's workers are no multiple of it.
    """
    for cluster, n in enumerate(workers):
        if n % (tensor * data) or not n:
            raise ConfigError(
                f"holmes: cluster {cluster} has {n} workers, no multiple of t d = {tensor * data}; a stage would lie "
                "across its border. Take fewer copies, or leave workers out"
            )
    return [n // (tensor * data) for n in workers]


def _moved(layers: Sequence[int], giver: int, taker: int) -> list[int]:
    there = list(layers)
    there[giver] -= 1
    there[taker] += 1
    return there


def _check(layers: int, speeds: Sequence[float]) -> None:
    if not speeds or min(speeds) <= 0:
        raise ConfigError(f"holmes: each stage needs a positive speed, got {list(speeds)}")
    if layers < len(speeds):
        raise ConfigError(f"holmes: {layers} layers cannot be dealt to {len(speeds)} stages; take {layers} or fewer")
