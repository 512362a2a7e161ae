"""What rate a flow had, from the moments at which its bytes came. Pure.

The first bytes tell little: a shaper lets a burst through at once, and TCP starts slowly. So two straight lines are
laid through the curve, and the second is the rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

POINTS = 96  # of a curve that is passed on
LAST = 0.4  # of the bytes, at least, lie on the second line
BETTER = 0.5  # of one line's squared errors may two lines leave, or one is enough
BEND = 0.05  # and their slopes differ by this share

Curve = Sequence[tuple[float, float]]  # seconds, and bytes that had come by then; both grow


class Rate(NamedTuple):
    """Bytes a second of a flow once it was steady, and the bytes that came at once before (0: none seen)."""

    bandwidth: float
    burst: float


def thinned(curve: Curve, points: int = POINTS) -> list[tuple[float, float]]:
    """At most so many points of a curve, its first and last among them, evenly by number."""
    if len(curve) <= points:
        return list(curve)
    places = np.linspace(0, len(curve) - 1, points).round().astype(int)
    return [curve[i] for i in places]


def steady(curve: Curve) -> Rate | None:
    """The rate of a flow past its burst or its slow start; None for fewer than two moments.

    Time is fitted as a function of bytes, ``t = a + b c + d max(0, c - knee)``, by least squares, for each point of the
    curve as the knee; so a pause counts in full.

    Law:    of a token bucket of ``B`` bytes and rate ``r`` fed at a rate above, it gives ``r`` and ``B``.
    """
    seconds, nbytes = np.array([t for t, _ in curve], float), np.array([c for _, c in curve], float)
    if len(seconds) < 2 or seconds[-1] <= seconds[0]:
        return None
    seconds = seconds - seconds[0]
    one, left = _fit(np.stack([np.ones_like(nbytes), nbytes], 1), seconds)
    best = (left, one[1], one[1], nbytes[0])
    for knee in _knees(nbytes):
        columns = np.stack([np.ones_like(nbytes), nbytes, np.maximum(0, nbytes - knee)], 1)
        (_, before, bend), errors = _fit(columns, seconds)
        if errors < best[0]:
            best = (errors, before, before + bend, knee)
    errors, before, after, knee = best
    noise = 1e-18 * float(np.square(seconds).sum())
    if after <= 0 or errors > BETTER * left or left <= noise or abs(after - before) <= BEND * abs(after):
        return Rate(float(1 / one[1]), 0.0) if one[1] > 0 else None
    return Rate(float(1 / after), float(knee * (1 - max(0.0, before) / after)) if after > before else 0.0)


def _knees(nbytes: np.ndarray) -> np.ndarray:
    """Where the second line may begin: three points to its left and right, and bytes enough on it."""
    last = nbytes[-1] - LAST * (nbytes[-1] - nbytes[0])
    inner = nbytes[2:-3]
    return inner[inner <= last]


def _fit(columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    scale = np.abs(columns).max(axis=0)
    scale[scale == 0] = 1.0
    found, *_ = np.linalg.lstsq(columns / scale, values, rcond=None)
    errors = values - (columns / scale) @ found
    return found / scale, float(errors @ errors)


def total(curves: Sequence[Curve]) -> float | None:
    """Bytes a second of several flows together until the first of them ended, all on one clock.

    Their curves are added, and the bytes of the last two thirds of the time count. No knee is looked for: several
    flows stand still for lost segments and then have all at once, and a knee finds its place there too easily.
    """
    if not curves or min(len(curve) for curve in curves) < 2:
        return None
    end = min(curve[-1][0] for curve in curves)
    begin = min(curve[0][0] for curve in curves)
    moments = [begin + (end - begin) / 3, end]
    if end <= begin:
        return None
    nbytes = np.zeros(2)
    for curve in curves:
        nbytes += np.interp(moments, [t for t, _ in curve], [c for _, c in curve], left=0.0)
    return float((nbytes[1] - nbytes[0]) / (moments[1] - moments[0]))
