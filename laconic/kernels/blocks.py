"""Loops that turn blocks of values into codes of a few bits and back, in one pass over memory.

A block is looked at several times (its largest, its codes, what they leave), but lies in the first cache meanwhile.
Loops run over slices from 0, which is what lets them be vectorised; magnitudes are compared as integers, where NaN and
infinity are above all others: they end in the scale, which is where the caller looks for them. No loop may be
compiled to another order of sums, or to fused multiply-adds: the plain forms would differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.compress.bits import packed_size, steps
from laconic.compress.e3m0 import SMALLEST
from laconic.compress.noise import FIRST, SECOND, halves
from laconic.kernels import BEYOND_CACHE, empty_like, in_parallel, new
from laconic.kernels.linear import decode, encode
from laconic.kernels.simd import LINE, WIDTH, fence, move_around_cache

MAGNITUDE = np.int32(0x7FFFFFFF)
TINY = np.finfo(np.float32).tiny
HUGE = np.finfo(np.float32).max
INFINITE = 0x7F800000
POWERS_NEAREST, POWERS_LEAST = np.float32(SMALLEST), np.float32(2.0**-6)
MIX_1, MIX_2 = np.uint32(FIRST), np.uint32(SECOND)
CHUNK = 1024  # values whose magnitudes are summed together, where one sum is wanted of a whole tensor
SPAN = 2048  # values that are looked at together: a loop over fewer is not worth its vectors
FEW = 256  # values of a block that is worth loops of its own
TRIT_SPAN = 1920  # a multiple of 8 and of 5
LARGEST, NORM = 0, 1  # what a block is scaled by


def linear(
    flat: Tensor, residual: Tensor | None, block: int, levels: int, bits: int, norm: int, key: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales, and what they leave of ``flat + residual`` (if there is one)."""
    x, e, source, left = _sources(flat, residual)
    codes, scales = _new(packed_size(flat.numel(), bits), torch.uint8), _new(-(-flat.numel() // block), torch.float32)
    (low, high), moves, top = _words(key), moves_of(bits), np.float32(levels)
    c, s, around = codes.numpy(), scales.numpy(), _around(left, block)
    words = [None if word is None else np.uint32(word).view(np.int32) for word in (low, high)]
    four, past = (True if bits == 4 else None), (True if around else None)

    def run(start: int, stop: int) -> None:
        whole = start
        if norm == LARGEST and bits in (4, 8) and not block % WIDTH:
            whole = max(start, stop // block * block)
            encode(x, e, source, c, s, block, top, *words, four, past, start, whole)
        if whole < stop:
            _linear(x, e, source, c, s, block, top, bits, norm, low, high, moves, around, whole, stop)

    _parts(run, flat, block)
    return codes, scales, left


def linear_back(codes: Tensor, scales: Tensor, block: int, bits: int, out: Tensor, weight: float | None) -> None:
    """Values of codes, into ``out``, or ``weight`` times them added to it."""
    c, s, o, w, moves = codes.numpy(), scales.numpy(), out.numpy(), _single(weight), moves_of(bits)
    four = True if bits == 4 else None

    def run(start: int, stop: int) -> None:
        whole = start
        if bits in (4, 8) and not block % WIDTH:
            whole = max(start, stop // block * block)
            decode(c, s, o, block, w, four, start, whole)
        if whole < stop:
            _linear_back(c, s, o, block, bits, w, moves, whole, stop)

    _parts(run, out, block)


def powers(flat: Tensor, residual: Tensor | None, block: int, key: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`linear`, for :func:`laconic.compress.e3m0`; the scales are the upper halves of floats."""
    x, e, source, left = _sources(flat, residual)
    codes, scales = _new(packed_size(flat.numel(), 4), torch.uint8), _new(-(-flat.numel() // block), torch.int16)
    (low, high), moves = _words(key), moves_of(4)
    c, s, around = codes.numpy(), scales.numpy(), _around(left, block)
    _parts(lambda i, j: _powers(x, e, source, c, s, block, low, high, moves, around, i, j), flat, block)
    return codes, scales, left


def powers_back(codes: Tensor, scales: Tensor, block: int, out: Tensor, weight: float | None) -> None:
    """As :func:`linear_back`; the scales are float32 here."""
    c, s, o, w, moves = codes.numpy(), scales.numpy(), out.numpy(), _single(weight), moves_of(4)
    _parts(lambda i, j: _powers_back(c, s, o, block, w, moves, i, j), out)


def eighths(
    flat: Tensor, residual: Tensor | None, block: int, layout: tuple[int, int, float, int], key: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As :func:`linear`, for :func:`laconic.compress.fp8`; ``layout``: mantissa bits, bias, largest value, its code."""
    x, e, source, left = _sources(flat, residual)
    codes, scales = _new(flat.numel(), torch.uint8), _new(-(-flat.numel() // block), torch.float32)
    (low, high), (mantissa, bias, top, last) = _words(key), layout
    table = np.empty(0 if residual is None else 256, np.float32)
    _spell(table, mantissa, bias)
    c, s, t, around = codes.numpy(), scales.numpy(), np.float32(top), _around(left, block)
    _parts(
        lambda i, j: _eighths(x, e, source, c, s, block, mantissa, bias, t, last, table, low, high, around, i, j),
        flat,
        block,
    )
    return codes, scales, left


def eighths_back(codes: Tensor, scales: Tensor, block: int, table: Tensor, out: Tensor, weight: float | None) -> None:
    """As :func:`linear_back`; ``table`` has the value of every code."""
    c, s, o, w, t = codes.numpy(), scales.numpy(), out.numpy(), _single(weight), table.numpy()
    _parts(lambda i, j: _eighths_back(c, s, o, block, t, w, i, j), out)


def exponents(
    flat: Tensor, residual: Tensor | None, first: int, last: int, joined: bool, key: int
) -> tuple[Tensor, Tensor | None, int, Tensor | None]:
    """Exponents of values rounded to powers of two, less ``first``, between 0 (which means 0) and ``last``.

    Also the signs, as packed bits or (``joined``) as the upper bit of each exponent, the largest magnitude as bits,
    and what is left.
    """
    x, e, source, left = _sources(flat, residual)
    codes = _new(flat.numel(), torch.uint8)
    packed = None if joined else _new(packed_size(flat.numel(), 1), torch.uint8)
    (low, high), moves = _words(key), moves_of(1)
    c, s, around = codes.numpy(), None if packed is None else packed.numpy(), _around(left, SPAN)
    work = lambda i, j: _exponents(x, e, source, c, s, first, last, low, high, moves, around, i, j)  # noqa: E731
    found = _parts(work, flat, SPAN)
    return codes, packed, max(found), left


def exponents_back(codes: Tensor, packed: Tensor | None, first: int, out: Tensor, weight: float | None) -> None:
    """As :func:`linear_back`."""
    c, o, w, moves = codes.numpy(), out.numpy(), _single(weight), moves_of(1)
    s = None if packed is None else packed.numpy()
    _parts(lambda i, j: _exponents_back(c, s, o, first, w, moves, i, j), out)


def signs(flat: Tensor, residual: Tensor | None, chunk: int, square: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bits that are 1 where the value is not negative, the sum of magnitudes or squares of each chunk, and the sum."""
    x, e, source, left = _sources(flat, residual)
    packed, sums = _new(packed_size(flat.numel(), 1), torch.uint8), _new(-(-flat.numel() // chunk), torch.float64)
    moves, p, s = moves_of(1), packed.numpy(), sums.numpy()
    _parts(lambda i, j: _signs(x, e, source, p, s, chunk, square, moves, i, j), flat, chunk)
    return packed, sums, left


def less_signs(left: Tensor, scales: Tensor, block: int) -> None:
    """Take from each value its sign times its block's scale."""
    o, s = left.numpy(), scales.numpy()
    _parts(lambda i, j: _less_signs(o, s, block, i, j), left)


def signs_back(packed: Tensor, scales: Tensor, block: int, out: Tensor, weight: float | None) -> None:
    """As :func:`linear_back`."""
    p, s, o, w, moves = packed.numpy(), scales.numpy(), out.numpy(), _single(weight), moves_of(1)
    _parts(lambda i, j: _signs_back(p, s, o, block, w, moves, i, j), out)


def amounts(flat: Tensor, residual: Tensor | None, squared: bool) -> tuple[int, Tensor | None, Tensor | None]:
    """The largest magnitude of ``flat + residual`` as bits, the sum of squares of each chunk, and the sum."""
    x, e, source, left = _sources(flat, residual)
    sums = _new(-(-flat.numel() // CHUNK), torch.float64)
    s = sums.numpy()
    found = _parts(lambda i, j: _amounts(x, e, source, s, squared, i, j), flat, CHUNK)
    return max(found), sums if squared else None, left


def trits(flat: Tensor, scale: float, key: int, left: bool) -> Tensor:
    """Five a byte: -1, 0 or 1 at random for values within ``scale``; with ``left``, ``flat`` becomes what is left."""
    packed = _new(-(-flat.numel() // 5), torch.uint8)
    x, p, (low, high), s = flat.numpy(), packed.numpy(), _words(key), np.float32(scale)
    _parts(lambda i, j: _trits(x, p, s, left, low, high, i, j), flat, TRIT_SPAN)
    return packed


def trits_back(packed: Tensor, scale: float, out: Tensor, weight: float | None) -> None:
    """As :func:`linear_back`."""
    p, s, o, w = packed.numpy(), np.float32(scale), out.numpy(), _single(weight)
    _parts(lambda i, j: _trits_back(p, s, o, w, i, j), out, TRIT_SPAN)


def _sources(flat: Tensor, residual: Tensor | None) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, Tensor | None]:
    """The values, the residual, where their sum is read from, and the tensor that becomes what is left of it."""
    x = flat.numpy()
    if residual is None:
        return x, None, x, None
    left = empty_like(flat)
    return x, residual.numpy(), left.numpy(), left


def _around(left: Tensor | None, block: int) -> bool:
    """Whether what is left shall go around the cache: it is larger, and lines need not be fetched to be overwritten.

    Its parts must begin with a line: where a vector is said to begin with one and does not, the processor stops.
    """
    if left is None or left.numel() * left.element_size() < BEYOND_CACHE or left.data_ptr() % LINE:
        return False
    return block % WIDTH == 0 and block <= SPAN


def _new(numel: int, dtype: torch.dtype) -> Tensor:
    return new((numel,), dtype, torch.device("cpu"))


def _words(key: int | None) -> tuple[np.uint32 | None, np.uint32 | None]:
    if key is None:
        return None, None
    low, high = halves(key)
    return np.uint32(low), np.uint32(high)


def _single(weight: float | None) -> np.float32 | None:
    return None if weight is None else np.float32(weight)


def moves_of(bits: int) -> np.ndarray:
    """The masks, widths and shifts of :func:`laconic.compress.bits.steps`."""
    return np.array(steps(bits), dtype=np.uint64)


def _parts(run: Callable[[int, int], Any], like: Tensor, block: int = 1) -> list[Any]:
    """``run(start, stop)`` over parts that begin with a block and with a byte."""
    n = like.numel()
    return in_parallel(lambda _, start, stop: run(min(start, n), min(stop, n)), n, math.lcm(block, 8))


@njit(cache=True, nogil=True)
def mixed(place, low, high):
    """32 random bits: :func:`laconic.compress.noise.noise`."""
    h = np.uint32(np.uint32(place) + low)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(16)))
    h = np.uint32(h * MIX_1)
    h = np.uint32(h ^ high)
    h = np.uint32(h ^ np.uint32(h >> np.uint32(15)))
    h = np.uint32(h * MIX_2)
    return np.uint32(h ^ np.uint32(h >> np.uint32(16)))


@njit(cache=True, nogil=True)
def uniform(place, low, high):
    """A uniform number in [0, 1): :func:`laconic.compress.noise.uniform`."""
    return np.float32(np.int32(mixed(place, low, high) >> np.uint32(8))) * np.float32(2.0**-24)


@njit(cache=True, nogil=True)
def plus(x, residual, out):
    for i in range(out.size):
        out[i] = x[i] + residual[i]


@njit(cache=True, nogil=True)
def put_around_cache(values, out):
    """Copy into ``out``, which begins at a cache line."""
    whole_lines = out.size // WIDTH * WIDTH
    for i in range(0, whole_lines, WIDTH):
        move_around_cache(values, i, out, i)
    for i in range(whole_lines, out.size):
        out[i] = values[i]


@njit(cache=True, nogil=True)
def largest(bits):
    """The largest magnitude, as bits."""
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, np.int32(bits[i] & MAGNITUDE))
    return top


@njit(cache=True, nogil=True)
def tops(bits, block, out, space):
    """The largest magnitude of each block, as bits. ``space`` is as long as ``bits``, or empty if a block is large."""
    if block & (block - 1) or not 1 < block < FEW or bits.size > space.size:
        for b in range(out.size):
            out[b] = largest(bits[b * block : (b + 1) * block])
        return
    # The larger of each two, again and again: for many small blocks quicker than block after block.
    full = bits.size // block
    count, width = full * block // 2, block // 2
    for i in range(count):
        space[i] = max(np.int32(bits[2 * i] & MAGNITUDE), np.int32(bits[2 * i + 1] & MAGNITUDE))
    while width > 1:
        count //= 2
        for i in range(count):
            space[i] = max(space[2 * i], space[2 * i + 1])
        width //= 2
    for b in range(full):
        out[b] = space[b]
    if full < out.size:
        out[full] = largest(bits[full * block :])


@njit(cache=True, nogil=True)
def spread(values, base, block, out):
    """``out[i]`` becomes the value of the block that place ``base + i`` is in."""
    at = 0
    while at < out.size:
        b = (base + at) // block
        end = min((b + 1) * block - base, out.size)
        v = values[b]
        part = out[at:end]
        for i in range(part.size):
            part[i] = v
        at = end


@njit(cache=True, nogil=True)
def halved(sums, count):
    """The sum of the first ``count``, by halves, in place: :func:`laconic.compress.blocks.halved`."""
    while count > 1:
        half = 1
        while 2 * half < count:
            half *= 2
        upper = sums[half:count]
        for i in range(upper.size):
            sums[i] += upper[i]
        count = half
    return sums[0]


@njit(cache=True, nogil=True)
def squares(x, sums):
    for i in range(x.size):
        v = np.float64(x[i])
        sums[i] = v * v


@njit(cache=True, nogil=True)
def nearest(x, factors, codes, mask):
    for i in range(codes.size):
        codes[i] = np.uint8(np.int32(np.rint(x[i] * factors[i])) & mask)


@njit(cache=True, nogil=True)
def rounded(x, factors, levels, codes, mask, low, high):
    """Up or down at random; ``low`` has the place of the first value in it already."""
    most = np.int32(levels)
    least = np.int32(-most)
    for i in range(codes.size):
        code = np.int32(np.floor(x[i] * factors[i] + uniform(i, low, high)))
        codes[i] = np.uint8(min(max(code, least), most) & mask)


@njit(cache=True, nogil=True)
def whole(codes, scales, out, sign):
    """Values of codes whose sign is their bit ``sign``."""
    for i in range(out.size):
        out[i] = np.float32(np.int32(np.int32(codes[i]) ^ sign) - sign) * scales[i]


@njit(cache=True, nogil=True)
def less(codes, scales, out, sign):
    """Take these values away from ``out``."""
    for i in range(out.size):
        out[i] -= np.float32(np.int32(np.int32(codes[i]) ^ sign) - sign) * scales[i]


@njit(cache=True, nogil=True)
def pack(codes, words, pairs, count, bits, moves, out):
    """The first ``count`` codes, into ``out``; ``words`` and ``pairs`` are the memory of ``codes``."""
    for i in range(count, -(-count // 8) * 8):
        codes[i] = 0
    if bits == 4:
        for i in range(out.size):
            out[i] = np.uint8(pairs[i] | np.uint16(pairs[i] >> np.uint16(4)))
        return
    m1, w1, s1 = moves[0, 0], moves[0, 1], moves[0, 2]
    m2, w2, s2 = moves[1, 0], moves[1, 1], moves[1, 2]
    m3, w3, s3 = moves[2, 0], moves[2, 1], moves[2, 2]
    if bits == 1:
        for i in range(out.size):
            word = words[i]
            word = (word & m1) | ((word >> s1) & (m1 << w1))
            word = (word & m2) | ((word >> s2) & (m2 << w2))
            out[i] = np.uint8((word & m3) | ((word >> s3) & (m3 << w3)))
        return
    at = 0
    for i in range(-(-count // 8)):
        word = words[i]
        word = (word & m1) | ((word >> s1) & (m1 << w1))
        word = (word & m2) | ((word >> s2) & (m2 << w2))
        word = (word & m3) | ((word >> s3) & (m3 << w3))
        for _ in range(min(bits, out.size - at)):
            out[at] = np.uint8(word & np.uint64(255))
            word >>= np.uint64(8)
            at += 1


@njit(cache=True, nogil=True)
def unpack(packed, bits, moves, words, pairs):
    """The codes of ``packed``, into the memory of ``words`` and ``pairs``."""
    if bits == 4:
        for i in range(packed.size):
            pair = np.uint16(packed[i])
            pairs[i] = np.uint16((pair | np.uint16(pair << np.uint16(4))) & np.uint16(0x0F0F))
        return
    m1, w1, s1 = moves[0, 0], moves[0, 1], moves[0, 2]
    m2, w2, s2 = moves[1, 0], moves[1, 1], moves[1, 2]
    m3, w3, s3 = moves[2, 0], moves[2, 1], moves[2, 2]
    if bits == 1:
        for i in range(packed.size):
            word = np.uint64(packed[i])
            word = (word & m3) | ((word & (m3 << w3)) << s3)
            word = (word & m2) | ((word & (m2 << w2)) << s2)
            words[i] = (word & m1) | ((word & (m1 << w1)) << s1)
        return
    at = 0
    for i in range(-(-packed.size // bits)):
        word = np.uint64(0)
        for k in range(min(bits, packed.size - at)):
            word |= np.uint64(packed[at]) << np.uint64(8 * k)
            at += 1
        word = (word & m3) | ((word & (m3 << w3)) << s3)
        word = (word & m2) | ((word & (m2 << w2)) << s2)
        words[i] = (word & m1) | ((word & (m1 << w1)) << s1)


@njit(cache=True, nogil=True)
def add_weighted(out, values, weight):
    for i in range(out.size):
        out[i] += values[i] * weight


@njit(cache=True, nogil=True)
def scale_blocks(values, bits, block, levels, norm, sums, space, scales, scale_bits, factors):
    """The scale of each block, and its reciprocal."""
    if norm == LARGEST:
        tops(bits, block, scale_bits, space)
    else:
        for b in range(scales.size):
            part = values[b * block : (b + 1) * block]
            squares(part, sums)
            length = math.sqrt(halved(sums, part.size))
            scales[b] = HUGE if HUGE < length < np.inf else np.float32(length)
    for b in range(scales.size):
        scale = scales[b] / levels
        scales[b] = scale
        factors[b] = np.float32(1) / scale if scale >= TINY else np.float32(0)


@njit(cache=True, nogil=True)
def _linear(x, residual, source, out, scales, block, levels, bits, norm, low, high, moves, around, start, stop):
    group = max(1, SPAN // block) * block
    codes = np.empty(SPAN, np.uint8)
    words, pairs = codes.view(np.uint64), codes.view(np.uint16)
    sums = np.empty(min(block, stop - start) if norm == NORM else 0, np.float64)
    spread_scales, spread_factors = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    factors, space = np.empty(group // block, np.float32), np.empty(SPAN, np.int32)
    work = np.empty(SPAN, np.float32) if around else source
    work_bits, scale_bits = work.view(np.int32), scales.view(np.int32)
    sign = np.int32(1) << np.int32(bits - 1)
    mask = np.int32(2 * sign - 1)
    for first in range(start, stop, group):
        last = min(first + group, stop)
        shift = first if around else 0
        if residual is not None:
            plus(x[first:last], residual[first:last], work[first - shift : last - shift])
        b, blocks = first // block, -(-(last - first) // block)
        mine = scales[b : b + blocks]
        scale_blocks(
            work[first - shift : last - shift],
            work_bits[first - shift : last - shift],
            block,
            levels,
            norm,
            sums,
            space,
            mine,
            scale_bits[b : b + blocks],
            factors,
        )
        for base in range(first, last, SPAN):
            end = min(base + SPAN, last)
            values = work[base - shift : end - shift]
            spread(factors, base - first, block, spread_factors[: end - base])
            to = out[base:end] if bits == 8 else codes[: end - base]
            if low is None:
                nearest(values, spread_factors, to, mask)
            else:
                rounded(values, spread_factors, levels, to, mask, np.uint32(low + np.uint32(base)), high)
            if residual is not None:
                spread(mine, base - first, block, spread_scales[: end - base])
                less(to, spread_scales, values, sign)
            if bits < 8:
                pack(codes, words, pairs, end - base, bits, moves, out[base * bits // 8 : -(-end * bits // 8)])
        if around:
            put_around_cache(work, source[first:last])
    if around:
        fence()


@njit(cache=True, nogil=True)
def _linear_back(packed, scales, out, block, bits, weight, moves, start, stop):
    codes = np.empty(SPAN + 8, np.uint8)
    words, pairs = codes.view(np.uint64), codes.view(np.uint16)
    values, spread_scales = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    sign = np.int32(1) << np.int32(bits - 1)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        part = packed[base * bits // 8 : -(-end * bits // 8)]
        if bits < 8:
            unpack(part, bits, moves, words, pairs)
            part = codes
        spread(scales, base, block, spread_scales[: end - base])
        if weight is None:
            whole(part, spread_scales, out[base:end], sign)
        else:
            whole(part, spread_scales, values[: end - base], sign)
            add_weighted(out[base:end], values, weight)


@njit(cache=True, nogil=True)
def scale_powers(top_bits, up, factors, scale_bits, scales):
    """Scales of 16 bits: below the largest, or ``up``, so that rounding at random never has to go past the end."""
    for b in range(scales.size):
        top = np.int64(top_bits[b])
        if up and top < INFINITE:
            top = min(top + 65535, np.int64(0x7F7F0000))
        top_bits[b] = np.int32(top & -65536)
        scale = factors[b]  # the memory of top_bits
        scale_bits[b] = np.int16(top >> 16)
        scales[b] = scale
        factor = np.float32(1) / scale if scale >= TINY else np.float32(0)
        factors[b] = factor if up else np.float32(4 / 3) * factor


@njit(cache=True, nogil=True)
def power_codes(x, x_bits, factors, scaled, scaled_bits, codes, low, high):
    """See :func:`laconic.compress.e3m0`."""
    for i in range(codes.size):
        scaled[i] = abs(x[i]) * factors[i]
    if low is None:
        for i in range(codes.size):
            code = min(max(np.int32(np.int32(scaled_bits[i] >> 23) - 120), np.int32(0)), np.int32(7))
            code = max(code, np.int32(scaled[i] >= POWERS_NEAREST))
            codes[i] = np.uint8(code | ((x_bits[i] >> 28) & 8))
    else:
        for i in range(codes.size):
            noise = mixed(i, low, high)
            up = np.int32(np.int32(scaled_bits[i]) + np.int32(noise >> np.uint32(9))) >> 23
            code = min(max(np.int32(up - 120), np.int32(1)), np.int32(7))
            chance = np.float32(np.int32(noise >> np.uint32(8))) * np.float32(2.0**-30)
            code = code if scaled[i] >= POWERS_LEAST else np.int32(chance < scaled[i])
            codes[i] = np.uint8(code | ((x_bits[i] >> 28) & 8))


@njit(cache=True, nogil=True)
def power_values(codes, out_bits):
    for i in range(out_bits.size):
        code = np.int32(codes[i])
        size = np.int32(code & 7)
        exponent = np.int32((size + 120) << 23) if size > 0 else np.int32(0)
        out_bits[i] = np.int32(exponent | np.int32((code & 8) << 28))


@njit(cache=True, nogil=True)
def times(values, scales):
    for i in range(values.size):
        values[i] *= scales[i]


@njit(cache=True, nogil=True)
def minus(out, values):
    for i in range(out.size):
        out[i] -= values[i]


@njit(cache=True, nogil=True)
def copy(out, values):
    for i in range(out.size):
        out[i] = values[i]


@njit(cache=True, nogil=True)
def _powers(x, residual, source, out, scales, block, low, high, moves, around, start, stop):
    group = max(1, SPAN // block) * block
    codes = np.empty(SPAN, np.uint8)
    words, pairs = codes.view(np.uint64), codes.view(np.uint16)
    spread_scales, spread_factors = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    factors, singles = np.empty(group // block, np.float32), np.empty(group // block, np.float32)
    scaled, space = np.empty(SPAN, np.float32), np.empty(SPAN, np.int32)
    work = np.empty(SPAN, np.float32) if around else source
    scaled_bits, top_bits, work_bits = scaled.view(np.int32), factors.view(np.int32), work.view(np.int32)
    for first in range(start, stop, group):
        last = min(first + group, stop)
        shift = first if around else 0
        if residual is not None:
            plus(x[first:last], residual[first:last], work[first - shift : last - shift])
        b, blocks = first // block, -(-(last - first) // block)
        tops(work_bits[first - shift : last - shift], block, top_bits[:blocks], space)
        scale_powers(top_bits, low is not None, factors, scales[b : b + blocks], singles[:blocks])
        for base in range(first, last, SPAN):
            end = min(base + SPAN, last)
            size = end - base
            values, bits = work[base - shift : end - shift], work_bits[base - shift : end - shift]
            spread(factors, base - first, block, spread_factors[:size])
            if low is None:
                power_codes(values, bits, spread_factors, scaled, scaled_bits, codes[:size], None, None)
            else:
                power_codes(
                    values,
                    bits,
                    spread_factors,
                    scaled,
                    scaled_bits,
                    codes[:size],
                    np.uint32(low + np.uint32(base)),
                    high,
                )
            if residual is not None:
                power_values(codes, scaled_bits[:size])
                spread(singles, base - first, block, spread_scales[:size])
                times(scaled[:size], spread_scales)
                minus(values, scaled)
            pack(codes, words, pairs, size, 4, moves, out[base // 2 : -(-end // 2)])
        if around:
            put_around_cache(work, source[first:last])
    if around:
        fence()


@njit(cache=True, nogil=True)
def finish(values, out, weight):
    if weight is None:
        copy(out, values)
    else:
        add_weighted(out, values, weight)


@njit(cache=True, nogil=True)
def _powers_back(packed, scales, out, block, weight, moves, start, stop):
    codes = np.empty(SPAN + 8, np.uint8)
    words, pairs = codes.view(np.uint64), codes.view(np.uint16)
    values, spread_scales = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    bits = values.view(np.int32)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        unpack(packed[base // 2 : -(-end // 2)], 4, moves, words, pairs)
        power_values(codes, bits[: end - base])
        spread(scales, base, block, spread_scales[: end - base])
        times(values[: end - base], spread_scales)
        finish(values, out[base:end], weight)


@njit(cache=True, nogil=True)
def _spell(table, mantissa, bias):
    """The value of every code of 8 bits, but for the largest exponent of e5m2."""
    for code in range(table.size):
        size, digits = (code & 127) >> mantissa, code & ((1 << mantissa) - 1)
        value = math.ldexp(float(digits), 1 - bias - mantissa)
        if size:
            value = math.ldexp(float(digits + (1 << mantissa)), size - bias - mantissa)
        table[code] = np.float32(-value if code & 128 else value)


@njit(cache=True, nogil=True)
def eighth_codes(x, x_bits, factors, scaled, scaled_bits, codes, mantissa, bias, top, last, low, high):
    """See :func:`laconic.compress.fp8`."""
    drop = np.int32(23 - mantissa)
    offset = np.int32((127 - bias) << mantissa)
    half = np.int32((1 << (22 - mantissa)) - 1)
    least = np.float32(2.0 ** (1 - bias))
    steps_in_one = np.float32(2.0 ** (bias - 1 + mantissa))
    most = np.int32(last)
    for i in range(codes.size):
        scaled[i] = min(abs(x[i]) * factors[i], top)
    if low is None:
        for i in range(codes.size):
            bits = np.int32(scaled_bits[i])
            code = np.int32(np.int32(np.int32(bits + half) + np.int32((bits >> drop) & 1)) >> drop) - offset
            small = np.int32(np.rint(scaled[i] * steps_in_one))
            code = np.int32(code) if scaled[i] >= least else small
            codes[i] = np.uint8(min(code, most) | ((x_bits[i] >> 24) & 128))
    else:
        shift = np.uint32(9 + mantissa)
        for i in range(codes.size):
            noise = mixed(i, low, high)
            code = np.int32(np.int32(np.int32(scaled_bits[i]) + np.int32(noise >> shift)) >> drop) - offset
            chance = np.float32(np.int32(noise >> np.uint32(8))) * np.float32(2.0**-24)
            small = np.int32(np.floor(scaled[i] * steps_in_one + chance))
            code = np.int32(code) if scaled[i] >= least else small
            codes[i] = np.uint8(min(code, most) | ((x_bits[i] >> 24) & 128))


@njit(cache=True, nogil=True)
def look_up(codes, table, scales, out):
    for i in range(out.size):
        out[i] = table[codes[i]] * scales[i]


@njit(cache=True, nogil=True)
def _eighths(x, residual, source, out, scales, block, mantissa, bias, top, last, table, low, high, around, start, stop):
    group = max(1, SPAN // block) * block
    spread_scales, spread_factors = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    factors, sums = np.empty(group // block, np.float32), np.empty(0, np.float64)
    scaled, space = np.empty(SPAN, np.float32), np.empty(SPAN, np.int32)
    work = np.empty(SPAN, np.float32) if around else source
    scaled_bits, scale_bits, work_bits = scaled.view(np.int32), scales.view(np.int32), work.view(np.int32)
    for first in range(start, stop, group):
        end_of = min(first + group, stop)
        shift = first if around else 0
        if residual is not None:
            plus(x[first:end_of], residual[first:end_of], work[first - shift : end_of - shift])
        b, blocks = first // block, -(-(end_of - first) // block)
        mine, mine_bits = scales[b : b + blocks], scale_bits[b : b + blocks]
        values, bits = work[first - shift : end_of - shift], work_bits[first - shift : end_of - shift]
        scale_blocks(values, bits, block, top, LARGEST, sums, space, mine, mine_bits, factors)
        for base in range(first, end_of, SPAN):
            end = min(base + SPAN, end_of)
            to, here = out[base:end], work_bits[base - shift : end - shift]
            spread(factors, base - first, block, spread_factors[: end - base])
            values = work[base - shift : end - shift]
            if low is None:
                eighth_codes(
                    values, here, spread_factors, scaled, scaled_bits, to, mantissa, bias, top, last, None, None
                )
            else:
                mixed_in = np.uint32(low + np.uint32(base))
                eighth_codes(
                    values, here, spread_factors, scaled, scaled_bits, to, mantissa, bias, top, last, mixed_in, high
                )
            if residual is not None:
                spread(mine, base - first, block, spread_scales[: end - base])
                look_up(to, table, spread_scales, scaled[: end - base])
                minus(values, scaled)
        if around:
            put_around_cache(work, source[first:end_of])
    if around:
        fence()


@njit(cache=True, nogil=True)
def _eighths_back(codes, scales, out, block, table, weight, start, stop):
    values, spread_scales = np.empty(SPAN, np.float32), np.empty(SPAN, np.float32)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        spread(scales, base, block, spread_scales[: end - base])
        look_up(codes[base:end], table, spread_scales, values[: end - base])
        finish(values, out[base:end], weight)


@njit(cache=True, nogil=True)
def round_exponents(bits, first, last, codes, negative, low, high):
    """Up or down to a power of two at random: the noise is added to the mantissa, and carries into the exponent."""
    least, most = np.int32(first), np.int32(last)
    for i in range(codes.size):
        size = np.int32(bits[i] & MAGNITUDE)
        exponent = np.int32(size + np.int32(mixed(i, low, high) >> np.uint32(9))) >> 23
        code = max(np.int32(min(np.int32(exponent), most) - least), np.int32(0))
        codes[i] = np.uint8(code)
        negative[i] = np.uint8((bits[i] < 0) & (code > 0))


@njit(cache=True, nogil=True)
def exponent_values(codes, negative, first, out_bits):
    least = np.int32(first)
    for i in range(out_bits.size):
        code = np.int32(codes[i])
        exponent = np.int32((code + least) << 23) if code > 0 else np.int32(0)
        out_bits[i] = np.int32(exponent | np.int32(np.int32(negative[i]) << 31))


@njit(cache=True, nogil=True)
def _exponents(x, residual, source, codes, out, first, last, low, high, moves, around, start, stop):
    negative, values = np.empty(SPAN, np.uint8), np.empty(SPAN, np.float32)
    words, pairs, value_bits = negative.view(np.uint64), negative.view(np.uint16), values.view(np.int32)
    work = np.empty(SPAN, np.float32) if around else source
    work_bits = work.view(np.int32)
    top = np.int32(0)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        shift = base if around else 0
        here, to = work[base - shift : end - shift], codes[base:end]
        bits = work_bits[base - shift : end - shift]
        if residual is not None:
            plus(x[base:end], residual[base:end], here)
        top = max(top, largest(bits))
        round_exponents(bits, first, last, to, negative, np.uint32(low + np.uint32(base)), high)
        if residual is not None:
            exponent_values(to, negative, first, value_bits[: end - base])
            minus(here, values)
        if out is None:
            for i in range(to.size):
                to[i] |= np.uint8(negative[i] << np.uint8(7))
        else:
            pack(negative, words, pairs, end - base, 1, moves, out[base // 8 : -(-end // 8)])
        if around:
            put_around_cache(work, source[base:end])
    if around:
        fence()
    return top


@njit(cache=True, nogil=True)
def _exponents_back(codes, packed, out, first, weight, moves, start, stop):
    negative, sizes, values = np.empty(SPAN, np.uint8), np.empty(SPAN, np.uint8), np.empty(SPAN, np.float32)
    words, pairs, value_bits = negative.view(np.uint64), negative.view(np.uint16), values.view(np.int32)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        if packed is None:
            part = codes[base:end]
            for i in range(part.size):
                negative[i] = np.uint8(part[i] >> np.uint8(7))
                sizes[i] = np.uint8(part[i] & np.uint8(127))
            exponent_values(sizes, negative, first, value_bits[: end - base])
        else:
            unpack(packed[base // 8 : -(-end // 8)], 1, moves, words, pairs)
            exponent_values(codes[base:end], negative, first, value_bits[: end - base])
        finish(values, out[base:end], weight)


@njit(cache=True, nogil=True)
def positive(x, codes):
    for i in range(x.size):
        codes[i] = np.uint8(x[i] >= np.float32(0))


@njit(cache=True, nogil=True)
def magnitudes(x, sums):
    for i in range(x.size):
        sums[i] = np.float64(abs(x[i]))


@njit(cache=True, nogil=True)
def _signs(x, residual, source, out, sums, chunk, square, moves, start, stop):
    codes, space = np.empty(SPAN, np.uint8), np.empty(min(chunk, stop - start), np.float64)
    words, pairs = codes.view(np.uint64), codes.view(np.uint16)
    for first in range(start, stop, chunk):
        last = min(first + chunk, stop)
        if residual is not None:
            plus(x[first:last], residual[first:last], source[first:last])
        if square:
            squares(source[first:last], space)
        else:
            magnitudes(source[first:last], space)
        sums[first // chunk] = halved(space, last - first)
        for base in range(first, last, SPAN):
            end = min(base + SPAN, last)
            positive(source[base:end], codes)
            pack(codes, words, pairs, end - base, 1, moves, out[base // 8 : -(-end // 8)])


@njit(cache=True, nogil=True)
def _less_signs(out, scales, block, start, stop):
    spread_scales = np.empty(SPAN, np.float32)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        spread(scales, base, block, spread_scales[: end - base])
        part = out[base:end]
        for i in range(part.size):
            part[i] -= spread_scales[i] if part[i] >= np.float32(0) else -spread_scales[i]


@njit(cache=True, nogil=True)
def sign_values(codes, scales, out):
    for i in range(out.size):
        out[i] = scales[i] if codes[i] > 0 else -scales[i]


@njit(cache=True, nogil=True)
def _signs_back(packed, scales, out, block, weight, moves, start, stop):
    codes, values = np.empty(SPAN, np.uint8), np.empty(SPAN, np.float32)
    words, pairs, spread_scales = codes.view(np.uint64), codes.view(np.uint16), np.empty(SPAN, np.float32)
    for base in range(start, stop, SPAN):
        end = min(base + SPAN, stop)
        unpack(packed[base // 8 : -(-end // 8)], 1, moves, words, pairs)
        spread(scales, base, block, spread_scales[: end - base])
        if weight is None:
            sign_values(codes, spread_scales, out[base:end])
        else:
            sign_values(codes, spread_scales, values[: end - base])
            add_weighted(out[base:end], values, weight)


@njit(cache=True, nogil=True)
def _amounts(x, residual, source, sums, squared, start, stop):
    space = np.empty(CHUNK, np.float64)
    all_bits = source.view(np.int32)
    top = np.int32(0)
    for base in range(start, stop, CHUNK):
        end = min(base + CHUNK, stop)
        if residual is not None:
            plus(x[base:end], residual[base:end], source[base:end])
        top = max(top, largest(all_bits[base:end]))
        if squared:
            squares(source[base:end], space)
            sums[base // CHUNK] = halved(space, end - base)
    return top


@njit(cache=True, nogil=True)
def trit_codes(x, scale, factor, codes, low, high):
    """One more than -1, 0 or 1."""
    for i in range(codes.size):
        inside = min(max(x[i], -scale), scale) * factor
        code = np.int32(np.floor(inside + uniform(i, low, high)))
        codes[i] = np.uint8(min(max(code, np.int32(-1)), np.int32(1)) + 1)


@njit(cache=True, nogil=True)
def trit_values(codes, scale, out):
    for i in range(out.size):
        out[i] = np.float32(np.int32(codes[i]) - np.int32(1)) * scale


@njit(cache=True, nogil=True)
def _trits(x, out, scale, left, low, high, start, stop):
    codes, values = np.empty(TRIT_SPAN, np.uint8), np.empty(TRIT_SPAN, np.float32)
    factor = np.float32(1) / scale if scale >= TINY else np.float32(0)
    for base in range(start, stop, TRIT_SPAN):
        end = min(base + TRIT_SPAN, stop)
        size = end - base
        trit_codes(x[base:end], scale, factor, codes[:size], np.uint32(low + np.uint32(base)), high)
        if left:
            trit_values(codes, scale, values[:size])
            minus(x[base:end], values)
        for i in range(size, -(-size // 5) * 5):
            codes[i] = 0
        part = out[base // 5 : -(-end // 5)]
        for j in range(part.size):
            upper = np.int32(codes[5 * j + 3]) + np.int32(3) * np.int32(codes[5 * j + 4])
            lower = np.int32(codes[5 * j + 1]) + np.int32(3) * np.int32(codes[5 * j + 2])
            part[j] = np.uint8(np.int32(codes[5 * j]) + np.int32(3) * lower + np.int32(27) * upper)


@njit(cache=True, nogil=True)
def _trits_back(packed, scale, out, weight, start, stop):
    codes, values = np.empty(TRIT_SPAN, np.uint8), np.empty(TRIT_SPAN, np.float32)
    digits = np.empty((256, 5), np.uint8)
    for byte in range(256):
        rest = byte
        for k in range(5):
            digits[byte, k] = rest % 3
            rest //= 3
    for base in range(start, stop, TRIT_SPAN):
        end = min(base + TRIT_SPAN, stop)
        part = packed[base // 5 : -(-end // 5)]
        for j in range(part.size):
            byte = part[j]
            for k in range(5):
                codes[5 * j + k] = digits[byte, k]
        trit_values(codes, scale, values[: end - base])
        finish(values, out[base:end], weight)
