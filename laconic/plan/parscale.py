"""ParScale's law: what P streams through one model, put together at its end, are worth in parameters.

``L = E + (1e9 A / (N (k ln P + 1)))^alpha``: P streams are worth ``k ln P`` times more parameters.

Source: arXiv:2505.10475.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.huber import Floats, log_of_sum, lowest, minimise

UNIT = 1e9  # parameters in which A is counted
LEAST = 5  # points for four unknowns


class Streams(NamedTuple):
    """The final loss of a run: parameters, streams, loss."""

    params: float
    streams: float
    loss: float


@dataclass(frozen=True)
class ParScale:
    """``L = floor + (1e9 a / (N (k ln P + 1)))^alpha``."""

    floor: float
    a: float
    alpha: float
    k: float

    def loss(self, params: float, streams: float) -> float:
        """The loss of ``params`` parameters with so many streams."""
        return self.floor + (UNIT * self.a / (params * self.worth(streams))) ** self.alpha

    def worth(self, streams: float) -> float:
        """How many times the parameters so many streams are worth."""
        return self.k * math.log(streams) + 1


def fit(points: Sequence[Streams]) -> ParScale:
    """The law of least Huber's loss of ``ln L``, from a grid of starts.

    Raises: ConfigError for too few points, sizes or numbers of streams, and what is no loss.
    """
    for point in points:
        if not (0 < point.params < math.inf and 1 <= point.streams < math.inf and 0 < point.loss < math.inf):
            raise ConfigError(
                f"a point of {point.params:g} parameters, {point.streams:g} streams, loss {point.loss:g}: parameters "
                "and loss must be above 0, and streams at least 1"
            )
    if len(points) < LEAST or len({p.params for p in points}) < 2 or len({p.streams for p in points}) < 2:
        raise ConfigError(f"ParScale's law needs {LEAST} runs of 2 sizes and 2 numbers of streams, got {len(points)}")
    table = np.array(points, dtype=float)
    x, doubled, losses = np.log(UNIT / table[:, 0]), np.log(table[:, 1]), np.log(table[:, 2])

    def model(at: Floats) -> tuple[Floats, Floats]:
        e, a, alpha, k = (column[:, None] for column in at.T)
        worth = np.exp(np.minimum(k, 30.0)) * doubled + 1
        inner = a + x - np.log(worth)
        total, (of_e, of_power) = log_of_sum(np.stack([np.broadcast_to(e, inner.shape), alpha * inner]))
        slopes = [of_e, of_power * alpha, of_power * inner, -of_power * alpha * (1 - 1 / worth)]
        return total - losses, np.stack(slopes, axis=-1)

    starts = product((-1.0, -0.5, 0.0, 0.5), (-6.0, -4.0, -2.0, 0.0), (0.1, 0.2, 0.5, 1.0), (-2.0, -1.0, 0.0))
    e, a, alpha, k = minimise(model, lowest(model, np.array(list(starts)))).best
    return ParScale(float(np.exp(e)), float(np.exp(a)), float(alpha), float(np.exp(k)))
