"""FP8: eight bits a value, of which three or two are a mantissa, and one scale a block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite
from laconic.compress.blocks import (
    Form,
    Pieces,
    block_of,
    checked_block,
    fitting,
    in_blocks,
    quantiser,
    reciprocal,
    scaled_by,
)
from laconic.compress.noise import noise
from laconic.errors import PacketError, unknown
from laconic.packet import Packet, need


class Kind(NamedTuple):
    """``mantissa`` bits, the exponent's ``bias``, the largest value, and its code."""

    dtype: torch.dtype
    mantissa: int
    bias: int
    top: float
    last: int


KINDS = {
    "e4m3": Kind(torch.float8_e4m3fn, 3, 7, 448.0, 0x7E),
    "e5m2": Kind(torch.float8_e5m2, 2, 15, 57344.0, 0x7B),
}


def fp8(kind: str = "e4m3", block: int = 128, stochastic: bool = False, seed: int = 0) -> Compressor:
    """Send 8-bit floats of every ``block`` values, scaled so that the largest becomes the largest there is.

    ``"e4m3"`` has one bit of mantissa more and is more exact on gradients with a scale a block; ``"e5m2"`` has the
    wider range. To nearest (ties to even), or at random to one of the two beside (``stochastic``).

    Wire:   1 + 4/block bytes an entry; the 8-bit floats go as plain bytes, which every link takes.
    Error:  to nearest a relative 1/16 (e4m3) or 1/8 (e5m2) of the value, and absolute 2^-19 or 2^-33 of the
            block's largest where that is more. ``stochastic``: unbiased, under twice that.
    Raises: ConfigError for another kind or unless ``block >= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: the formats: Micikevicius et al. 2022, arXiv:2209.05433.
    """
    counts("fp8", block=block, seed=seed)
    if kind not in KINDS:
        raise unknown("kind of fp8", kind, KINDS)
    checked_block("fp8", block)
    dtype, mantissa, bias, top, last = KINDS[kind]
    least, steps = 2.0 ** (1 - bias), 2.0 ** (bias - 1 + mantissa)  # the smallest normal value; subnormal ones in 1

    def encode(values: Tensor, key: int | None) -> Pieces:
        blocks = in_blocks(values, fitting(block, values.numel()))
        scales = blocks.abs().amax(dim=1) / top
        finite("fp8", scales)
        scaled = blocks * reciprocal(scales)[:, None]
        if key is None:
            codes = scaled.clamp_(-top, top).to(dtype).view(torch.uint8)
        else:
            size = scaled.abs().clamp_(max=top)
            drawn = noise(size, key)
            normal = size.view(torch.int32) + ((drawn >> (9 + mantissa)) & ((1 << (23 - mantissa)) - 1))
            normal = (normal >> (23 - mantissa)) - ((127 - bias) << mantissa)
            chance = ((drawn >> 8) & 0xFFFFFF).float().mul_(2.0**-24)
            small = (size * steps + chance).floor_().int()
            rounded = torch.where(size >= least, normal, small).clamp_(max=last)
            codes = (rounded | ((blocks.view(torch.int32) >> 24) & 128)).to(torch.uint8)
        return {"codes": codes.reshape(-1)[: values.numel()], "scales": scales}

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        layout, size = (mantissa, bias, top, last), fitting(block, values.numel())
        codes, scales, left = kernels.loops("blocks").eighths(values, residual, size, layout, key)
        finite("fp8", scales)
        return {"codes": codes, "scales": scales}, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        size = block_of(packet, numel)
        told = KINDS.get(str(packet.header.get("kind")))
        if told is None:
            raise PacketError(f"packet: kind is {packet.header.get('kind')!r}, wanted one of {', '.join(KINDS)}")
        codes = need(packet, "codes", (torch.uint8,), numel)
        return codes, need(packet, "scales", (torch.float32,), -(-numel // size)), size, told.dtype

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        codes, scales, size, eight = pieces
        return scaled_by(codes.view(eight).float(), scales, size)

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        codes, scales, size, eight = pieces
        table = torch.arange(256, dtype=torch.uint8).view(eight).float()
        kernels.loops("blocks").eighths_back(codes, scales, size, table, out, weight)

    def worst(numel: int) -> float:
        # Half a step is at most 2^-(mantissa + 1) of a value, and of the smallest ones 2^-(bias + mantissa) of a unit.
        return 4.0 ** -(mantissa + 1) + fitting(block, numel) * (2.0 ** -(bias + mantissa) / top) ** 2

    form = Form(encode, read, decode, fast_encode, fast_decode)
    laws: dict[str, Any] = {"omega": worst} if stochastic else {"delta": lambda numel: 1 - worst(numel)}
    return quantiser("fp8", form, seed if stochastic else None, {"block": block, "kind": kind}, **laws)
