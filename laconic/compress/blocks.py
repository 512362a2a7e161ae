"""Quantisers: what :func:`int8`, :func:`qsgd`, :func:`sign` and the like share, which send a few bits for each value.

A :class:`Form` says how flat float32 values become a few small tensors and back, twice: in plain torch and in compiled
loops, equal to the bit. :func:`quantiser` makes a compressor of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from laconic import kernels
from laconic.compress.base import Compressor, finite, noise_key, promised, stateless, whole
from laconic.compress.base import carry as carried
from laconic.compress.bits import pack, packed_size, unpack
from laconic.compress.half import _code, original
from laconic.compress.noise import uniform
from laconic.errors import ConfigError
from laconic.packet import Packet, check_shape, need
from laconic.state import checkpointed

Pieces = dict[str, Tensor]
MOST_BLOCK = 1 << 30  # values; a larger one is the whole tensor anyway
MOST_ON_GPU = 4096  # values of a block that one program on a GPU takes


@checkpointed
class RoundingState(NamedTuple):
    """The position in the stream of random roundings."""

    step: int


class Form(NamedTuple):
    """How flat float32 values become small tensors, and back.

    ``encode(values, key)`` in plain torch; ``key`` is for the noise, ``None`` for rounding to nearest. ``read(packet,
    numel)`` checks a packet and takes out what ``decode(pieces, numel)`` makes values of. ``fast_encode(values,
    residual, key)`` and ``fast_decode(pieces, out, weight)`` are the same in loops: the first also gives what is left
    of the sum if there is a residual; the second puts values into ``out``, or adds ``weight`` times them to it. Both
    encoders refuse values that are not finite. ``on_gpu(numel)``: a GPU has loops for tensors of this size too.
    """

    encode: Callable[[Tensor, int | None], Pieces]
    read: Callable[[Packet, int], tuple[Any, ...]]
    decode: Callable[[tuple[Any, ...], int], Tensor]
    fast_encode: Callable[[Tensor, Tensor | None, int | None], tuple[Pieces, Tensor | None]]
    fast_decode: Callable[[tuple[Any, ...], Tensor, float | None], None]
    on_gpu: Callable[[int], bool] = lambda numel: False


def _fast(form: Form, *tensors: Tensor) -> bool:
    """Whether the form's loops take these tensors, of which there are some and which hold something."""
    numel = tensors[0].numel()
    if not numel or kernels.loops("blocks", *tensors) is None:
        return False
    return not tensors[0].is_cuda or form.on_gpu(numel)


def quantiser(
    name: str,
    form: Form,
    seed: int | None = None,
    header: dict[str, Any] | None = None,
    **laws: Any,
) -> Compressor:
    """A compressor of flat values, with a state that counts steps if a ``seed`` is given: rounding is then random.

    ``header`` is what a receiver must know beside the shape and the dtype; ``laws`` are further fields of the
    compressor.
    """

    def start(like: Tensor) -> RoundingState:
        return RoundingState(0)

    def key(flat: Tensor, state: Any, residual: Tensor | None = None) -> int | None:
        return None if seed is None else noise_key(flat, seed, state.step, residual)

    def after(state: Any) -> Any:
        return state if seed is None else RoundingState(state.step + 1)

    def wrapped(pieces: Pieces, x: Tensor) -> Packet:
        return Packet(pieces, {"shape": list(x.shape), "dtype": _code(x)} | (header or {}))

    def compress(x: Tensor, state: Any) -> tuple[Packet, Any]:
        _code(x)
        flat = x.detach().reshape(-1)
        values = flat.float().contiguous()
        noise = key(flat, state)
        pieces = form.fast_encode(values, None, noise)[0] if _fast(form, values) else form.encode(values, noise)
        return wrapped(pieces, x), after(state)

    def decompress(packet: Packet) -> Tensor:
        shape, numel = promised(packet)
        dtype = original(packet)
        pieces = form.read(packet, numel)
        device = _device(packet)
        if device.type != "meta" and _fast(form, values := kernels.new((numel,), torch.float32, device)):
            form.fast_decode(pieces, values, None)
        else:
            values = form.decode(pieces, numel)
        return values.to(dtype).reshape(shape)

    block = max(1, (header or {}).get("block", 1))
    plain = Compressor(start if seed is not None else stateless, compress, decompress, name=name, block=block, **laws)

    def carry(x: Tensor, residual: Tensor, state: Any) -> tuple[Packet, Tensor, Any]:
        flat, kept = x.detach().reshape(-1), residual.reshape(-1)
        if not _fast(form, flat, kept):
            return carried(plain, x.detach(), residual, state)
        noise = key(flat, state, kept)
        pieces, left = form.fast_encode(flat, kept, noise)
        assert left is not None
        return wrapped(pieces, x), left.reshape(x.shape), after(state)

    def add(packet: Packet, into: Tensor, weight: float) -> None:
        check_shape(packet, into)
        if original(packet) == torch.float32 and _device(packet) == into.device and _fast(form, into):
            form.fast_decode(form.read(packet, into.numel()), into.view(-1), weight)
        else:
            into.add_(decompress(packet).to(into).mul_(weight))

    return plain._replace(carry=carry, add=add)


def _device(packet: Packet) -> torch.device:
    """Where a packet lies; one without tensors is nowhere in particular."""
    return next((t.device for t in packet.tensors.values()), torch.device("cpu"))


def linear(name: str, block: int, levels: int, bits: int, norm: str = "max", told: bool = False) -> Form:
    """Codes in [-levels, levels], of ``bits`` bits, times a float32 scale for each block.

    The scale is the block's largest magnitude (``"max"``) or its Euclidean norm (``"l2"``), divided by ``levels``.
    ``told``: the header says how many bits, so that peers may differ. Eight bits that are not told are int8.
    """
    kind = {"max": 0, "l2": 1}[norm]
    dtype = torch.int8 if bits == 8 and not told else torch.uint8

    def encode(values: Tensor, key: int | None) -> Pieces:
        blocks = in_blocks(values, fitting(block, values.numel()))
        scales = (blocks.abs().amax(dim=1) if norm == "max" else norms(blocks)) / levels
        finite(name, scales)
        scaled = blocks * reciprocal(scales)[:, None]
        if key is None:
            scaled.round_()
        else:
            scaled.add_(uniform(scaled, key)).floor_()
        codes = scaled.clamp_(-levels, levels).to(torch.int8).reshape(-1)[: values.numel()]
        if bits < 8:
            codes = pack(codes.view(torch.uint8) & ((1 << bits) - 1), bits)
        return {"codes": codes.view(dtype), "scales": scales}

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        size = fitting(block, values.numel())
        codes, scales, left = kernels.loops("blocks", values).linear(values, residual, size, levels, bits, kind, key)
        finite(name, scales)
        return {"codes": codes.view(dtype), "scales": scales}, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        width = whole(packet, "bits", 2, 8) if told else bits
        size = block_of(packet, numel)
        codes = need(packet, "codes", (dtype,), packed_size(numel, width))
        return codes, need(packet, "scales", (torch.float32,), -(-numel // size)), size, width

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        packed, scales, size, width = pieces
        sign = 1 << (width - 1)
        codes = unpack(packed.view(torch.uint8), width, numel)
        return scaled_by((codes ^ sign).float() - sign, scales, size)

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        packed, scales, size, width = pieces
        kernels.loops("blocks", out).linear_back(packed.view(torch.uint8), scales, size, width, out, weight)

    def on_gpu(numel: int) -> bool:
        size = fitting(block, numel)
        return norm == "max" and bits in (4, 8) and 1 < size <= MOST_ON_GPU and not size & (size - 1)

    return Form(encode, read, decode, fast_encode, fast_decode, on_gpu)


def checked_block(name: str, block: int, multiple: int = 1) -> int:
    """Check the size of a block, which whole bytes of codes must fill.

    Raises: ConfigError.
    """
    if not 1 <= block <= MOST_BLOCK:
        raise ConfigError(f"{name}: block must be at least 1 and at most 2^30, got {block}")
    if block % multiple:
        raise ConfigError(f"{name}: block must be a multiple of {multiple}, got {block}; whole bytes of codes fill it")
    return block


def fitting(block: int, numel: int) -> int:
    """The block, but no larger than the tensor: a large one must not ask for more memory."""
    return min(block, max(1, numel))


def block_of(packet: Packet, numel: int) -> int:
    """The block that a packet's header names, no larger than the tensor.

    Raises: PacketError.
    """
    return fitting(whole(packet, "block", 1, 1 << 31), numel)


def scaled_by(values: Tensor, scales: Tensor, block: int) -> Tensor:
    """Flat values, each block of them times its scale."""
    return (in_blocks(values, block) * scales[:, None]).reshape(-1)[: values.numel()]


def in_blocks(x: Tensor, block: int) -> Tensor:
    """``x`` flat, as float32, in rows of ``block`` values, the last padded with zeros; it may be ``x``'s memory."""
    flat = x.detach().reshape(-1)
    missing = -flat.numel() % block
    flat = pad(flat.float(), (0, missing)) if missing else flat.float()
    return flat.reshape(-1, block)


def reciprocal(scales: Tensor) -> Tensor:
    """``1 / scales``, and 0 where the scale is 0 or so small that its reciprocal would be infinite."""
    return torch.where(scales >= torch.finfo(torch.float32).tiny, 1 / scales, 0)


def halved(sums: Tensor) -> Tensor:
    """The sum of each row, by adding its second half to its first: the same bits on every device."""
    while sums.shape[1] > 1:
        half = 1 << (sums.shape[1] - 1).bit_length() - 1
        upper = sums[:, half:]
        sums = torch.cat((sums[:, : upper.shape[1]] + upper, sums[:, upper.shape[1] : half]), dim=1)
    return sums.sum(dim=1)


def norms(blocks: Tensor) -> Tensor:
    """The Euclidean norm of each row, in float32; finite if the row is."""
    found = halved(blocks.double().square()).sqrt()
    most = torch.finfo(torch.float32).max
    return torch.where(found.isinf(), found, found.clamp(max=most)).float()


def linear_laws(block: int, levels: int, stochastic: bool, norm: str = "max") -> dict[str, Any]:
    """``omega`` of rounding at random to ``levels`` equal steps of the norm of a block, or ``delta`` of to nearest.

    A value between two levels a step apart has a variance of at most a quarter of the step's square, and at most the
    step times its size. With a largest value of 1 the sizes of d values sum up to at most ``(1 + sqrt(d)) / 2`` times
    their squares; with a norm of 1, to ``sqrt(d)``.
    """

    def omega(numel: int) -> float:
        d = fitting(block, numel)
        ratio = (1 + math.sqrt(d)) / 2 if norm == "max" else math.sqrt(d)
        return min(d / (4 * levels**2), ratio / levels)

    def delta(numel: int) -> float:
        d = fitting(block, numel)
        return max(1 / d, 1 - d / (4 * levels**2))  # at worst, only the largest is sent

    return {"omega": omega} if stochastic else {"delta": delta}
