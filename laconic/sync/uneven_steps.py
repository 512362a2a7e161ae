"""Uneven steps: each worker takes as many steps in a round as its speed allows, and all end it together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from laconic.errors import ClashError, ConfigError
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, master, named, positive
from laconic.sync.diloco import diloco
from laconic.sync.speed import Speed, begun, ended, measured, steps_together, told

FIRST = 4  # steps of the first round after which speeds are told for the first time


@checkpointed
class UnevenStepsState(NamedTuple):
    """``round`` counts rounds, ``step`` this worker's steps in this one, of ``steps``; ``mean`` is that of all workers.

    ``taken`` is the mean number of steps that workers took in the rounds that have ended. ``said``: the seconds of a
    step that this worker told last, 0 for none; the answers are under way in ``answer``, and told again after a
    restart. ``start``: the weights at the round's beginning.
    """

    round: int
    step: int
    steps: int
    mean: float
    taken: float
    speed: Speed
    said: float
    answer: Any
    start: list[Tensor]
    inner: Any


def uneven_steps(sync: Sync | None = None, every: int = 50, least: int = 1, most: int | None = None) -> Sync:
    """Let each worker take as many steps in a round as its measured speed allows, about ``every`` on average.

    What ``sync`` does in a step is done at the end of a round: give it a period of 1, ``uneven_steps(diloco(every=1),
    every=50)``. Before that, a worker's change since the round began is multiplied by ``mean steps / own steps``: it
    counts as if all had taken the mean number of steps, and the fast do not pull the result their way.

    Speeds are told after the first few steps, and then once a round, behind the steps of the next one; so the steps of
    a round follow what was measured in the last but one. ``least`` and ``most`` bound the steps of a round. Where both
    are ``every`` nothing is measured, and it is ``sync`` with that period.

    Workers take unequal numbers of steps: end a loop by ``sync.rounds``, which all count alike.

    Wire:   the sync's, once a round; one small message to every peer, hidden.
    Law:    with workers of equal speed it is the sync with that period, to the bit. For small learning rates a fixed
            point is where the mean gradient is zero, whatever the speeds.
    Raises: ConfigError for settings out of range; ClashError for a sync that exchanges gradients, or nothing at all,
            or has unequal steps already.
    Source: the normalisation: Wang et al. 2020, arXiv:2007.07481 (FedNova), section 4; dealing by speed is laconic's.
    """
    inside = sync if sync is not None else diloco(every=1)
    for setting, value in (("every", every), ("least", least), *([("most", most)] if most is not None else [])):
        positive("uneven_steps", setting, value)
    if not least <= every <= (every if most is None else most):
        raise ConfigError(f"uneven_steps: needs least <= every <= most, got least={least}, every={every}, most={most}")
    refuse(inside)
    act = inside.after_step
    assert act is not None, "refused above"
    fixed = least == most

    def init(params: Any) -> UnevenStepsState:
        start = [] if fixed else [master(p) for p in named(params).values()]
        inner = inside.init(params)
        return UnevenStepsState(0, 0, every, float(every), 0.0, Speed(), 0.0, None, start, inner)

    def after_step(params: Params, state: UnevenStepsState, link: Link) -> tuple[Updates, UnevenStepsState]:
        state = state._replace(step=state.step + 1)
        if not fixed:
            state = timed(state, link)
        if state.step < state.steps:
            return {}, state
        dealt = None if state.answer is None else steps_together(state.answer.result(), every, least, most)
        moved = as_if_even(params, state)
        updates, inner = act(moved, state.inner, link)
        if moved is not params:
            updates = dict(enumerate(moved)) | updates
        taken = state.taken + state.mean
        state = state._replace(round=state.round + 1, step=0, taken=taken, inner=inner)
        if fixed:
            return updates, state
        if dealt is not None:
            state = state._replace(steps=dealt[link.rank], mean=sum(dealt) / len(dealt))
        speed = measured(state.speed)
        answer = link.start(told, speed.seconds, link)  # the next round hides it
        start = [updates[i] if i in updates else master(p) for i, p in enumerate(params)]
        return updates, state._replace(speed=begun(speed, link.now()), said=speed.seconds, answer=answer, start=start)

    def timed(state: UnevenStepsState, link: Link) -> UnevenStepsState:
        """The state with this step's time in it; early in the first round, with that round dealt anew."""
        state = state._replace(speed=ended(state.speed, link.now()))
        if state.round and state.answer is None:  # a process that resumes: all tell again what they had told
            state = state._replace(answer=link.start(told, state.said, link))
        if state.round or state.step != min(FIRST, every):
            return state
        heard = link.start(told, measured(state.speed).seconds, link).result()
        # Nobody can take fewer than it has taken already, and everyone has to know.
        dealt = [max(steps, state.step) for steps in steps_together(heard, every, least, most)]
        speed = begun(state.speed, link.now())
        return state._replace(steps=dealt[link.rank], mean=sum(dealt) / len(dealt), speed=speed)

    def model(params: Params, state: UnevenStepsState) -> list[Tensor]:
        assert inside.model is not None, "only set where the sync has one"
        return inside.model(params, state.inner)

    def finish(params: Params, state: UnevenStepsState, link: Link) -> tuple[Updates, UnevenStepsState]:
        assert inside.finish is not None, "only set where the sync has one"
        updates, inner = inside.finish(params, state.inner, link)
        return updates, state._replace(inner=inner)

    def forget(state: UnevenStepsState) -> bool:
        assert inside.forget is not None, "only set where the sync has one"
        return state.step == 0 and state.round > 0 and inside.forget(state.inner)

    within, learning = _within(inside.decayed), inside.learning
    return inside._replace(
        init=init,
        after_step=after_step,
        model=None if inside.model is None else model,
        name=f"uneven_steps({inside.name}, every={every}, least={least}, most={most})",
        decayed=within,
        rate=None if inside.rate is None else lambda state: inside.rate(state.inner),  # type: ignore[misc]
        learning=None if learning is None else lambda state, rate: state._replace(inner=learning(state.inner, rate)),
        finish=None if inside.finish is None else finish,
        forget=None if inside.forget is None else forget,
        rounds=None if fixed else lambda state: state.round,
        taken=None if fixed else lambda state: state.taken + state.mean * state.step / state.steps,
    )


def _within(tell: Any) -> Any:
    return None if tell is None else lambda state: state._replace(inner=tell(state.inner))


def as_if_even(params: Params, state: UnevenStepsState) -> Sequence[Tensor]:
    """The weights as if this worker had taken the mean number of steps: its change times ``mean / own``."""
    scale = state.mean / state.steps
    if scale == 1.0:
        return params  # the bits as they are
    both = zip(state.start, params, strict=True)
    return [s.to(p.device).lerp(p.detach().to(s.dtype), scale) for s, p in both]


def refuse(sync: Sync) -> None:
    """Refuse a sync that cannot bear unequal numbers of steps.

    Raises: ClashError.
    """
    if sync.after_backward is not None:
        raise ClashError(
            f"uneven_steps: {sync.name} exchanges gradients, in steps that all workers take together; use "
            "uneven_batches(), or uneven_steps(diloco(every=1))"
        )
    if sync.after_step is None:
        raise ClashError(f"uneven_steps: {sync.name} exchanges nothing; give it diloco(every=1)")
    if sync.rounds is not None:
        raise ClashError(f"uneven_steps: {sync.name} chooses its workers' steps itself; use it alone")
