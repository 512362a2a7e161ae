"""E3M0: four bits a value (sign and a power of two), with one scale a block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite
from laconic.compress.bits import pack, packed_size
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
from laconic.errors import ConfigError
from laconic.packet import Packet, need

# Codes 1..7 stand for 2^-6..1 of the block's scale, 0 for 0; bit 3 is the sign.
MAGNITUDES = (0.0, *(2.0 ** (e - 7) for e in range(1, 8)))
SMALLEST = 2.0**-7 * 4 / 3  # the midpoint between 0 and the smallest magnitude, times 4/3
LARGEST = 0x7F7F0000  # the largest bfloat16, as a float's bits


def e3m0(block: int = 128, stochastic: bool = False, seed: int = 0) -> Compressor:
    """Round each value to one of 15: zero, or plus or minus one of seven powers of two of the block's largest.

    To the nearest, or at random to one of the two beside it (``stochastic``).

    Wire:   0.5 + 2/block bytes an entry (two codes a byte, one bfloat16 scale a block).
    Error:  to nearest at most a quarter of the block's largest value; relative 0.19 (root mean square) on Gaussian
            values; biased. ``stochastic``: unbiased, ``omega`` about ``1/8 + sqrt(block)/128``.
    Law:    to nearest, compressing what was decompressed changes nothing; zeros stay zeros; no sign flips.
    Raises: ConfigError unless ``block`` is even and positive; NotANumber if the tensor holds NaN or infinity.
    Source: the format of Streaming DiLoCo's outer gradients, Douillard et al. 2025, arXiv:2501.18512; the scaling
            by blocks is ours. Rounding at random: Horvath et al. 2019, arXiv:1905.10988 (natural dithering).
    """
    counts("e3m0", block=block, seed=seed)
    if block < 2 or block % 2:
        raise ConfigError(f"e3m0: block must be even and positive, got {block}; two codes share a byte")
    checked_block("e3m0", block, 2)

    def encode(values: Tensor, key: int | None) -> Pieces:
        blocks = in_blocks(values, fitting(block, values.numel()))
        tops = blocks.abs().amax(dim=1)
        finite("e3m0", tops)
        bits = tops.view(torch.int32)
        if key is not None:
            # Up, where to nearest it is towards zero and what comes out never exceeds what went in: nothing may have
            # to be rounded past the largest code.
            bits = (bits.long() + 65535).clamp_(max=LARGEST).int()
        scales = (bits & -65536).view(torch.float32).bfloat16()
        factors = reciprocal(scales.float())
        if key is None:
            # A float's exponent is the power of two below it. Times 4/3 that is the power of two nearest to it, since
            # the midpoint between 2^j and 2^(j+1) is 3/4 of the latter; only 0 and 2^-6 have theirs elsewhere.
            scaled = blocks.abs() * (4 / 3 * factors)[:, None]
            codes = (scaled.view(torch.int32) >> 23).sub_(120).clamp_(0, 7).maximum(scaled >= SMALLEST)
        else:
            # Noise added to the mantissa carries into the exponent as often as it should.
            scaled = blocks.abs() * factors[:, None]
            drawn = noise(scaled, key)
            codes = ((scaled.view(torch.int32) + ((drawn >> 9) & 0x7FFFFF)) >> 23).sub_(120).clamp_(1, 7)
            chance = ((drawn >> 8) & 0xFFFFFF).float().mul_(2.0**-30)
            codes = torch.where(scaled >= MAGNITUDES[1], codes, (chance < scaled).int())
        codes.bitwise_or_((blocks.view(torch.int32) >> 28) & 8)
        return {"codes": pack(codes.to(torch.uint8).reshape(-1)[: values.numel()], 4), "scales": scales}

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        size = fitting(block, values.numel())
        codes, scales, left = kernels.loops("blocks").powers(values, residual, size, key)
        finite("e3m0", scales.view(torch.bfloat16))
        return {"codes": codes, "scales": scales.view(torch.bfloat16)}, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        size = block_of(packet, numel)
        codes = need(packet, "codes", (torch.uint8,), packed_size(numel, 4))
        return codes, need(packet, "scales", (torch.bfloat16,), -(-numel // size)).float(), size

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        packed, scales, size = pieces
        # One look-up for both codes of a byte.
        magnitudes = torch.tensor(MAGNITUDES, device=packed.device)
        one = torch.cat((magnitudes, -magnitudes))
        two = torch.stack((one.repeat(16), one.repeat_interleave(16)), dim=1).view(torch.int64).reshape(-1)
        pairs = two.index_select(0, packed.int()).view(torch.float32)
        return scaled_by(pairs[:numel], scales, size)

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        packed, scales, size = pieces
        kernels.loops("blocks").powers_back(packed, scales, size, out, weight)

    def delta(numel: int) -> float:
        # An error is at most a third of its value, or all of it where that is under 2^-7 of the largest.
        d = fitting(block, numel)
        return max(8 / (9 * d), 8 / 9 - d / 2**14)

    def omega(numel: int) -> float:
        # 1/8 between powers of two; beneath the smallest, 2^-6 of the scale times the value.
        return 1 / 8 + (1 + 2**-7) * 2**-6 * (1 + math.sqrt(fitting(block, numel))) / 2

    form = Form(encode, read, decode, fast_encode, fast_decode)
    laws: dict[str, Any] = {"omega": omega} if stochastic else {"delta": delta}
    return quantiser("e3m0", form, seed if stochastic else None, {"block": block}, **laws)
