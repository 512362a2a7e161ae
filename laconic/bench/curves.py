"""A run's losses as curves to draw: thinned, smoothed, and those of several seeds as one mean with a band."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from laconic.bench.runs import Columns, Run
from laconic.bench.spread import Band, Curve, band

POINTS = 2000  # a curve: more than a screen has columns


def held_out(run: Run, column: str) -> Band:
    """The held-out losses over a column of the metrics; of several seeds their mean, lowest and highest."""
    return _thin(band([pair(one.evals, column, "eval_loss") for one in run.every]))


def training(run: Run, column: str) -> Band:
    """The training losses of worker 0, smoothed."""
    curves = []
    for one in run.every:
        x, y = pair(one.steps.get(0, {}), column, "loss")
        curves.append(thinned(x, smoothed(y)))
    return _thin(band(curves))


def pair(columns: Columns, x: str, y: str) -> Curve:
    """Two columns, where the first has a finite value."""
    xs, ys = columns.get(x, []), columns.get(y, [])
    at = [i for i in range(min(len(xs), len(ys))) if math.isfinite(xs[i])]
    return [xs[i] for i in at], [ys[i] for i in at]


def thinned(x: Sequence[float], y: Sequence[float], points: int = POINTS) -> Curve:
    """A curve in at most ``points`` points that keeps its ends and its extremes.

    Law: the smallest and the largest finite ``y`` of each stretch stay, and so does a first value there that is not
    finite: a spike, a dip or a NaN in 100,000 steps is still seen.
    """
    n = len(y)
    if n <= points:
        return list(x), list(y)
    values = np.asarray(y, dtype=np.float64)
    finite = np.isfinite(values)
    kept = {0, n - 1}
    for stretch in np.array_split(np.arange(n), max(1, (points - 2) // 3)):
        good = stretch[finite[stretch]]
        if good.size:
            kept |= {int(good[values[good].argmin()]), int(good[values[good].argmax()])}
        if good.size < stretch.size:
            kept.add(int(stretch[~finite[stretch]][0]))
    places = sorted(kept)
    return [x[i] for i in places], [y[i] for i in places]


def smoothed(y: Sequence[float]) -> list[float]:
    """The running mean over about the last fiftieth of the curve, weighted towards the newest; NaN where ``y`` is."""
    keep = 1 - 2 / (max(5.0, len(y) / 50) + 1)
    total = weight = 0.0
    means = []
    for value in y:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight if math.isfinite(value) else value)
    return means


def _thin(whole: Band) -> Band:
    places = [int(i) for i in thinned(range(len(whole.x)), whole.mean)[0]]
    return Band(*([column[i] for i in places] for column in whole))
