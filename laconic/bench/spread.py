"""What several seeds of one way say together: means, and the lowest and highest of them.

A range and not a standard deviation: that of three values is hardly known, and a range is what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Curve = tuple[list[float], list[float]]


class Band(NamedTuple):
    """Curves over one axis: their mean, lowest and highest at each place ``x``."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(curves: Sequence[Curve]) -> Band:
    """The mean, lowest and highest of curves of rising ``x``, straight between their points, where all of them are.

    Law: ``low <= mean <= high``; of one curve all three are that curve itself; a value that is not finite stays so.
    """
    curves = [curve for curve in curves if curve[0]]
    if not curves:
        return Band([], [], [], [])
    if len(curves) == 1:
        x, y = curves[0]
        return Band(list(x), list(y), list(y), list(y))
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if first > last:  # they have no place in common
        return Band([], [], [], [])
    places = np.unique(np.concatenate([np.asarray(x, dtype=np.float64) for x, _ in curves]))
    places = places[(places >= first) & (places <= last)]
    with np.errstate(invalid="ignore"):
        lines = np.stack([np.interp(places, x, y) for x, y in curves])
        mean, low, high = lines.mean(axis=0), lines.min(axis=0), lines.max(axis=0)
    # Rounding may take the mean of equal values a hair's breadth past them.
    mean = np.where(np.isfinite(mean), np.clip(mean, low, high), mean)
    return Band(places.tolist(), mean.tolist(), low.tolist(), high.tolist())


def mean(values: Sequence[Any]) -> Any:
    """The mean of what one key holds in several runs; of one run, or where all are the same, the value itself."""
    if all(value == values[0] for value in values[1:]):
        return values[0]
    if any(not _is_number(value) for value in values):
        return None
    return sum(values) / len(values)


def ranges(entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, list[float]]:
    """``[lowest, highest]`` of each key that all entries have a number for."""
    found = {}
    for key in keys:
        numbers = [float(entry[key]) for entry in entries if _is_number(entry.get(key))]
        if numbers and len(numbers) == len(entries) and all(map(math.isfinite, numbers)):
            found[key] = [min(numbers), max(numbers)]
    return found


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two ranges have a value in common."""
    return max(a[0], b[0]) <= min(a[1], b[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
