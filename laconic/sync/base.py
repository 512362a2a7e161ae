"""The shape of a sync: its chances to talk, as gradients get ready and after the inner step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import count
from laconic.errors import ClashError
from laconic.exchange.base import Exchange
from laconic.links.base import Link
from laconic.packet import Packet

Params = Sequence[Tensor]
Updates = dict[int, Tensor]
LossAt = Callable[[Iterable[Tensor]], float]


class Sync(NamedTuple):
    """When to talk, and what is done with the answer. Nothing here writes to the model: :mod:`laconic.attached` does.

    ``init(params)`` makes the state for named parameters (or tensors, in order). ``after_backward(grads, state, link)``
    returns ``(the gradients to step with, new state)``; ``after_step(params, state, link)`` returns ``(new values of
    the parameters that change, by index, new state)``. Either may be absent. If one raises, nothing has happened.
    ``after_backward`` may return None for the gradients, "not yet": the sum is in its state, and the optimizer does not
    step this time.

    ``by_bucket``: ``after_backward`` may be run on any part of the gradients with a state of its own, so that parts
    leave while backward still works on others. ``model(params, state)`` are the weights to evaluate and to ship: the
    shared ones where a method has them. ``momentum``: gradients come back with momentum already in them.
    ``equal``: all workers hold the same parameters after every round. ``decayed(state)`` is told that the learning
    rate has fallen, before anything of that step is sent; ``rate(state)`` is by how much this one step's learning rate
    is multiplied.
    ``clip`` bounds the norm of the whole gradient of each worker, before it is sent, at ``clip * sqrt(size)``; where a
    worker sees only a part of each gradient, that is done before ``after_backward``. ``whole``: it decides by the whole
    gradient in another way, and cannot be run where each worker sees a part. ``exchange`` is what it talks by, so that
    what cannot run is found before the first step. ``rounds(state)``, where workers take unequal numbers of steps, is
    how many rounds have ended, which all count alike; ``taken(state)``, there, is the mean number of steps that workers
    have taken, in the round under way as if all were as far in it. ``share(state)``, where workers take unequal
    batches, is how much of an ordinary batch this worker's next one is to be; the mean over all workers is 1.
    ``learning(state, rate)`` is told the optimizer's learning rate (the highest of its groups') before every
    ``after_step``. ``finish(params, state, link)`` is run once by every worker after the last step, and returns as
    ``after_step`` does: a last exchange, or the answer to the one under way.

    ``explore(params, state, link, loss_at)``, where there is one, takes the place of backward, the optimizer's step and
    both of the above, and returns as ``after_step`` does. ``loss_at(values)`` is the loss of this step's batch with
    ``values`` in the parameters' places, one after the other, without gradients and always with the same noise.
    ``record(state)`` is what a worker that was away needs to take the last steps by itself, and ``replay(params, state,
    record)`` takes them, and returns as ``after_step`` does.

    ``forget(state)`` is asked after every step whether the optimizer is to start anew, without momentum.

    ``ended(params, state, link)`` is run by every worker as soon as its loop has ended, or pauses, and before it waits
    for the others, who may still be inside a step; it returns as ``after_step`` does. What comes after the last step of
    all is ``finish``.

    ``among(size)`` says in a sentence who talks to whom among so many workers, or refuses that many (ConfigError);
    where there is none, the exchange's is asked. ``recalibrates``: after ``finish`` the statistics of normalisation
    layers belong to weights that are gone, and are to be estimated again (:mod:`laconic.merging`).
    """

    init: Callable[[Mapping[str, Tensor] | Params], Any]
    after_backward: Callable[[Params, Any, Link], tuple[list[Tensor] | None, Any]] | None = None
    after_step: Callable[[Params, Any, Link], tuple[Updates, Any]] | None = None
    model: Callable[[Params, Any], list[Tensor]] | None = None
    by_bucket: bool = False
    momentum: bool = False
    equal: bool = True
    name: str = "sync"
    decayed: Callable[[Any], Any] | None = None
    rate: Callable[[Any], float] | None = None
    clip: float | None = None
    whole: bool = False
    exchange: Exchange | None = None
    rounds: Callable[[Any], int] | None = None
    learning: Callable[[Any, float], Any] | None = None
    finish: Callable[[Params, Any, Link], tuple[Updates, Any]] | None = None
    taken: Callable[[Any], float] | None = None
    share: Callable[[Any], float] | None = None
    explore: Callable[[Params, Any, Link, LossAt], tuple[Updates, Any]] | None = None
    record: Callable[[Any], Packet] | None = None
    replay: Callable[[Params, Any, Packet], tuple[Updates, Any]] | None = None
    among: Callable[[int], str] | None = None
    recalibrates: bool = False
    ended: Callable[[Params, Any, Link], tuple[Updates, Any]] | None = None
    forget: Callable[[Any], bool] | None = None


def among(sync: Sync, size: int) -> str:
    """Who talks to whom among so many workers; nothing where a method has nothing to say.

    Raises: ConfigError for a number of workers that it cannot run among.
    """
    ask = sync.among if sync.among is not None else sync.exchange.among if sync.exchange is not None else None
    return ask(size) if ask is not None else ""


def named(params: Mapping[str, Tensor] | Params) -> dict[str, Tensor]:
    """Parameters by name; their places stand in for names that are not given."""
    return dict(params) if isinstance(params, Mapping) else {str(i): p for i, p in enumerate(params)}


def master(tensor: Tensor) -> Tensor:
    """A copy to keep across rounds, in at least float32: small steps vanish in a half-precision sum."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype, copy=True)


def drift(anchor: Sequence[Tensor], params: Params) -> list[Tensor]:
    """What was moved since the anchor, pointing back: ``anchor - params``, so that a descent step subtracts it."""
    return [a - p.detach() for a, p in zip(anchor, params, strict=True)]


def positive(what: str, name: str, value: int) -> int:
    """Check that a count is at least 1.

    Raises: ConfigError.
    """
    return count(what, value, name)


def needs_equal(what: str, exchange: Exchange, instead: str) -> None:
    """Refuse an exchange whose workers end with different results.

    Raises: ClashError.
    """
    if not exchange.equal:
        raise ClashError(
            f"{what}: needs the same result on every worker, and {exchange.name} gives them different ones; {instead}"
        )


def momentum_free(what: str, exchange: Exchange) -> None:
    """Refuse an exchange that puts momentum into what it is given: right for gradients, not for a change of weights.

    Raises: ClashError.
    """
    if exchange.momentum:
        raise ClashError(f"{what}: {exchange.name} adds momentum, which is for gradients; use error_feedback(...) here")


def passed_on(exchange: Exchange) -> Callable[[Any], Any] | None:
    """A sync's ``decayed``, where its state has the exchange's in ``exchange``."""
    tell = exchange.decayed
    return None if tell is None else lambda state: state._replace(exchange=tell(state.exchange))


def decay_free(what: str, exchange: Exchange) -> None:
    """Refuse an exchange that must hear of a learning-rate decay, where it would not.

    Raises: ClashError.
    """
    if exchange.decayed is not None:
        raise ClashError(
            f"{what}: {exchange.name} has to hear of a learning-rate decay, and cannot here; use it in every_step() "
            "or diloco()"
        )
