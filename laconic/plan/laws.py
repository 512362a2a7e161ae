"""Chinchilla's law: what loss so many parameters reach on so many tokens, and which of both a budget is best spent on.

``L(N, D) = E + A / N^alpha + B / D^beta``. It is fitted to the final losses of finished runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.huber import Floats, Model, log_of_sum, lowest, minimise

FLOPS = 6  # operations of training, a parameter and a token
LEAST = 6  # points for five unknowns
STEEPEST = 10.0  # exponent of a law; measured ones are about 0.3
HUGE = 350.0  # logarithm of what is told at most: two such numbers can be multiplied
TINY = 1e-300
SAMPLES = 200  # of a bootstrap
EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)
FLOORS = (-1.0, -0.5, 0.0, 0.5, 1.0)
AMPLITUDES = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)


class Point(NamedTuple):
    """The final loss of a run: parameters, tokens it was trained on, held-out loss."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Chinchilla:
    """``L = floor + a / N^alpha + b / D^beta``.

    Source: Hoffmann et al. 2022, arXiv:2203.15556, equation 2.
    """

    floor: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        """The loss that ``params`` parameters reach on ``tokens`` tokens."""
        return self.floor + self.a * _to(params, -self.alpha) + self.b * _to(tokens, -self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens of least loss that ``flops`` operations of training can pay for.

        Law:    ``6 N D == flops``, and along that budget the loss is flat: ``dL/dlnN == dL/dlnD``.
        Raises: ConfigError where the law has no such place, as its exponents or factors are not above 0.
        """
        if min(self.a, self.b, self.alpha, self.beta) <= 0:
            raise ConfigError(
                f"the law has no best size: alpha = {self.alpha:.3g}, beta = {self.beta:.3g}, both must be above 0; "
                "fit it to runs of more sizes and budgets"
            )
        total = self.alpha + self.beta
        log_g = (math.log(self.alpha / self.beta) + math.log(self.a) - math.log(self.b)) / total
        log_params = log_g + self.beta / total * math.log(flops / FLOPS)
        log_tokens = self.alpha / total * math.log(flops / FLOPS) - log_g
        if max(abs(log_params), abs(log_tokens)) > HUGE:
            raise ConfigError(
                f"the law's best size is no size: alpha = {self.alpha:.3g} and beta = {self.beta:.3g} are too small; "
                "fit it to runs of more sizes and budgets"
            )
        return math.exp(log_params), math.exp(log_tokens)


HOFFMANN = Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28)
"""As published with Chinchilla."""
BESIROGLU = Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""Fitted anew to the same runs (arXiv:2404.10102)."""


def fit(points: Sequence[Point]) -> Chinchilla:
    """The law of least Huber's loss of ``ln L``, the best that a grid of starts leads to.

    Raises: ConfigError for fewer than 6 points, fewer than 3 sizes or budgets, and what is no loss; if the losses
            follow no such law, so that an exponent runs away.
    Source: Hoffmann et al. 2022, arXiv:2203.15556, appendix D.3, whose grid of starts this is; it minimises by L-BFGS.
    """
    check(points)
    model, middle = _model(points)
    raw = np.array(list(product(AMPLITUDES, AMPLITUDES, FLOORS, EXPONENTS, EXPONENTS)))
    raw[:, :2] -= raw[:, 3:] * middle
    found = minimise(model, lowest(model, raw)).best
    for name, of, exponent in (("alpha", "sizes", found[3]), ("beta", "budgets", found[4])):
        if abs(exponent) > STEEPEST:
            raise ConfigError(
                f"the losses of these runs follow no law of this form: {name} comes out as {exponent:.3g}; train more "
                f"{of}, or each with several seeds"
            )
    return _law(found, middle)


def resampled(points: Sequence[Point], law: Chinchilla, samples: int = SAMPLES, seed: int = 0) -> list[Chinchilla]:
    """Laws of as many points drawn again with replacement, each fitted from ``law``: how sure it is.

    Points of one size, or of one budget, do not err independently; that runs are drawn one by one makes the spread a
    little too narrow.
    """
    check(points)
    model, middle = _model(points)
    drawn = np.random.default_rng(seed).multinomial(len(points), np.full(len(points), 1 / len(points)), samples)
    constants = (math.log(max(value, TINY)) for value in (law.a, law.b, law.floor))  # 0 where a term has vanished
    start = np.array([*constants, law.alpha, law.beta])
    start[:2] -= start[3:] * middle
    found = minimise(model, np.tile(start, (samples, 1)), drawn.astype(float))
    return [_law(one, middle) for one in found.unknowns]


def interval(values: Iterable[float], share: float = 0.9) -> tuple[float, float]:
    """Between which two the middle ``share`` of the values lies."""
    low, high = np.quantile(list(values), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def check(points: Sequence[Point], least: int = LEAST) -> None:
    """See that a surface can be fitted to the points.

    Raises: ConfigError that says what is missing.
    """
    for point in points:
        if not all(0 < value < math.inf for value in point):
            raise ConfigError(f"a point of {point.params:g} parameters, {point.tokens:g} tokens, loss {point.loss:g}: "
                              "each must be a finite number above 0")  # fmt: skip
    sizes, budgets = len({p.params for p in points}), len({p.tokens for p in points})
    if len(points) < least or sizes < 3 or budgets < 3:
        raise ConfigError(
            f"a law needs at least {least} runs of 3 sizes and 3 token budgets, got {len(points)} "
            f"of {sizes} and {budgets}; train more sizes, each for several --tokens"
        )


def _model(points: Sequence[Point]) -> tuple[Model, Floats]:
    """Residuals of ``(ln A', ln B', ln E, alpha, beta)``, the first two taken at the middle of the points."""
    table = np.log(np.array(points, dtype=float))
    middle = table[:, :2].mean(axis=0)
    x, y = (table[:, :2] - middle).T
    losses = table[:, 2]

    def model(at: Floats) -> tuple[Floats, Floats]:
        a, b, e, alpha, beta = (column[:, None] for column in at.T)
        terms = np.stack([a - alpha * x, b - beta * y, np.broadcast_to(e, (len(at), len(x)))])
        total, (of_a, of_b, of_e) = log_of_sum(terms)
        return total - losses, np.stack([of_a, of_b, of_e, -x * of_a, -y * of_b], axis=-1)

    return model, middle


def _law(at: Floats, middle: Floats) -> Chinchilla:
    """The law of these unknowns; a runaway exponent, of runs drawn again, is held to the steepest that is told."""
    exponents = np.clip(at[3:], -STEEPEST, STEEPEST)
    a, b = np.exp(np.minimum(at[:2] + exponents * middle, HUGE))
    alpha, beta = exponents
    return Chinchilla(float(np.exp(min(at[2], HUGE))), float(a), float(b), float(alpha), float(beta))


def _to(value: float, exponent: float) -> float:
    """The power, within what a number can hold."""
    return math.exp(max(-HUGE, min(HUGE, exponent * math.log(value))))
