"""Loops that find large entries: magnitudes of floats order as their bits do, so that integers are compared.

A threshold is such bits with the sign cleared. NaN and infinity are above every threshold: they always come out as
candidates, which is where the caller looks for them.

All loops are compiled, or read from numba's cache, when this is imported: which of them a tensor needs depends on its
size and values, and a run should not stop to compile in its middle.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import KEPT, empty_like, in_parallel
from laconic.kernels.simd import LINE, WIDTH, ahead, fence, large, lowest, split, split_around_cache

MAGNITUDE = np.int32(0x7FFFFFFF)
AHEAD = 64  # entries for which memory is fetched before it is needed
SAMPLE = 1 << 16  # magnitudes that the guess at the threshold looks at
WORTH_GUESSING = 1 << 15  # under this many entries a histogram is as quick
BINS, BIN = 4096, 10  # of the histogram that separates candidates: half a power of two above the threshold
FULL = -1

Candidates = list[tuple[np.ndarray, np.ndarray]]


def pick(flat: Tensor, residual: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Places (rising) and values of the ``k >= 1`` largest of ``flat + residual``, the first of equal ones; exact.

    Also what is left of the sum without them, if there is a residual. A sample guesses a threshold that a little more
    than ``k`` entries pass; one pass over memory collects these, and only they are looked at closely. Where the guess
    was wrong, a histogram finds a threshold in another pass.
    """
    n = flat.numel()
    x = flat.numpy()
    e = None if residual is None else residual.numpy()
    left = None if residual is None else empty_like(flat)
    out = None if left is None else left.numpy()
    found: Candidates = []
    threshold = 0
    if n >= WORTH_GUESSING and 4 * k <= n:
        stride = n // SAMPLE | 1  # odd, so that it does not step along one column of a matrix
        sample = x[::stride] if e is None else x[::stride] + e[::stride]
        expected = k * sample.size / n
        # Two standard deviations: to guess too high once in fifty times costs less than to put more back every time.
        rank = min(sample.size, math.ceil(expected + 2 * math.sqrt(expected) + 2))
        threshold = int(kth_largest(np.ascontiguousarray(sample).view(np.int32), rank))
        found = _gather(x, e, out, threshold, 2 * k, n)
    if sum(places.size for places, _ in found) < k:
        if out is not None:
            np.add(x, e, out=out)  # type: ignore[arg-type]
            x = out
        counts = np.sum(in_parallel(lambda _, start, stop: _count(x, start, stop), n), axis=0)
        passing = np.cumsum(counts[::-1])
        place = int(np.searchsorted(passing, k))
        threshold = (len(passing) - 1 - place) << 20
        found = _gather(x, None, None, threshold, int(passing[place]), n)
        if out is not None:
            for places, _ in found:
                out[places] = 0
    places, values = found[0] if len(found) == 1 else (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    settle(places, values, values.view(np.int32), k, threshold, values if out is None else out, out is not None)
    return torch.from_numpy(places[:k]), torch.from_numpy(values[:k]), left


def add_at(out: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """``out[places] += weight * values``."""
    _add_at(out.numpy(), places.numpy(), values.numpy(), weight)


def _gather(x, e, out, threshold, most, n) -> Candidates:
    """Candidates of each part of ``x`` (``+ e``, into ``out``), in order; none if one part has more than ``most``."""
    loop = sweep
    if out is not None and out.nbytes >= KEPT and out.ctypes.data % LINE == 0:
        loop = sweep_around_cache

    def run(_: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        room = min(stop - start, most) + WIDTH
        places, values = np.empty(room, np.int32), np.empty(room, np.float32)
        if out is None:
            count = collect(x, x.view(np.int32), threshold, places, values, start, stop)
        else:
            count = loop(x, e, out, threshold, places, values, start, stop)
        return None if count == FULL else (places[:count], values[:count])

    found = in_parallel(run, n, WIDTH)
    return [] if any(part is None for part in found) else found


def _count(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    table = np.zeros((2, 2048), np.int64)
    histogram(x.view(np.int32), table, start, stop)
    return table.sum(0)


@njit("i8(f4[::1], f4[::1], f4[::1], i4, i4[::1], f4[::1], i8, i8, i8)", cache=True, nogil=True)
def _sweep_rest(x, residual, out, threshold, places, values, start, stop, count):
    one = np.empty(1, np.float32)
    bits = one.view(np.int32)
    if count + stop - start > places.size:
        return FULL
    for i in range(start, stop):
        one[0] = x[i] + residual[i]
        out[i] = one[0]
        if (bits[0] & MAGNITUDE) >= threshold:
            places[count] = i
            values[count] = one[0]
            out[i] = np.float32(0)
            count += 1
    return count


@njit("i8(f4[::1], f4[::1], f4[::1], i4, i4[::1], f4[::1], i8, i8)", cache=True, nogil=True)
def sweep(x, residual, out, threshold, places, values, start, stop):
    """``out = x + residual``, where what reaches ``threshold`` is put into ``places`` and ``values`` and left 0.

    Returns how many, or ``FULL`` when ``places`` has no room (``out`` is then good for nothing).
    """
    room = places.size - WIDTH
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for base in range(start, whole, WIDTH):
        mask = split(x, residual, out, base, threshold)
        if mask:
            if count > room:
                return FULL
            while mask:
                i = base + lowest(mask)
                places[count] = i
                values[count] = x[i] + residual[i]
                count += 1
                mask &= mask - 1
    return _sweep_rest(x, residual, out, threshold, places, values, whole, stop, count)


@njit("i8(f4[::1], f4[::1], f4[::1], i4, i4[::1], f4[::1], i8, i8)", cache=True, nogil=True)
def sweep_around_cache(x, residual, out, threshold, places, values, start, stop):
    """:func:`sweep` for what is larger than the cache: less memory moves where a store fetches no line first."""
    room = places.size - WIDTH
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for base in range(start, whole, WIDTH):
        mask = split_around_cache(x, residual, out, base, threshold)
        if mask:
            if count > room:
                return FULL
            while mask:
                i = base + lowest(mask)
                places[count] = i
                values[count] = x[i] + residual[i]
                count += 1
                mask &= mask - 1
    fence()
    return _sweep_rest(x, residual, out, threshold, places, values, whole, stop, count)


@njit("i8(f4[::1], i4[::1], i4, i4[::1], f4[::1], i8, i8)", cache=True, nogil=True)
def collect(x, bits, threshold, places, values, start, stop):
    """What of ``x`` reaches ``threshold``, into ``places`` and ``values``; returns as :func:`sweep`."""
    room = places.size - WIDTH
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for base in range(start, whole, WIDTH):
        mask = large(x, base, threshold)
        if mask:
            if count > room:
                return FULL
            while mask:
                i = base + lowest(mask)
                places[count] = i
                values[count] = x[i]
                count += 1
                mask &= mask - 1
    if count + stop - whole > places.size:
        return FULL
    for i in range(whole, stop):
        if (bits[i] & MAGNITUDE) >= threshold:
            places[count] = i
            values[count] = x[i]
            count += 1
    return count


@njit("(i4[::1], i8[:, ::1], i8, i8)", cache=True, nogil=True)
def histogram(bits, table, start, stop):
    """Count magnitudes by their upper 11 bits (exponent and 3 of the mantissa) into the two rows of ``table``."""
    middle = start + (stop - start) // 2 * 2
    for i in range(start, middle, 2):  # two tables, so that equal neighbours do not wait for one another's sum
        table[0, (bits[i] & MAGNITUDE) >> 20] += 1
        table[1, (bits[i + 1] & MAGNITUDE) >> 20] += 1
    for i in range(middle, stop):
        table[0, (bits[i] & MAGNITUDE) >> 20] += 1


@njit("i4(i4[::1], i8)", cache=True, nogil=True)
def kth_largest(bits, k):
    """The magnitude, as bits, of the ``k``-th largest (k >= 1): 11, 11 and 9 bits at a time, exact."""
    low, width, want = np.int32(0), 31, k
    for digits in (11, 11, 9):
        width -= digits
        table = np.zeros(1 << digits, np.int64)
        prefix = low >> (width + digits)
        for i in range(bits.size):
            magnitude = bits[i] & MAGNITUDE
            if (magnitude >> (width + digits)) == prefix:
                table[(magnitude >> width) & ((1 << digits) - 1)] += 1
        digit = (1 << digits) - 1
        while digit > 0 and want > table[digit]:
            want -= table[digit]
            digit -= 1
        low |= np.int32(digit) << width
    return low


@njit("i4(i4[::1], i8, i8)", cache=True, nogil=True)
def _limit(bits, k, threshold):
    """:func:`kth_largest` of magnitudes that all reach ``threshold``, quick where the ``k``-th is little above it."""
    table = np.zeros((2, BINS), np.int64)
    for i in range(bits.size):  # two tables, so that equal neighbours do not wait for one another's sum
        table[i & 1, min((np.int64(bits[i] & MAGNITUDE) - threshold) >> BIN, BINS - 1)] += 1
    want, place = k, BINS - 1
    while want > table[0, place] + table[1, place]:
        want -= table[0, place] + table[1, place]
        place -= 1
    if place == BINS - 1:
        return kth_largest(bits, k)
    inside = np.empty(table[0, place] + table[1, place], np.int32)
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        if (np.int64(magnitude) - threshold) >> BIN == place:
            inside[count] = magnitude
            count += 1
    return kth_largest(inside, want)


@njit("(i4[::1], f4[::1], i4[::1], i8, i8, f4[::1], b1)", cache=True, nogil=True)
def settle(places, values, bits, k, threshold, out, restore):
    """Keep the ``k`` largest of candidates that reach ``threshold``, in place and in order; of equal ones the first.

    With ``restore``, the others go back to where they came from in ``out``. ``bits`` is ``values``' memory.
    """
    limit = _limit(bits, k, threshold)
    above = 0
    for i in range(bits.size):
        above += (bits[i] & MAGNITUDE) > limit
    ties = k - above
    kept, refused = 0, 0
    spare = places.size - k
    back, value = np.empty(spare, np.int32), np.empty(spare, np.float32)
    for i in range(places.size):
        magnitude = bits[i] & MAGNITUDE
        tied = magnitude == limit and ties > 0
        if magnitude > limit or tied:
            ties -= tied
            places[kept] = places[i]
            values[kept] = values[i]
            kept += 1
        else:
            back[refused] = places[i]
            value[refused] = values[i]
            refused += 1
    if restore:
        for i in range(spare):  # far apart in memory: each is fetched before it is needed
            if i + AHEAD < spare:
                ahead(out, back[i + AHEAD])
            out[back[i]] = value[i]


@njit("(f4[::1], i4[::1], f4[::1], f8)", cache=True, nogil=True)
def _add_at(out, places, values, weight):
    factor = np.float32(weight)
    fetched = max(0, places.size - AHEAD)
    for i in range(fetched):
        ahead(out, places[i + AHEAD])
        out[places[i]] += factor * values[i]
    for i in range(fetched, places.size):
        out[places[i]] += factor * values[i]
