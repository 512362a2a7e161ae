"""Farseer's law: a loss whose dependence on tokens depends on the size of the model.

``L(N, D) = floor(N) + scale(N) D^-rate(N)``, each of the three an ``exp(slope N^power + offset)``. Differences in D
take away the floor, so that it is fitted last, alone.

Source: arXiv:2506.10972. ``N`` there leaves out embeddings, and the loss is in bits a character.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.huber import Floats
from laconic.plan.laws import FLOPS, Point, check

POWERS = np.linspace(-0.6, 0.6, 60)  # that are tried; none is 0, at which a curve is level
GOLDEN = (math.sqrt(5) - 1) / 2
NARROWER = 50  # times by which golden sections narrow a bracket
ROUNDS = 12  # of one power after the other, at most
UNEVEN = 0.02  # by which the ratio of token budgets may differ, as they are whole batches


@dataclass(frozen=True)
class Curve:
    """``exp(slope N^power + offset)``."""

    slope: float
    offset: float
    power: float

    def at(self, params: float | Floats) -> Floats:
        """Its value for so many parameters."""
        return np.exp(np.minimum(self.slope * np.asarray(params, dtype=float) ** self.power + self.offset, 700.0))


@dataclass(frozen=True)
class Farseer:
    """``L = floor(N) + scale(N) D^-rate(N)``."""

    floor: Curve
    scale: Curve
    rate: Curve

    def loss(self, params: float, tokens: float) -> float:
        """The loss that ``params`` parameters reach on ``tokens`` tokens."""
        return float(self.floor.at(params) + self.scale.at(params) * tokens ** -self.rate.at(params))

    def optimum(self, flops: float, least: float, most: float) -> tuple[float, float]:
        """The parameters from ``least`` to ``most``, and the tokens, of least loss for ``flops`` operations.

        The bounds are not a convenience: far outside of what it was fitted to the law is meaningless, since the rate
        falls to 0 and the loss with it.

        Law: ``6 N D == flops``.
        """

        def cost(log_params: float) -> float:
            params = math.exp(log_params)
            return self.loss(params, flops / FLOPS / params)

        grid = np.linspace(math.log(least), math.log(most), 200)
        params = math.exp(_lowest(cost, grid))
        return params, flops / FLOPS / params


PUBLISHED = Farseer(Curve(-0.021, -0.091, 0.169), Curve(88.01, -6.287, -0.1), Curve(-0.124, 0.424, 0.123))
"""As published, rounded: good from 2e8 to 6e9 parameters with 1 to 100 tokens each, and not beyond."""


class OfSize(NamedTuple):
    """What the first stage finds of one size: ``scale`` and ``rate`` of ``scale D^-rate``."""

    params: float
    scale: float
    rate: float


def falls(points: Sequence[Point]) -> tuple[Floats, float]:
    """By how much the loss falls from one token budget to the next: rows of parameters, tokens, fall; and the ratio.

    Raises: ConfigError unless the budgets of each size follow one another by one ratio.
    """
    check(points, least=9)
    losses: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        losses[point.params][point.tokens].append(point.loss)
    rows, ratios = [], []
    for params, of_size in sorted(losses.items()):
        means = [(tokens, float(np.mean(seeds))) for tokens, seeds in sorted(of_size.items())]
        for (tokens, loss), (more, later) in pairwise(means):
            rows.append((params, tokens, loss - later))
            ratios.append(more / tokens)
    if not ratios:
        raise ConfigError(
            "Farseer's fit needs several token budgets of each size, and every size here has one; train each for "
            "--tokens T, 1.41 T, 2 T, …, or fit Chinchilla's law"
        )
    ratio = float(np.median(ratios))
    if max(abs(one / ratio - 1) for one in ratios) > UNEVEN:
        raise ConfigError(
            f"Farseer's fit needs token budgets that grow by one ratio, got ratios from {min(ratios):.3g} to "
            f"{max(ratios):.3g}; train each size for --tokens T, 1.41 T, 2 T, …, or fit Chinchilla's law"
        )
    return np.array(rows), ratio


def first_stage(table: Floats, ratio: float) -> list[OfSize]:
    """Of each size its scale and rate, by a straight line through the logarithms of its falls.

    A loss that rises with tokens is noise and left out; so is a size with fewer than two falls.
    """
    found = []
    for params in np.unique(table[:, 0]):
        tokens, fall = table[(table[:, 0] == params) & (table[:, 2] > 0), 1:].T
        if len(tokens) < 2:
            continue
        slope, offset = _line(np.log(tokens), np.log(fall))
        if slope < 0:
            found.append(OfSize(float(params), math.exp(offset) / (1 - ratio**slope), -slope))
    if len(found) < 3:
        raise ConfigError(
            f"Farseer's fit needs 3 sizes whose loss falls more slowly with more tokens, and finds {len(found)}; "
            "train longer or with more seeds, or fit Chinchilla's law"
        )
    return found


def fit(points: Sequence[Point]) -> Farseer:
    """The law in three stages: falls of each size, how these change with size, and the floor that is left.

    Raises: ConfigError where token budgets do not follow by one ratio, or losses do not fall.
    Source: arXiv:2506.10972, section 3 (differential piecewise fitting).
    """
    table, ratio = falls(points)
    sizes = first_stage(table, ratio)
    params = np.array([size.params for size in sizes])
    logs = {"scale": np.log([size.scale for size in sizes]), "rate": np.log([size.rate for size in sizes])}
    powers = {name: _lowest(partial(_misfit, params, of), POWERS) for name, of in logs.items()}

    def error(name: str, power: float) -> float:
        curves = {one: _curve(params, logs[one], to) for one, to in (powers | {name: power}).items()}
        rate = curves["rate"].at(table[:, 0])
        with np.errstate(over="ignore", invalid="ignore"):
            wanted = curves["scale"].at(table[:, 0]) * (1 - ratio**-rate) * table[:, 1] ** -rate
            return float(np.nan_to_num(np.square(table[:, 2] - wanted).sum(), nan=np.inf))

    best = error("rate", powers["rate"])
    for _ in range(ROUNDS):  # the one with the other held
        before = best
        for name in ("rate", "scale"):
            power = _lowest(partial(error, name), POWERS)
            if error(name, power) < best:
                powers[name], best = power, error(name, power)
        if best > before * (1 - 1e-9):
            break
    scale, rate = (_curve(params, logs[name], powers[name]) for name in ("scale", "rate"))
    every = np.array(points, dtype=float)
    rest = every[:, 2] - scale.at(every[:, 0]) * every[:, 1] ** -rate.at(every[:, 0])
    all_sizes = np.unique(every[:, 0])
    floors = np.array([rest[every[:, 0] == size].mean() for size in all_sizes])
    if floors.min() <= 0:
        raise ConfigError("Farseer's fit leaves no loss above 0 for a floor; its runs are too few or too noisy for it, "
                          "so fit Chinchilla's law")  # fmt: skip
    power = _lowest(partial(_misfit, all_sizes, np.log(floors)), POWERS)
    return Farseer(_curve(all_sizes, np.log(floors), power), scale, rate)


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and offset of the straight line of least squares."""
    middle = x - x.mean()
    slope = float((middle * y).sum() / max(float((middle * middle).sum()), 1e-300))
    return slope, float(y.mean() - slope * x.mean())


def _curve(params: Floats, logs: Floats, power: float) -> Curve:
    return Curve(*_line(params**power, logs), power)


def _misfit(params: Floats, logs: Floats, power: float) -> float:
    return float(np.square(np.log(_curve(params, logs, power).at(params)) - logs).sum())


def _lowest(function: Callable[[float], float], grid: Floats) -> float:
    """Where the function is least: on the grid, then by golden sections between that place's neighbours."""
    best = int(np.argmin([function(float(x)) for x in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    for _ in range(NARROWER):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2
