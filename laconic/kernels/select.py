"""Loops that find large entries: magnitudes of floats order as their bits do, so that integers are compared.

A threshold is such bits with the sign cleared. NaN and infinity are above every threshold: they always come out as
candidates, which is where the caller looks for them.

All loops are compiled, or read from numba's cache, when this is imported: which of them a tensor needs depends on its
size and values, and a run should not stop to compile in its middle.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import BEYOND_CACHE, empty, empty_like, in_parallel, side_by_side
from laconic.kernels.simd import LINE, WIDTH, ahead, fence, large, lowest, split, split_around_cache

MAGNITUDE = np.int32(0x7FFFFFFF)
AHEAD = 64  # entries for which memory is fetched before it is needed
SAMPLE = 1 << 16  # magnitudes that the guess at the threshold looks at, in pairs
PAIR = WIDTH // 2  # entries from one of a pair to the other: mostly in the same line of memory
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
        stride = 2 * n // SAMPLE | 1  # odd, so that it does not step along one column of a matrix
        sample = np.empty(2 * (-(-(n - PAIR) // stride)), np.float32)
        take(x, x if e is None else e, e is not None, stride, sample)
        expected = k * sample.size / n
        # Two standard deviations: to guess too high once in fifty times costs less than to put more back every time.
        rank = min(sample.size, math.ceil(expected + 2 * math.sqrt(expected) + 2))
        threshold = int(kth_largest(sample.view(np.int32), rank))
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
    places, values = _settle(found, k, threshold, out)
    return torch.from_numpy(places), torch.from_numpy(values), left


def add_at(out: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """``out[places] += weight * values``."""
    _add_at(out.numpy(), places.numpy(), values.numpy(), weight)


def _gather(x, e, out, threshold, most, n) -> Candidates:
    """Candidates of each part of ``x`` (``+ e``, into ``out``), in order; none if one part has more than ``most``."""
    loop = sweep
    if out is not None and out.nbytes >= BEYOND_CACHE and out.ctypes.data % LINE == 0:
        loop = sweep_around_cache

    def run(_: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        room = min(stop - start, most) + WIDTH
        places, values = empty(room, np.int32), empty(room, np.float32)
        if out is None:
            count = collect(x, x.view(np.int32), threshold, places, values, start, stop)
        else:
            count = loop(x, e, out, threshold, places, values, start, stop)
        return None if count == FULL else (places[:count], values[:count])

    found = in_parallel(run, n, WIDTH)
    return [] if any(part is None for part in found) else found


def _settle(found: Candidates, k: int, threshold: int, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Of candidates that reach ``threshold`` the ``k`` largest, of equal ones the first; the others go back to ``out``.

    The parts are worked on side by side; only counts and what lies in one narrow bin are looked at together.
    """
    bits = [values.view(np.int32) for _, values in found]
    tables = [np.zeros((2, BINS), np.int64) for _ in found]
    side_by_side([partial(spread, *one, threshold) for one in zip(bits, tables, strict=True)])
    counts = np.stack([table.sum(0) for table in tables])
    above = np.cumsum(counts.sum(0)[::-1])[::-1]  # candidates in this bin and those above
    place = int(np.searchsorted(-above, -k, side="right")) - 1  # the highest from which there are k
    above_place = counts[:, place + 1 :].sum(1)
    near = [np.empty(count + 1, np.int32) for count in counts[:, place]]
    side_by_side([partial(inside, b, threshold, place, into) for b, into in zip(bits, near, strict=True)])
    near = [into[:-1] for into in near]
    limit = int(kth_largest(np.concatenate(near), k - int(above_place.sum())))
    above_limit = above_place + [np.count_nonzero(into > limit) for into in near]
    ties, start, keeping = k - int(above_limit.sum()), 0, []
    kept = empty(k, np.int32), empty(k, np.float32)
    for (places, values), b, into, sure in zip(found, bits, near, above_limit, strict=True):
        tied = min(ties, int(np.count_nonzero(into == limit)))
        ties, end = ties - tied, start + int(sure) + tied
        back = values if out is None else out
        keeping.append(
            partial(keep, places, values, b, limit, tied, kept[0][start:end], kept[1][start:end], back, out is not None)
        )
        start = end
    side_by_side(keeping)
    return kept


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


@njit("(f4[::1], f4[::1], b1, i8, f4[::1])", cache=True, nogil=True)
def take(x, residual, both, stride, sample):
    """Pairs of ``x``, or of ``x + residual``: far apart in memory, so each is fetched before its turn."""
    for i in range(sample.size // 2):
        at = i * stride
        soon = at + AHEAD * stride
        if soon < x.size:
            ahead(x, soon)
            if both:
                ahead(residual, soon)
        sample[2 * i] = x[at] + residual[at] if both else x[at]
        sample[2 * i + 1] = x[at + PAIR] + residual[at + PAIR] if both else x[at + PAIR]


@njit("(i4[::1], i8[:, ::1], i8)", cache=True, nogil=True)
def spread(bits, table, threshold):
    """Count magnitudes that reach ``threshold`` by how far above it they are; the last bin has all that are farther."""
    for i in range(bits.size):  # two tables, so that equal neighbours do not wait for one another's sum
        table[i & 1, min((np.int64(bits[i] & MAGNITUDE) - threshold) >> BIN, BINS - 1)] += 1


@njit("(i4[::1], i8, i8, i4[::1])", cache=True, nogil=True)
def inside(bits, threshold, place, into):
    """The magnitudes in one bin of :func:`spread`, into memory for one more: each is written, and most again."""
    count = 0
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        into[count] = magnitude
        count += min((np.int64(magnitude) - threshold) >> BIN, BINS - 1) == place


@njit("(i4[::1], f4[::1], i4[::1], i8, i8, i4[::1], f4[::1], f4[::1], b1)", cache=True, nogil=True)
def keep(places, values, bits, limit, ties, kept_places, kept_values, out, restore):
    """Take what is above ``limit`` and the first ``ties`` at it, in order; to ``restore`` the others go to ``out``."""
    k = kept_places.size
    count, refused = 0, 0
    back, value = np.empty(places.size - k + 1, np.int32), np.empty(places.size - k + 1, np.float32)
    for i in range(places.size):
        magnitude = bits[i] & MAGNITUDE
        tied = magnitude == limit and ties > 0
        taken = magnitude > limit or tied
        ties -= tied
        back[refused] = places[i]  # written in any case, and then again: quicker than to guess which it will be
        value[refused] = values[i]
        refused += not taken
        if taken:
            kept_places[count] = places[i]
            kept_values[count] = values[i]
            count += 1
    if restore:
        for i in range(refused):  # far apart in memory: each is fetched before it is needed
            if i + AHEAD < refused:
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
