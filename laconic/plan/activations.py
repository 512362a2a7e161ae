"""MCBench's cost model: when it pays to compress what tensor and pipeline parallelism send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError

FEWEST = 3  # measurements of each kind that a fit wants


@dataclass(frozen=True)
class Costs:
    """What a machine and a link take: ``compute`` seconds an operation, ``code`` seconds a value (encode and decode),
    and for a message of x values ``least`` seconds below ``knee`` values and ``each x`` above."""

    compute: float
    code: float
    least: float
    knee: float
    each: float

    def message(self, values: float) -> float:
        """Tm: seconds of a message of so many values."""
        return self.least if values < self.knee else self.each * values


def layer_flops(batch: float, sequence: float, hidden: float) -> float:
    """One layer with full recomputing: ``96 B s h^2 + 16 B s^2 h``."""
    return 96 * batch * sequence * hidden**2 + 16 * batch * sequence**2 * hidden


def plain(costs: Costs, batch: float, sequence: float, hidden: float) -> float:
    """Seconds of a layer under tensor parallelism, its messages as they are.

    Source: Bian et al. 2024, arXiv:2301.02654 (structure as we remember it).
    """
    return costs.compute * layer_flops(batch, sequence, hidden) + costs.message(batch * sequence * hidden)


def compressed(costs: Costs, batch: float, sequence: float, hidden: float, code: float) -> float:
    """Seconds of a layer whose messages carry ``code`` values for each token, and not ``hidden``."""
    computing = costs.compute * layer_flops(batch, sequence, hidden) + costs.code * batch * sequence * hidden
    return computing + costs.message(batch * sequence * code)


def speed_up(costs: Costs, batch: float, sequence: float, hidden: float, code: float) -> float:
    """How many times faster a layer is with compression.

    Law:    goes to 1 as ``hidden`` grows and ``code`` does not; 1 for a code as wide as what it stands for that costs
            nothing.
    """
    return plain(costs, batch, sequence, hidden) / compressed(costs, batch, sequence, hidden, code)


class Verdict(NamedTuple):
    """Whether compressing pays, by how many seconds a message, and why in a sentence."""

    pays: bool
    saved: float
    why: str


def worth(costs: Costs, batch: float, sequence: float, hidden: float, code: float) -> Verdict:
    """Compressing pays if and only if the message gets shorter by more than encoding and decoding take.

    Source: arXiv:2301.02654 (derived from the model).
    """
    values = batch * sequence * hidden
    shorter = costs.message(values) - costs.message(batch * sequence * code)
    coding = costs.code * values
    if shorter > coding:
        why = f"the message takes {shorter:.3g} s less, and the code {coding:.3g} s"
    elif values < costs.knee:
        why = f"the message is shorter than {costs.knee:,.0f} values, below which none gets any faster"
    else:
        why = f"the message takes only {max(0.0, shorter):.3g} s less, and the code {coding:.3g} s"
    return Verdict(shorter > coding, shorter - coding, why)


def pipeline(
    costs: Costs, stages: int, micro_batches: int, stage: float, values: float, code_values: float | None = None
) -> float:
    """Seconds of a step's pipeline, ``(m + p - 1) (stage + message)``; with ``code_values`` in each message, coding and
    decoding come on top.

    ``stage`` is the seconds of one stage's passes of a micro-batch, ``values`` those at each cut.
    """
    if code_values is None:
        return (micro_batches + stages - 1) * (stage + costs.message(values))
    return (micro_batches + stages - 1) * (stage + costs.message(code_values) + costs.code * values)


def sent(ways: int, values: float, value_bytes: float, linear: bool, index_bytes: float = 0.0) -> float:
    """Bytes that one of ``ways`` workers sends to sum its ``values`` with the others'.

    A linear code is summed on the way, by an all-reduce: ``2 (t - 1) / t`` of it. Any other is gathered, ``t - 1``
    times, each value with its place: for ``t`` ways it must be under ``2 / t`` of what it stands for to send less than
    no compression does.
    """
    if linear:
        return 2 * (ways - 1) / ways * values * value_bytes
    return (ways - 1) * values * (value_bytes + index_bytes)


class Sample(NamedTuple):
    """A measurement: of how much (operations, or values), and the seconds it took."""

    amount: float
    seconds: float


def fit(computing: Sequence[Sample], coding: Sequence[Sample], messages: Sequence[Sample]) -> Costs:
    """The costs that explain measurements, by least squares of relative errors.

    Computing and coding are proportional. For messages every knee between two measured sizes is tried, flat below and
    proportional above.

    Law:    measurements made by costs of this form, on both sides of the knee, give them back.
    Raises: ConfigError for fewer than three measurements of a kind, or one that is not positive.
    Source: arXiv:2301.02654; the sweep is ``examples/cost_model.sh`` of its code.
    """
    for kind, samples in (("computing", computing), ("coding", coding), ("messages", messages)):
        if len(samples) < FEWEST:
            raise ConfigError(f"activations: {kind} needs at least {FEWEST} measurements for a fit, got {len(samples)}")
        if min(min(sample) for sample in samples) <= 0:
            raise ConfigError(f"activations: every measurement of {kind} is of a positive amount and time")
    least, knee, each = _bent(sorted(messages))
    return Costs(_slope(computing), _slope(coding), least, knee, each)


def _slope(samples: Sequence[Sample]) -> float:
    """k that makes ``sum (k amount / seconds - 1)^2`` least."""
    ratio = np.array([sample.amount / sample.seconds for sample in samples])
    return float(ratio.sum() / (ratio**2).sum())


def _bent(messages: Sequence[Sample]) -> tuple[float, float, float]:
    """Seconds below the knee, the knee in values, and seconds a value above it."""
    best = (np.inf, 0.0, 0.0, 0.0)
    for below in range(len(messages)):
        short, long = messages[:below], messages[below:]
        each = _slope(long)
        least = _slope([Sample(1.0, sample.seconds) for sample in short]) if short else 0.0
        error = sum((each * x / t - 1) ** 2 for x, t in long) + sum((least / t - 1) ** 2 for _, t in short)
        knee = np.clip(least / each, short[-1].amount, long[0].amount) if short else 0.0
        best = min(best, (error, least, float(knee), each))
    return best[1:]
