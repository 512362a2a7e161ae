"""Switch: train by one sync until a step, and by another from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import count
from laconic.errors import ClashError
from laconic.exchange.base import Exchange, Tensors
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, among, named
from laconic.sync.every_step import every_step
from laconic.sync.local_steps import local_steps

NEVER = -1
OWN_STEPS = ("rounds", "explore", "share", "taken", "record", "replay", "ended")  # a sync has these that takes its own


@checkpointed
class Phase(NamedTuple):
    """The state of the half that trains now; the other's is not there."""

    state: Any


@checkpointed
class SwitchState(NamedTuple):
    """``step`` counts inner steps, and after step ``at`` the second takes over (-1: not known yet)."""

    step: int
    at: int
    names: list[str]
    first: Phase | None
    then: Phase | None


def switch(first: Sync | None = None, then: Sync | None = None, at: int | None = None) -> Sync:
    """Train by ``first`` for ``at`` steps, and by ``then`` from there; by default until the learning rate has halved.

    The second starts from the weights as they are after step ``at``, which should be the same on every worker then.
    Only one of the two holds a state at a time.

    Law:    with ``at=0`` it is ``then``; in a run of at most ``at`` steps, ``first``.
    Raises: ConfigError unless ``at >= 0``; ClashError for two that cannot follow one another.
    """
    one = first if first is not None else every_step()
    two = then if then is not None else local_steps()
    if at is not None:
        count("switch", at, "at", 0)
    _fit(one, two)
    name = f"switch({one.name}, {two.name}, {'once the rate has halved' if at is None else f'at={at}'})"
    if at == 0:
        return two._replace(name=name)
    # Then each bucket has a state of its own, which sees the gradients and not the steps.
    by_bucket = one.by_bucket and one.after_step is None and two.after_backward is None

    def init(params: Mapping[str, Tensor] | Params) -> SwitchState:
        tensors = named(params)
        begun = None if by_bucket else Phase(one.init(tensors))
        return SwitchState(0, NEVER if at is None else at, list(tensors), begun, None)

    def now(state: SwitchState) -> Sync:
        return two if state.then is not None or 0 <= state.at <= state.step else one

    def after_backward(grads: Params, state: SwitchState, link: Link) -> tuple[list[Tensor] | None, SwitchState]:
        step = state.step + by_bucket
        run, begun = now(state).after_backward, held(state)
        if run is None:
            return list(grads), state._replace(step=step, first=None if by_bucket else state.first)
        if begun is None:  # a bucket's first step: to begin, it needs no more than the shapes
            begun = Phase(one.init(dict(zip(state.names, grads, strict=True))))
        given, inner = run(grads, begun.state, link)
        return given, put(state, inner)._replace(step=step)

    def after_step(params: Params, state: SwitchState, link: Link) -> tuple[Updates, SwitchState]:
        begun, run = held(state), now(state).after_step
        updates: Updates = {}
        if run is not None and begun is not None:
            updates, inner = run(params, begun.state, link)
            state = put(state, inner)
        state = state._replace(step=state.step + 1)
        if state.step != state.at or state.then is not None:
            return updates, state
        here = [updates.get(i, p.detach()) for i, p in enumerate(params)]
        last, state = finish(here, state, link, one)
        here = [last.get(i, p) for i, p in enumerate(here)]
        if one.model is not None and state.first is not None:  # what all share, and not what one has moved since
            here = one.model(here, state.first.state)
        then = Phase(two.init(dict(zip(state.names, here, strict=True))))
        return dict(enumerate(here)) if one.after_step else {}, state._replace(first=None, then=then)

    def finish(params: Params, state: SwitchState, link: Link, half: Sync | None = None) -> tuple[Updates, SwitchState]:
        run, begun = (half or now(state)).finish, held(state)
        if run is None or begun is None:
            return {}, state
        updates, inner = run(params, begun.state, link)
        return updates, put(state, inner)

    def model(params: Params, state: SwitchState) -> list[Tensor]:
        shared, begun = now(state).model, held(state)
        return list(params) if shared is None or begun is None else shared(params, begun.state)

    def decayed(state: SwitchState) -> SwitchState:
        begun, tell = held(state), now(state).decayed
        if state.at == NEVER:  # the step that is being taken is the last of the first half
            state = state._replace(at=state.step + 1)
        return state if tell is None or begun is None else put(state, tell(begun.state))

    def learning(state: SwitchState, rate: float) -> SwitchState:
        begun, tell = held(state), now(state).learning
        return state if tell is None or begun is None else put(state, tell(begun.state, rate))

    def rate(state: SwitchState) -> float:
        begun, ask = held(state), now(state).rate
        return 1.0 if ask is None or begun is None else ask(begun.state)

    def forget(state: SwitchState) -> bool:
        return two.forget is not None and state.then is not None and two.forget(state.then.state)

    return Sync(
        init,
        after_backward if one.after_backward or two.after_backward else None,
        after_step,
        model,
        by_bucket=by_bucket,
        momentum=one.momentum,
        equal=two.equal,
        name=name,
        decayed=decayed,
        clip=one.clip if one.clip is not None else two.clip,
        whole=one.whole or two.whole,
        exchange=_both(one.exchange, two.exchange),
        learning=learning,
        rate=rate if one.rate or two.rate else None,
        finish=finish if one.finish or two.finish else None,
        forget=forget if two.forget else None,
        among=lambda size: "; ".join(filter(None, (among(half, size) for half in (one, two)))),
        recalibrates=two.recalibrates,
    )


def held(state: SwitchState) -> Phase | None:
    """The half that trains now, with its state."""
    return state.then if state.then is not None else state.first


def put(state: SwitchState, inner: Any) -> SwitchState:
    """``state`` with ``inner`` in the half that trains now."""
    return state._replace(then=Phase(inner)) if state.then is not None else state._replace(first=Phase(inner))


def _fit(one: Sync, two: Sync) -> None:
    for half in (one, two):
        if any(getattr(half, own) is not None for own in OWN_STEPS):
            raise ClashError(f"switch: {half.name} does not take ordinary steps that all workers count alike")
    if not one.equal:
        raise ClashError(
            f"switch: {one.name} leaves workers with different weights, and what follows starts from weights that all "
            "share; put it second"
        )
    if one.momentum != two.momentum:
        which = one if one.momentum else two
        raise ClashError(
            f"switch: {which.name} carries momentum itself, so that the optimizer must have none, and in the other "
            "half nothing would; use two that do, or two that do not"
        )


def _both(one: Exchange | None, two: Exchange | None) -> Exchange | None:
    """Both halves' exchanges in turn, so that what cannot work is found before the first step."""
    if one is None or two is None:
        return one or two

    def run(tensors: Tensors, state: Any, link: Link) -> tuple[list[Tensor], Any]:
        for talk in (one, two):
            combined, _ = talk.run(tensors, talk.init(tensors), link)
        return combined, state

    return two._replace(init=lambda tensors: (), run=run, name=f"{one.name} and {two.name}")
