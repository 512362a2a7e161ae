"""Uneven batches: every step together, each worker on a share of the batch that fits its speed."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, named, needs_equal, passed_on, positive
from laconic.sync.speed import Speed, begun, ended, measured, parts_together, told

FIRST = 4  # steps after which speeds are told for the first time


@checkpointed
class UnevenBatchesState(NamedTuple):
    """``step`` counts steps; ``own`` are this worker's parts of the batch, ``parts`` on average."""

    step: int
    own: int
    speed: Speed
    exchange: Any


def uneven_batches(exchange: Exchange | None = None, parts: int = 16, every: int = 16) -> Sync:
    """Combine gradients each step, each worker's of a share of the batch in proportion to its measured speed.

    An ordinary batch is dealt in ``parts``; a worker takes as many as its speed allows, at least one, and all together
    take as many as ever. ``sync.share`` says how much of an ordinary batch the next one is to be: 0.25, or 1.75. A
    gradient counts by that share, so the result is the mean over samples. Speeds are told after the first few steps and
    then once in ``every``. Nothing leaves before backward ends.

    Wire:   the exchange's, each step; one small message to every peer, once in ``every`` steps.
    Law:    it is :func:`every_step` on the batches of all workers put together, however they are dealt. With workers of
            equal speed, or with ``parts`` 1, it is :func:`every_step` to the bit.
    Raises: ConfigError for settings out of range; ClashError for an exchange that leaves workers with different
            gradients.
    Source: the mean over samples: the usual rule of weighted averages; dealing by speed is laconic's.
    """
    talk = exchange if exchange is not None else everyone()
    needs_equal("uneven_batches", talk, "use everyone(...)")
    positive("uneven_batches", "parts", parts)
    positive("uneven_batches", "every", every)

    def init(params: Any) -> UnevenBatchesState:
        return UnevenBatchesState(0, parts, Speed(), talk.init(list(named(params).values())))

    def after_backward(grads: Params, state: UnevenBatchesState, link: Link) -> tuple[list[Tensor], UnevenBatchesState]:
        speed = ended(state.speed, link.now(), state.own / parts) if parts > 1 else state.speed
        # Shares add up to the number of workers, so a plain mean of these is the mean over samples.
        mine = grads if state.own == parts else [g * (state.own / parts) for g in grads]
        combined, exchanged = talk.run(mine, state.exchange, link)
        state = state._replace(step=state.step + 1, speed=speed, exchange=exchanged)
        return combined, dealt(state, link) if parts > 1 else state

    def dealt(state: UnevenBatchesState, link: Link) -> UnevenBatchesState:
        """The state in which the next step begins, its batch dealt anew if it is time."""
        if state.step % every == 0 or state.step == FIRST:
            state = state._replace(speed=measured(state.speed))
            own = parts_together(told(state.speed.seconds, link), parts)[link.rank]
            state = state._replace(own=own)
        return state._replace(speed=begun(state.speed, link.now()))

    return Sync(
        init,
        after_backward,
        momentum=talk.momentum,
        name=f"uneven_batches({talk.name}, parts={parts})",
        decayed=passed_on(talk),
        exchange=talk,
        share=lambda state: state.own / parts,
    )
