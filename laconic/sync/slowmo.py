"""SlowMo: local steps, their mean, and a slow momentum in units of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.errors import ClashError, ConfigError, unknown
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.sync.base import Sync, momentum_free, needs_equal
from laconic.sync.diloco import outer_settings
from laconic.sync.rounds import FragmentState, Outer, RoundsState, rounds
from laconic.sync.timetable import timetable

INNER = ("keep", "reset")
GRID = 1024.0  # norms are used to a part in so many: see :func:`coarse`
Gap = Callable[[float, float], float]


def slowmo(
    exchange: Exchange | None = None,
    every: int = 48,
    lr: float = 1.0,
    momentum: float = 0.5,
    floor: float = 0.01,
    inner: str = "keep",
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
) -> Sync:
    """Take ``every`` steps alone, average, and step with a momentum that follows the inner learning rate.

    With d the mean of ``anchor - params`` and gamma the inner learning rate at the end of the round:
    ``u <- momentum u + d / gamma``, ``anchor <- anchor - lr gamma u``. gamma is taken to be at least ``floor`` times
    the highest so far, so that a rate which starts or ends at 0 divides nothing by it. ``inner="reset"`` lets the inner
    optimizer start anew each round.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    at a constant learning rate heavy-ball :func:`diloco`; with ``lr=1, momentum=0`` :func:`local_steps`.
    Raises: ConfigError for settings out of range; ClashError for ``inner="reset"`` by fragments, as diloco else.
    Source: Wang et al. 2019, arXiv:1910.00643, algorithm 1.
    """
    talk = exchange if exchange is not None else everyone()
    plan = timetable("slowmo", every, fragments, overlap, mixing, pattern)
    needs_equal("slowmo", talk, "use noloco(), which is made for pairs")
    momentum_free("slowmo", talk)
    if inner not in INNER:
        raise unknown("slowmo inner", inner, INNER)
    if inner == "reset" and fragments > 1:
        raise ClashError(
            "slowmo: inner='reset' is for a whole model, and fragments end their rounds at different steps; use "
            "fragments=1 or inner='keep'"
        )
    sync = rounds("slowmo", talk, slow_step("slowmo", lr, momentum, floor), plan)
    if inner == "keep":
        return sync
    return sync._replace(
        name=f"{sync.name[:-1]}, inner=reset)",
        forget=lambda state: state.step > overlap and (state.step - overlap) % every == 0,
    )


def slow_step(
    what: str, lr: float, momentum: float, floor: float, gap: Gap | None = None, clip: float | None = None
) -> Outer:
    """The outer step of SlowMo; with ``gap``, a divisor for stale changes, and ``clip`` of the velocity, CO2's.

    Raises: ConfigError for settings out of range.
    """
    outer_settings(what, lr, momentum)
    if not 0 < floor <= 1:
        raise ConfigError(f"{what}: floor must be in (0, 1], got {floor}; it is a share of the highest learning rate")

    def step(fragment: FragmentState, heard: list[Tensor], state: RoundsState) -> FragmentState:
        rate = max(state.rate, floor * state.peak)
        if rate <= 0:  # nobody has moved yet
            return fragment
        stale = 1.0 if gap is None else divisor(what, gap, fragment.moved, coarse(heard))
        pairs = zip(fragment.velocity, heard, strict=True)
        velocity = [(momentum * u).add_(d, alpha=1 / (stale * rate)) for u, d in pairs]
        if clip is not None and (size := coarse(velocity, up=True)) > clip:
            velocity = [u.mul_(clip / size) for u in velocity]
        anchor = [a.sub(u, alpha=lr * rate) for a, u in zip(fragment.anchor, velocity, strict=True)]
        moved = lr * rate * coarse(velocity) if gap is not None else 0.0
        return fragment._replace(anchor=anchor, velocity=velocity, moved=moved)

    return Outer(step, lambda anchor: [a.new_zeros(a.shape) for a in anchor])


def divisor(what: str, gap: Gap, moved: float, arrived: float) -> float:
    """By how much a change is divided that was made ``moved`` away from here.

    Raises: ConfigError for a gap function that gives no number from 1 on.
    """
    value = gap(moved, arrived)
    if not 1 <= value < float("inf"):
        raise ConfigError(f"{what}: gap({moved:g}, {arrived:g}) is {value}; a divisor of stale changes is at least 1")
    return float(value)


def coarse(tensors: list[Tensor], up: bool = False) -> float:
    """The norm of all tensors together, to a part in 1024.

    Workers hold the same bits and may add them in another order, on other processors: the last digits of a norm differ,
    and the weights with them. Of a coarse one they do not, but for one chance in billions.
    """
    if not tensors:
        return 0.0
    norms = [torch.linalg.vector_norm(t, dtype=torch.float64).reshape(()) for t in tensors]
    size = float(torch.linalg.vector_norm(torch.stack([n.cpu() for n in norms])))
    if not math.isfinite(size):
        return size
    share, power = math.frexp(size)
    parts = share * 2 * GRID
    return math.ldexp((int(parts) + 1 if up else round(parts)) / (2 * GRID), power) if size else 0.0
