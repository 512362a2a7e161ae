"""Accordion on the batch size: small batches while the gradient changes, large ones while it does not."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import finite, still
from laconic.exchange.accordion import add_raw, check_window, critical, norms
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, decay_free, named, needs_equal, positive


@checkpointed
class AccordionBatchState(NamedTuple):
    """``round`` counts backward passes, ``held`` those whose gradients are in the sum ``pending``; ``sent``: how many
    the last exchange was the mean of.

    ``light`` is the level, and ``total`` and ``last`` what it is decided by, as in :func:`accordion`.
    """

    round: int
    held: int
    sent: int
    light: bool
    last: float
    pending: list[Tensor]
    total: list[Tensor]
    exchange: Any


def accordion_batch(
    exchange: Exchange | None = None,
    light: int = 1,
    heavy: int = 8,
    every: int = 100,
    eta: float = 0.5,
    scale_lr: bool = False,
) -> Sync:
    """Exchange and step once in ``light`` backward passes in critical phases, else once in ``heavy``.

    The gradients in between are summed here, and their mean is what is exchanged: a batch of so many. The phase is
    found as in :func:`accordion`, by the norm of the whole model's gradient summed over ``every`` backward passes: of
    the same number of samples, whatever the level. With ``scale_lr`` a step's learning rate is multiplied by the number
    of passes it is the mean of; a schedule of the learning rate does not see that. Nothing leaves before backward ends.

    Wire:   the exchange's, once in ``light`` or ``heavy`` passes; 8 bytes a parameter tensor in ``every`` passes.
    Law:    with ``light`` and ``heavy`` 1 it is :func:`every_step`. A pass in which nothing is sent moves no weight.
    Raises: ConfigError for settings out of range; ClashError for an exchange that leaves workers with different
            gradients, or that changes its level by itself; NotANumber if a gradient holds NaN or infinity.
    Source: Agarwal et al. 2020, arXiv:2010.16248, section 4 (batch size); Goyal et al. 2017, arXiv:1706.02677 (the
            linear rule).
    """
    talk = exchange if exchange is not None else everyone()
    needs_equal("accordion_batch", talk, "use everyone(...)")
    decay_free("accordion_batch", talk)
    positive("accordion_batch", "light", light)
    positive("accordion_batch", "heavy", heavy)
    check_window("accordion_batch", every, eta)

    def init(params: Any) -> AccordionBatchState:
        tensors = list(named(params).values())
        empty = [still(t) for t in tensors]
        return AccordionBatchState(0, 0, 1, True, 0.0, empty, empty, talk.init(tensors))

    def after_backward(
        grads: Params, state: AccordionBatchState, link: Link
    ) -> tuple[list[Tensor] | None, AccordionBatchState]:
        pending = [add_raw("accordion_batch", s, g) for s, g in zip(state.pending, grads, strict=True)]
        held = state.held + 1
        combined = None
        if held >= (light if state.light else heavy):
            mean = [(s / held).to(g.dtype) for s, g in zip(pending, grads, strict=True)]
            for tensor in mean:
                finite("accordion_batch", tensor)
            combined, exchanged = talk.run(mean, state.exchange, link)
            state = state._replace(exchange=exchanged, sent=held)
            held, pending = 0, [still(g) for g in grads]
        total = [s + g for s, g in zip(state.total, grads, strict=True)]
        state = state._replace(round=state.round + 1, held=held, pending=pending, total=total)
        if state.round % every == 0 and total:
            layers = norms(total, link)
            if layers is not None:
                now = sum(n * n for n in layers) ** 0.5
                state = state._replace(light=critical(now, state.last, eta), last=now)
            state = state._replace(total=[still(g) for g in grads])
        return combined, state

    return Sync(
        init,
        after_backward,
        momentum=talk.momentum,
        name=f"accordion_batch({talk.name}, {light}, {heavy}, every={every})",
        decayed=lambda state: state._replace(light=True),
        rate=(lambda state: float(state.sent)) if scale_lr else None,
        whole=True,
        exchange=talk,
    )
