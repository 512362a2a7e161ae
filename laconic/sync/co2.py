"""CO2: the mean of one round travels while the next one is computed, and is applied when that ends."""

from __future__ import annotations

import math

from laconic.errors import ConfigError, unknown
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.sync.base import Sync, momentum_free, needs_equal
from laconic.sync.diloco import outer_settings
from laconic.sync.rounds import rounds
from laconic.sync.slowmo import Gap, slow_step
from laconic.sync.timetable import timetable


def co2(
    exchange: Exchange | None = None,
    every: int = 48,
    lr: float = 1.0,
    momentum: float = 0.2,
    gap: str | float | Gap = "aware",
    clip: float | None = None,
    contraction: float = 1.0,
    floor: float = 0.01,
    overlap: int | None = None,
    mixing: float | None = None,
    fragments: int = 1,
    pattern: str = "strided",
) -> Sync:
    """Take ``every`` steps alone while the change of the round before is averaged; then apply that one.

    With x the weights that a round starts from, d the mean of ``x - params`` at the end of the round *before*, gamma
    the inner learning rate and Lambda the staleness gap: ``m <- momentum m + d / (Lambda gamma)``, clipped to a norm of
    ``clip``; ``x <- x - lr gamma m``; the next round starts from x. The first round has no answer, so the second starts
    where it did; the last one's is applied when training ends.

    ``gap``: ``aware`` is ``1 + |last outer step| / |d|``, 1 where nothing has moved since d was computed; a number; or
    a function of those two norms. ``overlap``: every by default; fewer steps bring the answer sooner, so that it is not
    stale (no gap), and with 0 nothing is hidden.

    Wire:   the exchange's, once every ``every`` steps, hidden while it takes less time than these.
    Law:    with ``overlap=0`` it is :func:`slowmo`. The velocity's norm is at most ``clip``.
    Raises: ConfigError outside the region in which a quadratic converges, ``lr contraction < (1 - momentum) Lambda``,
            where a round removes ``contraction`` of the error at most; ClashError as slowmo.
    Source: Sun et al. 2024, arXiv:2401.16265, algorithm 1; the gap and the region: ``docs/methods/co2.md``.
    """
    talk = exchange if exchange is not None else everyone()
    plan = timetable("co2", every, fragments, every if overlap is None else overlap, mixing, pattern)
    needs_equal("co2", talk, "use noloco(), which is made for pairs")
    momentum_free("co2", talk)
    if clip is not None and not clip > 0:
        raise ConfigError(f"co2: clip must be positive, got {clip}; leave it out for none")
    if clip is not None and fragments > 1:
        raise ConfigError(
            "co2: clip bounds the norm of the whole velocity, and fragments take their outer steps at different times; "
            "use fragments=1, or no clip"
        )
    if not 0 < contraction <= 1:
        raise ConfigError(f"co2: contraction must be in (0, 1], got {contraction}; it is a share of the error")
    outer_settings("co2", lr, momentum)
    least, measure = _gap(gap, momentum)
    outer = slow_step("co2", lr, momentum, floor, measure if plan.late else None, clip)
    _stable(lr, momentum, contraction, least if plan.late else None)
    return rounds("co2", talk, outer, plan)._replace(
        whole=clip is not None or (plan.late and (gap == "aware" or callable(gap)))
    )


def aware(moved: float, arrived: float) -> float:
    """1 where nothing has moved since the change was computed; 2 where as much as the change itself."""
    return 1 + moved / arrived if arrived else 1.0


def relief(momentum: float) -> float:
    """What the measured gap is worth in the stable region, at least; derived and measured in docs/methods/co2.md."""
    return 1 + math.sqrt(1 - momentum) / 2


def _gap(gap: str | float | Gap, momentum: float) -> tuple[float, Gap]:
    """What a gap is worth at least in the stable region, and the function."""
    if isinstance(gap, str):
        if gap != "aware":
            raise unknown("co2 gap", gap, ["aware", "a number from 1 on"])
        return relief(momentum), aware
    if callable(gap):
        return 1.0, gap
    if isinstance(gap, bool) or not 1 <= gap < float("inf"):
        raise ConfigError(f"co2: gap must be 'aware', a function, or a number from 1 on, got {gap}; 1 is no penalty")
    constant = float(gap)
    return constant, lambda moved, arrived: constant


def _stable(lr: float, momentum: float, contraction: float, gap: float | None) -> None:
    bound = 2 * (1 + momentum) if gap is None else (1 - momentum) * gap
    if lr * contraction < bound:
        return
    where = f"co2: lr={lr:g} is outside the stable region"
    if gap is None:
        raise ConfigError(
            f"{where}: without a round's delay lr x contraction must be under 2 (1 + momentum) = {bound:g}, and "
            f"contraction is {contraction:g}"
        )
    raise ConfigError(
        f"{where}: for answers a round late lr x contraction must be under (1 - momentum) x {gap:.3g} = {bound:.3g}, "
        f"and contraction is {contraction:g}; use lr under {bound / contraction:.3g}, a smaller momentum, a constant "
        f"gap over {lr * contraction / (1 - momentum):.3g}, or state a contraction under {bound / lr:.3g} if a round "
        "removes no more of the error"
    )
