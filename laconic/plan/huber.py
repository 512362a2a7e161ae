"""Fitting by Huber's loss, from many starts at once.

Near its lowest point a sum of Huber's losses with a small ``delta`` is all but a sum of absolute values, on which a
line search crawls. Reweighted squares do not: each round solves a damped least squares in which a residual beyond
``delta`` counts ``delta / |residual|``, and keeps the step only if the sum itself has fallen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Model = Callable[[Floats], tuple[Floats, Floats]]
"""``(starts, unknowns)`` to the residuals ``(starts, points)`` and their slopes ``(starts, points, unknowns)``."""

DELTA = 1e-3
ROUNDS = 400
PATIENCE = 12  # rounds without a start that got any better
BETTER = 1e-12  # by this share
BATCH = 200  # starts that are followed: those of least error


class Found(NamedTuple):
    """The unknowns of each start, and the sum of the losses there."""

    unknowns: Floats
    errors: Floats

    @property
    def best(self) -> Floats:
        """The unknowns of the least sum."""
        best: Floats = self.unknowns[int(np.argmin(self.errors))]
        return best


def minimise(model: Model, starts: Floats, weights: Floats | None = None, delta: float = DELTA) -> Found:
    """Follow each start down to where the weighted sum of Huber's losses of its residuals is least nearby.

    ``weights`` are ``(starts, points)`` or ``(points,)``: how often each point counts. The sum and not the mean: with a
    mean the usual tolerances stop an optimiser early.

    Law:    no start ends higher than it began.
    Source: Huber 1964; Besiroglu et al. 2024, arXiv:2404.10102, on the mean that stopped the original fit early.
    """
    at = np.array(starts, dtype=float)
    residuals, slopes = model(at)
    counted = np.broadcast_to(np.ones(1) if weights is None else weights, residuals.shape)
    errors = _sum(residuals, counted, delta)
    damping, waited = np.full(len(at), 1e-2), 0
    for _ in range(ROUNDS):
        weighted = slopes * (counted * np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300)))[..., None]
        normal = weighted.transpose(0, 2, 1) @ slopes
        diagonal = np.einsum("skk->sk", normal)
        diagonal += damping[:, None] * diagonal + 1e-14 * (1 + diagonal.max(axis=1, keepdims=True))
        step = np.linalg.solve(normal, weighted.transpose(0, 2, 1) @ residuals[..., None])[..., 0]
        tried, tried_slopes = model(at - step)
        sums = _sum(tried, counted, delta)
        better = sums < errors  # false for what is no number
        gained = bool((better & (errors - sums > BETTER * np.maximum(errors, BETTER * delta))).any())
        at = np.where(better[:, None], at - step, at)
        residuals = np.where(better[:, None], tried, residuals)
        slopes = np.where(better[:, None, None], tried_slopes, slopes)
        errors = np.where(better, sums, errors)
        damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-12, 1e12)
        waited = 0 if gained else waited + 1
        if waited == PATIENCE:
            break
    return Found(at, errors)


def lowest(model: Model, starts: Floats, number: int = BATCH, delta: float = DELTA) -> Floats:
    """Those ``number`` starts whose sums are least."""
    residuals, _ = model(starts)
    sums = np.nan_to_num(_sum(residuals, np.ones_like(residuals), delta), nan=np.inf)
    return starts[np.argsort(sums, kind="stable")[:number]]


def _sum(residuals: Floats, weights: Floats, delta: float) -> Floats:
    far = np.abs(residuals)
    losses = np.where(far <= delta, 0.5 * far * far, delta * (far - 0.5 * delta))
    total: Floats = (weights * losses).sum(axis=1)
    return total


def log_of_sum(terms: Floats) -> tuple[Floats, Floats]:
    """``ln sum exp`` over the first axis, and each term's share of the sum."""
    most = terms.max(axis=0)
    shares = np.exp(terms - most)
    total = shares.sum(axis=0)
    return most + np.log(total), shares / total
