"""DiLoCo: many local steps, then an outer step with momentum on the mean of what the workers moved."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.errors import ConfigError, unknown
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import (
    Params,
    Sync,
    Updates,
    drift,
    master,
    momentum_free,
    named,
    needs_equal,
    passed_on,
    positive,
)

FORMS = ("nesterov", "heavy-ball", "polyak")


@checkpointed
class DilocoState(NamedTuple):
    """``step`` counts inner steps; ``anchor`` (phi) and ``velocity`` (v) are the same on every worker."""

    step: int
    anchor: list[Tensor]
    velocity: list[Tensor]
    exchange: Any


def diloco(
    exchange: Exchange | None = None, every: int = 500, lr: float = 0.7, momentum: float = 0.9, form: str = "nesterov"
) -> Sync:
    """Take ``every`` inner steps alone, then move the shared weights by the mean of what all workers moved.

    The outer step, with d the mean of ``anchor - params`` and v the velocity: ``v <- momentum v + d``, then
    ``anchor <- anchor - lr (d + momentum v)`` (nesterov) or ``anchor - lr v`` (heavy-ball); polyak has lr inside,
    ``v <- momentum v - lr d; anchor <- anchor + v``. The first nesterov step moves ``lr (1 + momentum) d``, more than
    the mean: that is meant. Inner optimizers keep their own state, and nobody else's.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    with ``lr=1, momentum=0`` the workers' mean; and with ``every=1`` and plain SGD, data-parallel SGD.
    Raises: ConfigError for settings out of range; ClashError for an exchange whose workers differ (pairs).
    Source: Douillard et al. 2023, arXiv:2311.08105, algorithm 1; the forms: specs of DiLoCo, NoLoCo and torch.
    """
    talk = exchange if exchange is not None else everyone()
    positive("diloco", "every", every)
    needs_equal("diloco", talk, "use noloco(), which is made for pairs")
    momentum_free("diloco", talk)
    step_outward = outer_step("diloco", lr, momentum, form)

    def init(params: Any) -> DilocoState:
        anchor = [master(p) for p in named(params).values()]
        return DilocoState(0, anchor, still(anchor, momentum), talk.init(anchor))

    def after_step(params: Params, state: DilocoState, link: Link) -> tuple[Updates, DilocoState]:
        step = state.step + 1
        if step % every:
            return {}, state._replace(step=step)
        moved, exchanged = link.start(talk.run, drift(state.anchor, params), state.exchange, link).result()
        anchor, velocity = step_outward(state.anchor, state.velocity, moved)
        return dict(enumerate(anchor)), DilocoState(step, anchor, velocity, exchanged)

    def model(params: Params, state: DilocoState) -> list[Tensor]:
        return state.anchor

    name = f"diloco({talk.name}, every={every})"
    return Sync(init, None, after_step, model, name=name, decayed=passed_on(talk), exchange=talk)


def still(anchor: list[Tensor], momentum: float) -> list[Tensor]:
    """A velocity of zero; no tensors at all where there is no momentum."""
    return [a.new_zeros(a.shape) for a in anchor] if momentum else []


def outer_step(what: str, lr: float, momentum: float, form: str = "nesterov") -> Any:
    """The function ``(anchor, velocity, moved) -> (anchor, velocity)`` of an outer step.

    Raises: ConfigError for settings out of range.
    """
    if form not in FORMS:
        raise unknown(f"{what} form", form, FORMS)
    if not lr > 0:
        raise ConfigError(f"{what}: lr must be positive, got {lr}")
    if not 0 <= momentum < 1:
        raise ConfigError(f"{what}: momentum must be in [0, 1), got {momentum}")

    def step(anchor: list[Tensor], velocity: list[Tensor], moved: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if not momentum:
            return [a.sub(d, alpha=lr) for a, d in zip(anchor, moved, strict=True)], []
        if form == "polyak":
            velocity = [(momentum * v).sub_(d, alpha=lr) for v, d in zip(velocity, moved, strict=True)]
            return [a + v for a, v in zip(anchor, velocity, strict=True)], velocity
        velocity = [(momentum * v).add_(d) for v, d in zip(velocity, moved, strict=True)]
        if form == "heavy-ball":
            return [a.sub(v, alpha=lr) for a, v in zip(anchor, velocity, strict=True)], velocity
        ahead = [a.sub(d, alpha=lr) for a, d in zip(anchor, moved, strict=True)]
        return [a.sub_(v, alpha=lr * momentum) for a, v in zip(ahead, velocity, strict=True)], velocity

    return step
