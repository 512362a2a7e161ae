"""Changes in a tensor's place: what EF21 and EControl send, how it is read, and how everyone adds it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from laconic.compress.base import KEEPS, Compressor, accumulate, finite, needs_feedback
from laconic.compress.identity import identity
from laconic.errors import unknown
from laconic.packet import Packet

STARTS = ("zero", "dense")
WHOLE = identity()

Step = Callable[[Tensor, Any, Callable[..., tuple[Packet, Any]]], tuple[Packet, Any]]


def changes(
    name: str, inner: Compressor, start: str, init: Callable[[Tensor], Any], step: Step, momentum: bool = False
) -> Compressor:
    """A compressor that sends by ``inner`` how its tensor differs from what was told so far.

    Its state, made by ``init``, has ``told`` (the sum of what I sent), ``mean`` (everyone's mean of that), ``inner``
    and ``started``. ``step(x, state, send)`` is the algorithm; ``send(wanted, x, state)`` makes its one packet.

    Wire:   ``inner``'s, gathered and never summed in flight; with ``start="dense"`` the first tensor goes whole, in its
            own dtype, and its header says so.
    Raises: ConfigError for another start; ClashError for an ``inner`` that has feedback, or sends more than it got.
    """
    if start not in STARTS:
        raise unknown(f"{name} start", start, STARTS)
    needs_feedback(name, inner)
    full = f"{name}({inner.name})"

    def begin(like: Tensor) -> Any:
        needs_feedback(name, inner, like.numel())
        return init(like)

    def send(wanted: Tensor, x: Tensor, state: Any) -> tuple[Packet, Any]:
        sent = wanted.to(x.dtype)
        finite(full, sent)
        if start == "dense" and not state.started:
            packet, _ = WHOLE.compress(sent, ())
            return Packet(packet.tensors, packet.header | {"whole": True}), state.inner
        return inner.compress(sent, state.inner)

    def decompress(packet: Packet) -> Tensor:
        return reader(packet, inner).decompress(packet)

    def add(packet: Packet, into: Tensor, weight: float) -> None:
        accumulate(reader(packet, inner), packet, into, weight)

    def integrate(mean: Tensor, state: Any) -> tuple[Tensor, Any]:
        total = state.mean + mean.to(state.mean.dtype)
        # A copy: what is given away becomes a gradient, and may be clipped or zeroed in place.
        return total.clone(), state._replace(mean=total)

    return inner._replace(
        init=begin,
        compress=lambda x, state: step(x.detach(), state, send),
        decompress=decompress,
        # Sums made in flight round, in 16 bits to 3 digits; what is wrong in the mean would stay in it for ever.
        summable=False,
        name=full,
        refines=None,
        momentum=momentum,
        no_feedback=KEEPS,
        delta=None,
        omega=None,
        carry=None,
        add=add,
        integrate=integrate,
    )


def reader(packet: Packet, inner: Compressor) -> Compressor:
    """Who reads this packet: ``inner``, or identity where the header says that the tensor came whole."""
    return WHOLE if packet.header.get("whole") is True else inner


def told_more(told: Tensor, packet: Packet, inner: Compressor) -> Tensor:
    """``told`` with what was really sent added: ``told + decompress(packet)``."""
    more = told.clone()
    accumulate(reader(packet, inner), packet, more)
    return more
