"""Accordion: much while the gradient changes, little while it does not, decided for each tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import finite, still
from laconic.compress.error_feedback import error_feedback
from laconic.compress.topk import topk
from laconic.errors import ClashError, ConfigError, LaconicError
from laconic.exchange.base import Exchange, Tensors, put, take
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.state import checkpointed, freeze

PROBES = ((48, 64), (5,))


@checkpointed
class AccordionState(NamedTuple):
    """``round`` counts rounds; ``light``: the level of each tensor; ``inner``: the one state of both exchanges.

    ``total`` is the sum of this worker's own gradients in this window, in at least float32; ``last`` is the norm of
    the last window's sum over all workers, 0 before there was one.
    """

    round: int
    light: list[bool]
    last: list[float]
    total: list[Tensor]
    inner: Any


def accordion(
    light: Exchange | None = None, heavy: Exchange | None = None, every: int = 100, eta: float = 0.5
) -> Exchange:
    """Exchange a tensor by ``light`` (much is sent) in critical phases, else by ``heavy`` (little is sent).

    Over each window of ``every`` rounds the raw gradients of a tensor are summed on each worker; n is the root of the
    sum over the workers of the squared norms of these sums. At a window's end the tensor goes light if
    ``|n_last - n| / n_last >= eta`` or if n_last is 0, else heavy. All are light at first, for two windows, and after
    a decay of the learning rate, until the window ends. The norm is of the sum, which cancels noise, and of gradients
    as they came, so that what the error memory adds cannot move the level to and fro.

    The two exchanges are of one kind and share one state: a change of level keeps the error memory.

    Wire:   that of each tensor's level, in one exchange for each level that is in use; at the end of each window one
            all-reduce of 8 bytes a tensor. On ``meta`` tensors all stay light.
    Law:    ``eta=0`` is ``light``; with ``light`` and ``heavy`` the same it is that one.
    Raises: ConfigError unless ``every >= 1`` and ``eta >= 0``; ClashError for two exchanges that cannot share a state,
            or that leave workers with different results; NotANumber if a gradient holds NaN or infinity.
    Source: Agarwal et al. 2020, arXiv:2010.16248 (Accordion), algorithm 1; there rank 0 decides alone.
    """
    much = light if light is not None else everyone(error_feedback(topk(0.1)))
    little = heavy if heavy is not None else everyone(error_feedback(topk(0.01)))
    check_window("accordion", every, eta)
    one_state("accordion", much, little)

    def init(tensors: Tensors) -> AccordionState:
        return AccordionState(
            0, [True] * len(tensors), [0.0] * len(tensors), [still(t) for t in tensors], much.init(tensors)
        )

    def run(tensors: Tensors, state: AccordionState, link: Link) -> tuple[list[Tensor], AccordionState]:
        with link.meter.compressing():
            total = [add_raw("accordion", s, t) for s, t in zip(state.total, tensors, strict=True)]
        combined: dict[int, Tensor] = {}
        inner = state.inner
        for talk, level in ((much, True), (little, False)):
            places = [i for i, is_light in enumerate(state.light) if is_light == level]
            if places:
                results, part = talk.run([tensors[i] for i in places], take(state.inner, places), link)
                combined |= zip(places, results, strict=True)
                inner = put(inner, places, part)
        after = AccordionState(state.round + 1, state.light, state.last, total, inner)
        if after.round % every == 0 and total:
            now = norms(total, link)
            if now is not None:
                levels = [critical(n, last, eta) for n, last in zip(now, state.last, strict=True)]
                after = after._replace(light=levels, last=now)
            after = after._replace(total=[still(t) for t in total])
        return [combined[i] for i in range(len(tensors))], after

    return Exchange(
        init,
        run,
        equal=True,
        name=f"accordion({much.name}, {little.name}, every={every}, eta={eta:g})",
        sparse=much.sparse or little.sparse,
        momentum=much.momentum,
        decayed=lambda state: state._replace(light=[True] * len(state.light)),
    )


def critical(now: float, last: float, eta: float) -> bool:
    """Whether the norm has changed by a share of ``eta`` since the last window, or nothing is known of that one."""
    return not (last > 0 and abs(last - now) / last < eta)


def check_window(what: str, every: int, eta: float) -> None:
    """Check a detector's settings.

    Raises: ConfigError.
    """
    if type(every) is not int or every < 1:
        raise ConfigError(f"{what}: every must be a whole number of at least 1, got {every!r}; it counts rounds")
    if not eta >= 0:
        raise ConfigError(f"{what}: eta must be at least 0, got {eta}; 0.5 is a change of the norm by half")


def add_raw(what: str, total: Tensor, gradient: Tensor) -> Tensor:
    """``total + gradient``, a new tensor.

    Raises: NotANumber for a gradient that would stay in the sum for ever.
    """
    finite(what, gradient)
    return total + gradient.detach()


def norms(totals: list[Tensor], link: Link) -> list[float] | None:
    """The norm of each tensor over all workers' sums, the same bits everywhere; None on ``meta``, though it costs."""
    squares = [torch.linalg.vector_norm(t, dtype=torch.float64).square().to(totals[0].device) for t in totals]
    summed = link.all_reduce(torch.stack(squares))
    return None if summed.device.type == "meta" else summed.sqrt().tolist()


def one_state(what: str, light: Exchange, heavy: Exchange) -> None:
    """Check that two exchanges can go on with each other's state, by letting them, on tensors without data.

    Raises: ClashError.
    """
    for talk in (light, heavy):
        if not talk.equal:
            raise ClashError(f"{what}: needs the same result on every worker, and {talk.name} gives each pair its own")
        if talk.decayed is not None:
            raise ClashError(f"{what}: {talk.name} changes its level by itself; give the exchanges inside it")
    if light.momentum != heavy.momentum:
        raise ClashError(f"{what}: one of {light.name} and {heavy.name} adds momentum and the other does not")
    probes = [torch.empty(shape, device="meta") for shape in PROBES]
    alone = Link(0, 1)
    try:
        states = [talk.init(probes) for talk in (light, heavy)]
        alike = freeze(states[0])[0] == freeze(states[1])[0]
        for talk, state in zip((heavy, light), states, strict=True):
            _, part = talk.run(probes[:1], take(state, [0]), alone)
            talk.run(probes, put(state, [0], part), alone)
    except LaconicError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError):
        alike = False
    if not alike:
        raise ClashError(
            f"{what}: {light.name} and {heavy.name} do not keep the same state, and a change of level would lose the "
            "error memory; use one compressor at two levels, such as error_feedback(topk(0.1)) and "
            "error_feedback(topk(0.01)), or error_feedback(topk(1.0)) to send all"
        )
