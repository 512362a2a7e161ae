"""The linear codes of :mod:`laconic.kernels.blocks` for tensors on a GPU, as Triton programs: one read, few bits back.

The same bits as the plain form: quotients are rounded as IEEE says, nothing is fused into a multiply-add, and the noise
is the same hash of the key and the place.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from laconic.compress.noise import FIRST, SECOND, halves

SPAN = 4096  # values of a program
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
MIX_1, MIX_2 = tl.constexpr(FIRST), tl.constexpr(SECOND)
MAGIC = tl.constexpr(12582912.0)  # 1.5 * 2^23: added and taken away again, it rounds to nearest, halves to even


def linear(
    flat: Tensor, residual: Tensor | None, block: int, levels: int, bits: int, norm: int, key: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales, and what they leave of ``flat + residual`` (if there is one)."""
    assert norm == 0
    assert bits in (4, 8)
    assert not block & (block - 1), "a program takes blocks of a power of two"
    n = flat.numel()
    left = None if residual is None else torch.empty_like(flat)
    codes = torch.empty(triton.cdiv(n * bits, 8), dtype=torch.uint8, device=flat.device)
    scales = torch.empty(triton.cdiv(n, block), dtype=torch.float32, device=flat.device)
    rows = max(1, SPAN // block)
    grid = (triton.cdiv(n, rows * block),)
    low, high = halves(key or 0)
    _encode[grid](
        flat, residual, left, codes, scales, n, low, high, levels, bits, key is not None, residual is not None,
        rows, block, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales, left


def linear_back(codes: Tensor, scales: Tensor, block: int, bits: int, out: Tensor, weight: float | None) -> None:
    """Values of codes, into ``out``, or ``weight`` times them added to it."""
    n = out.numel()
    grid = (triton.cdiv(n, SPAN),)
    _decode[grid](
        codes, scales, out, n, block, 0.0 if weight is None else weight, bits, weight is not None, SPAN,
        enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _uniform(place, low, high):
    h = place.to(tl.uint32) + low.to(tl.uint32)
    h ^= h >> 16
    h *= MIX_1
    h ^= high.to(tl.uint32)
    h ^= h >> 15
    h *= MIX_2
    h ^= h >> 16
    return (h >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def _encode(
    x, residual, left, codes, scales, n, low, high,
    levels: tl.constexpr, bits: tl.constexpr, random: tl.constexpr, fed: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < n
    v = tl.load(x + at, mask=inside, other=0.0)
    if fed:
        v += tl.load(residual + at, mask=inside, other=0.0)
    # As integers, NaN and infinity are above all others, and end in the scale.
    top = tl.max(v.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1).to(tl.float32, bitcast=True)
    scale = tl.div_rn(top, tl.full((ROWS,), levels, tl.float32))
    factor = tl.where(scale >= TINY, tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), scale), 0.0)
    tl.store(scales + row, scale, mask=row * BLOCK < n)
    scaled = v * factor[:, None]
    if random:
        scaled = tl.floor(scaled + _uniform(at, low, high))
    else:
        scaled = (scaled + MAGIC) - MAGIC
    code = tl.minimum(tl.maximum(scaled, -levels), levels).to(tl.int32)
    if fed:
        tl.store(left + at, v - code.to(tl.float32) * scale[:, None], mask=inside)
    if bits == 8:
        tl.store(codes + at, code.to(tl.uint8), mask=inside)
    else:
        first, second = tl.split(tl.reshape(code, (ROWS, BLOCK // 2, 2)))
        pair = row[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
        tl.store(codes + pair, ((first & 15) | ((second & 15) << 4)).to(tl.uint8), mask=pair * 2 < n)


@triton.jit
def _decode(codes, scales, out, n, block, weight, bits: tl.constexpr, added: tl.constexpr, SPAN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = at < n
    if bits == 8:
        code = tl.load(codes + at, mask=inside, other=0).to(tl.int32)
        value = (code ^ 128) - 128
    else:
        byte = tl.load(codes + at // 2, mask=inside, other=0).to(tl.int32)
        value = (((byte >> ((at % 2) * 4).to(tl.int32)) & 15) ^ 8) - 8
    v = value.to(tl.float32) * tl.load(scales + at // block, mask=inside, other=0.0)
    if added:
        v = tl.load(out + at, mask=inside, other=0.0) + v * weight
    tl.store(out + at, v, mask=inside)
