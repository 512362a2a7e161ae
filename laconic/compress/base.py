"""The shape of a compressor: how one tensor becomes one packet and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.packet import Packet, shape_of

KEEPS = "keeps what it drops already"  # why a compressor with feedback bears no other
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Compressor(NamedTuple):
    """One tensor to one packet, and back.

    ``init(like)`` makes the state for tensors like ``like``; ``compress(tensor, state)`` leaves both alone and
    returns ``(packet, new state)``; ``decompress(packet)`` needs the packet alone. Packets of a ``summable``
    compressor may be added in flight, tensor by tensor, as an all-reduce does. ``refines`` names the packet's
    floating-point tensor that another compressor may compress further (see :func:`chain`); ``None`` if none can.
    ``sparse``: some entries are not sent at all, so that what is compressed must be a change and not a state.
    ``momentum``: what is sent already holds momentum, and the optimizer must add none. ``no_feedback``: why what it
    drops must not be added to the next tensor from outside; empty where it may be. ``sized``: a packet's bytes follow
    from the tensor's shape alone; where not, those of a ``meta`` tensor are what random values would take.

    Error, for a tensor of so many entries: ``delta(numel)`` of a contractive compressor says
    ``E|C(x) - x|^2 <= (1 - delta) |x|^2``; ``omega(numel)`` of an unbiased one, ``E C(x) = x`` and
    ``E|C(x) - x|^2 <= omega |x|^2``. ``None`` where it is not so, or not known.

    Shortcuts, for what could be put together from the above but more slowly: ``carry(tensor, residual, state)``
    compresses ``tensor + residual`` and returns ``(packet, what it dropped, new state)``; ``add(packet, into, weight)``
    adds ``weight`` times the decompressed tensor to ``into``.

    ``integrate(mean, state)`` makes of the mean of everyone's decompressed tensors what is meant, where changes are
    sent that must be summed up: ``(tensor, new state)``. The tensor is nobody else's memory. It needs a fixed group
    whose weights do not change, and means of at least float32.

    ``block``: values are compressed in blocks of so many, so that a long tensor is best cut at a multiple of it.
    """

    init: Callable[[Tensor], Any]
    compress: Callable[[Tensor, Any], tuple[Packet, Any]]
    decompress: Callable[[Packet], Tensor]
    summable: bool = False
    name: str = "compressor"
    refines: str | None = None
    sparse: bool = False
    momentum: bool = False
    no_feedback: str = ""
    sized: bool = True
    delta: Callable[[int], float] | None = None
    omega: Callable[[int], float] | None = None
    carry: Callable[[Tensor, Tensor, Any], tuple[Packet, Tensor, Any]] | None = None
    add: Callable[[Packet, Tensor, float], None] | None = None
    integrate: Callable[[Tensor, Any], tuple[Tensor, Any]] | None = None
    block: int = 1


def still(like: Tensor) -> Tensor:
    """Zeros in at least float32: what adds up many small tensors would lose them in half precision."""
    return torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)


def carry(
    compressor: Compressor, x: Tensor, residual: Tensor, state: Any, dtype: torch.dtype | None = None
) -> tuple[Packet, Tensor, Any]:
    """Compress ``x + residual``: the packet, what it leaves out (a tensor of its own), and the new state.

    What is sent is of ``dtype`` (by default ``x``'s), what is left of the residual's, with what rounding to it leaves.

    Law:    ``decompress(packet) + left == x + residual``.
    Raises: NotANumber if the sum holds NaN or infinity.
    """
    sent = x.dtype if dtype is None else dtype
    if residual.dtype != sent:
        whole_sum = x.to(residual.dtype) + residual
        rounded = whole_sum.to(sent)
        finite(compressor.name, rounded)
        packet, after = compressor.compress(rounded, state)
        return packet, whole_sum - compressor.decompress(packet).to(residual.dtype), after
    assert x.shape == residual.shape, "a residual is of the tensor that it is added to"
    if compressor.carry is not None:
        return compressor.carry(x, residual, state)
    wanted = x + residual
    finite(compressor.name, wanted)
    packet, after = compressor.compress(wanted, state)
    # Not in place: the packet of a compressor that changes nothing (identity) is the memory of ``wanted``.
    return packet, wanted - compressor.decompress(packet), after


def accumulate(compressor: Compressor, packet: Packet, into: Tensor, weight: float = 1.0) -> None:
    """Add ``weight`` times what ``packet`` decompresses to, to a tensor of its shape.

    Raises: PacketError.
    """
    if compressor.add is not None:
        compressor.add(packet, into, weight)
    else:
        into.add_(compressor.decompress(packet).to(into), alpha=weight)


def stateless(like: Tensor) -> tuple[()]:
    """The state of a compressor that remembers nothing."""
    return ()


def share(what: str, value: float, name: str = "density") -> float:
    """Check that ``value`` is a share in (0, 1].

    Raises: ConfigError that names ``what`` it is for.
    """
    if not 0 < value <= 1:
        raise ConfigError(f"{what}: {name} must be in (0, 1], got {value}; it is a fraction, so 1% is 0.01")
    return value


def count(what: str, value: Any, name: str, least: int | None = 1) -> int:
    """Check that ``value`` is a whole number, of at least ``least``.

    Raises: ConfigError that names ``what`` it is for.
    """
    if type(value) is not int or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"a whole number of at least {least}"
        raise ConfigError(f"{what}: {name} must be {wanted}, got {value!r}")
    return int(value)


def counts(what: str, **values: Any) -> None:
    """Check that settings are whole numbers, before what they may be is asked.

    Raises: ConfigError.
    """
    for name, value in values.items():
        count(what, value, name, None)


def needs_feedback(what: str, compressor: Compressor, numel: int = 0) -> None:
    """Refuse a compressor around which a residual would grow without bound, for tensors of so many entries.

    An unbiased one may do that whose ``omega`` is 1 or more there: it can miss by more than it was given.

    Raises: ClashError.
    """
    if numel and compressor.omega is not None and compressor.delta is None and compressor.omega(numel) >= 1:
        raise ClashError(
            f"{what}: {compressor.name} is unbiased with an omega of {compressor.omega(numel):.3g} for a tensor of "
            f"{numel} entries, and from 1 on a residual around it can grow without bound; use "
            f"{what}(damped({compressor.name})), or {compressor.name} without {what} (a method's feedback=false)"
        )
    if compressor.no_feedback:
        raise ClashError(
            f"{what}: {compressor.name} {compressor.no_feedback}, so that what is added would grow without bound; use "
            "one without the other (a method's feedback=false leaves error_feedback out)"
        )


def needs_values(what: str, compressor: Compressor, why: str) -> None:
    """Refuse a compressor that sends changes (it has ``integrate``) where nothing would add them up rightly.

    Raises: ClashError.
    """
    if compressor.integrate is not None:
        raise ClashError(f"{what}: {compressor.name} sends changes for everyone to add up; {why}")


def finite(what: str, values: Tensor) -> None:
    """Refuse values that are NaN or infinite, which a residual would otherwise keep for ever.

    Raises: NotANumber.
    """
    # One NaN or infinity makes the sum so, in a single pass; a sum that overflowed by itself is looked at again.
    if values.device.type != "meta" and not math.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise NotANumber(f"{what}: the tensor to send holds NaN or infinity")


def promised(packet: Packet) -> tuple[tuple[int, ...], int]:
    """The shape that a packet promises and its number of elements."""
    shape = shape_of(packet)
    return shape, math.prod(shape)


def whole(packet: Packet, name: str, low: int, high: int) -> int:
    """A whole number from a packet's header, checked to be in [low, high].

    Raises: PacketError.
    """
    value = packet.header.get(name)
    if type(value) is not int or not low <= value <= high:
        raise PacketError(f"packet: {name} is {value!r}, wanted a whole number in [{low}, {high}]")
    return value


def noise_key(x: Tensor, seed: int, step: int, residual: Tensor | None = None) -> int:
    """A key for random rounding: a pure function of the seed, the step and the values of ``x`` (plus ``residual``).

    Workers share the seed but not the tensor, so their roundings are independent and their errors average out,
    while the same tensor at the same step always gives the same packet.
    """
    fold = 0
    if x.device.type != "meta" and x.numel():
        flat = x.detach().reshape(-1)
        every = max(1, flat.numel() // 256)
        sample = flat[::every] if residual is None else flat[::every] + residual.reshape(-1)[::every]
        if not bool(sample.any()):  # a gradient of few rows: the sample may be zero on all workers, so all is looked at
            sample = flat if residual is None else flat + residual.reshape(-1)
        fold = int(sample.double().contiguous().view(torch.int64).bitwise_right_shift(16).sum())
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + fold) % (1 << 63)
