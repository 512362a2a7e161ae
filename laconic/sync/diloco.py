"""DiLoCo: many local steps, then an outer step with momentum on the mean of what the workers moved."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from laconic.compress.base import count
from laconic.errors import ConfigError, unknown
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.sync.base import Sync, momentum_free, needs_equal
from laconic.sync.rounds import FragmentState, Outer, RoundsState, rounds, still
from laconic.sync.timetable import Timetable, timetable

FORMS = ("nesterov", "heavy-ball", "polyak")
Tensors = list[Tensor]


def diloco(
    exchange: Exchange | None = None,
    every: int = 500,
    lr: float = 0.7,
    momentum: float = 0.9,
    form: str = "nesterov",
    warmup_rounds: int = 0,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    eager: bool = False,
) -> Sync:
    """Take ``every`` inner steps alone, then move the shared weights by the mean of what all workers moved.

    The outer step, with d the mean of ``anchor - params`` and v the velocity: ``v <- momentum v + d``, then
    ``anchor <- anchor - lr (d + momentum v)`` (nesterov) or ``anchor - lr v`` (heavy-ball); polyak has lr inside,
    ``v <- momentum v - lr d; anchor <- anchor + v``. The first nesterov step moves ``lr (1 + momentum) d``, more than
    the mean: that is meant; ``warmup_rounds`` lets lr rise over so many rounds first. Inner optimizers keep their own
    state, and nobody else's.

    ``fragments`` of the model leave in turn, and each is applied ``overlap`` steps later, the worker keeping ``mixing``
    of its own weights. ``eager``, with ``overlap = every``: my own part of the change moves my anchor at once, and the
    others' when they have come; workers' anchors then differ by what the others moved in one round.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    with ``lr=1, momentum=0`` the workers' mean; and with ``every=1`` and plain SGD, data-parallel SGD.
    Raises: ConfigError for settings out of range; ClashError for an exchange whose workers differ (pairs).
    Source: Douillard et al. 2023, arXiv:2311.08105, algorithm 1; the forms: specs of DiLoCo, NoLoCo and torch;
            eager: arXiv:2502.12996.
    """
    plan = timetable("diloco", every, fragments, overlap, mixing, pattern, eager)
    return outward("diloco", exchange, plan, lr, momentum, form, warmup_rounds)


def outward(
    what: str,
    exchange: Exchange | None,
    plan: Timetable,
    lr: float,
    momentum: float,
    form: str = "nesterov",
    warmup_rounds: int = 0,
) -> Sync:
    """The sync named ``what`` that takes outer steps of :func:`diloco`'s by any timetable.

    Raises: as :func:`diloco`.
    """
    talk = exchange if exchange is not None else everyone()
    needs_equal(what, talk, "use noloco(), which is made for pairs")
    momentum_free(what, talk)
    count(what, warmup_rounds, "warmup_rounds", 0)
    step_outward = outer_step(what, lr, momentum, form)

    def step(fragment: FragmentState, heard: Tensors, state: RoundsState) -> FragmentState:
        share = min(1.0, (fragment.rounds + 1) / warmup_rounds) if warmup_rounds else 1.0
        anchor, velocity = step_outward(fragment.anchor, fragment.velocity, heard, share)
        return fragment._replace(anchor=anchor, velocity=velocity)

    return rounds(what, talk, Outer(step, lambda anchor: still(anchor, momentum)), plan)


class Step(Protocol):
    """``(anchor, velocity, moved, share of lr) -> (anchor, velocity)``."""

    def __call__(
        self, anchor: Tensors, velocity: Tensors, moved: Tensors, share: float = 1.0
    ) -> tuple[Tensors, Tensors]: ...


def outer_step(what: str, lr: float, momentum: float, form: str = "nesterov") -> Step:
    """The function of an outer step.

    Raises: ConfigError for settings out of range.
    """
    if form not in FORMS:
        raise unknown(f"{what} form", form, FORMS)
    outer_settings(what, lr, momentum)

    def step(anchor: Tensors, velocity: Tensors, moved: Tensors, share: float = 1.0) -> tuple[Tensors, Tensors]:
        rate = lr * share
        if not momentum:
            return [a.sub(d, alpha=rate) for a, d in zip(anchor, moved, strict=True)], []
        if form == "polyak":
            velocity = [(momentum * v).sub_(d, alpha=rate) for v, d in zip(velocity, moved, strict=True)]
            return [a + v for a, v in zip(anchor, velocity, strict=True)], velocity
        velocity = [(momentum * v).add_(d) for v, d in zip(velocity, moved, strict=True)]
        if form == "heavy-ball":
            return [a.sub(v, alpha=rate) for a, v in zip(anchor, velocity, strict=True)], velocity
        ahead = [a.sub(d, alpha=rate) for a, d in zip(anchor, moved, strict=True)]
        return [a.sub_(v, alpha=rate * momentum) for a, v in zip(ahead, velocity, strict=True)], velocity

    return step


def outer_settings(what: str, lr: float, momentum: float) -> None:
    """Check an outer step's two settings.

    Raises: ConfigError.
    """
    if not lr > 0:
        raise ConfigError(f"{what}: lr must be positive, got {lr}")
    if not 0 <= momentum < 1:
        raise ConfigError(f"{what}: momentum must be in [0, 1), got {momentum}")
