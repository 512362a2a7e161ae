"""Loops that find large entries: magnitudes of floats order as their bits do, so that integers are compared.

A threshold is such bits with the sign cleared. NaN and infinity are above every threshold: they always come out as
candidates, which is where the caller looks for them.

All loops are compiled, or read from numba's cache, when this is imported: which of them a tensor needs depends on its
size and values, and a run should not stop to compile in its middle.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import BEYOND_CACHE, empty, empty_like, in_parallel, parts_of, scratch, team
from laconic.kernels.simd import LINE, WIDTH, ahead, fence, large, lowest, move, split, split_around_cache

MAGNITUDE = np.int32(0x7FFFFFFF)
AHEAD = 64  # entries for which memory is fetched before it is needed
SAMPLE = 1 << 16  # magnitudes that the guess at the threshold looks at
BESIDE = 8  # of these lie side by side: memory hands them over at once
SHARE_OF_PLACES = 1 << 16  # places, all over memory, that are worth a thread of their own
BLOCK = 1 << 11  # entries looked at together: a few kilobytes, which stay in the nearest cache
WORTH_GUESSING = 1 << 15  # under this many entries a histogram is as quick
BINS, BIN = 4096, 10  # of the histogram that separates candidates: half a power of two above the threshold
FULL = -1


class Found(NamedTuple):
    """What reaches a threshold: of the ``p``-th part, ``counts[p]`` places (rising) and values from ``starts[p]`` on.

    ``bits`` is ``values`` as whole numbers; ``tables[p]`` counts them in bins from the
    threshold on, of which the last has all that are farther above it.
    """

    places: np.ndarray
    values: np.ndarray
    bits: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    tables: np.ndarray


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
    found = None
    threshold = 0
    if n >= WORTH_GUESSING and 4 * k <= n:
        stride = n * BESIDE // SAMPLE | 1  # odd, so that it does not step along one column of a matrix
        sample = scratch("sample", (n - BESIDE) // stride * BESIDE, np.float32)
        expected = k * sample.size / n
        # Two standard deviations: to guess too high once in fifty times costs less than to put more back every time.
        rank = min(sample.size, math.ceil(expected + 2 * math.sqrt(expected) + 2))
        threshold = sampled(x, e, 0, stride, BESIDE, sample, rank)
        found = gather(x, e, out, threshold, 2 * k, n)
    if found is None or found.counts.sum() < k:
        if out is not None:
            np.add(x, e, out=out)  # type: ignore[arg-type]
            x = out
        counts = np.sum(in_parallel(lambda _, start, stop: _count(x, start, stop), n), axis=0)
        passing = np.cumsum(counts[::-1])
        place = int(np.searchsorted(passing, k))
        threshold = (len(passing) - 1 - place) << 20
        found = gather(x, None, None, threshold, int(passing[place]), n)
        assert found is not None, "there is room for as many as were counted"
        if out is not None:
            for start, count in zip(found.starts, found.counts, strict=True):
                out[found.places[start : start + count]] = 0
    # One more than there are: each candidate is written as if it were kept, and as if it were not.
    kept = empty(2 * (k + 1), np.int32)
    places, values = kept[: k + 1], kept[k + 1 :].view(np.float32)
    settle(*found, places, values, k, threshold, values if out is None else out, out is not None)
    return torch.from_numpy(places[:k]), torch.from_numpy(values[:k]), left


def sampled(x, e, start, stride, beside, sample, rank) -> int:
    """The ``rank``-th largest magnitude, as bits, of ``beside`` neighbours at ``start`` and each ``stride`` on.

    They are put into ``sample``, which says how many; they are of ``x``, or of ``x + e``.
    """
    both = e is not None
    return int(_guess(x, e if both else x, both, start, stride, beside, sample, sample.view(np.int32), rank))


def add_at(out: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """``out[places] += weight * values``, where places rise."""
    into, where, what = out.numpy(), places.numpy(), values.numpy()
    parts = max(1, min(torch.get_num_threads(), where.size // SHARE_OF_PLACES))

    def run(part: int) -> None:
        here = slice(where.size * part // parts, where.size * (part + 1) // parts)
        _add_at(into, where[here], what[here], weight)

    if parts == 1:
        run(0)
    else:
        team(run, parts)


def gather(x, e, out, threshold, most, n, final=False) -> Found | None:
    """What reaches ``threshold`` of ``x`` (``+ e``, into ``out``), in order; None if a part has more than ``most``.

    It lies in scratch memory, but where it is ``final``; then it is not counted by how far above it is.
    """
    loop = sweep
    if out is not None and out.nbytes >= BEYOND_CACHE and out.ctypes.data % LINE == 0:
        loop = sweep_around_cache
    parts = parts_of(n)
    room = min(-(-n // parts) + WIDTH, most) + BLOCK
    size, bins = parts * room, 0 if final else BINS
    both = empty(2 * size, np.int32) if final else scratch("candidates", 2 * size, np.int32)
    places, values = both[:size], both[size:].view(np.float32)
    bits, tables = values.view(np.int32), scratch("tables", parts * bins, np.int32).reshape(parts, bins)

    def run(part: int, start: int, stop: int) -> int:
        mine = slice(part * room, (part + 1) * room)
        if out is None:
            return collect(
                x, x.view(np.int32), threshold, places[mine], values[mine], bits[mine], tables[part], start, stop
            )
        return loop(x, e, out, threshold, places[mine], values[mine], bits[mine], tables[part], start, stop)

    counts = np.array(in_parallel(run, n, WIDTH))
    return None if FULL in counts else Found(places, values, bits, np.arange(parts) * room, counts, tables)


def joined(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """The places and the values of all parts, moved to lie behind one another."""
    end = 0
    for start, count in zip(found.starts, found.counts, strict=True):
        if start > end:
            found.places[end : end + count] = found.places[start : start + count]
            found.values[end : end + count] = found.values[start : start + count]
        end += count
    return found.places[:end], found.values[:end]


def _count(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    table = np.zeros((2, 2048), np.int64)
    histogram(x.view(np.int32), table, start, stop)
    return table.sum(0)


@njit("i8(i4, i8)", cache=True, nogil=True)
def _bin(bits, threshold):
    return min((np.int64(bits & MAGNITUDE) - threshold) >> BIN, BINS - 1)


@njit("(i4[::1], i8, i4[::1])", cache=True, nogil=True)
def spread(bits, threshold, table):
    """Count magnitudes that reach ``threshold`` by how far above it they are; into no table, nothing."""
    if not table.size:
        return
    table[:] = 0
    other = np.zeros(BINS, np.int32)  # two tables, so that equal neighbours do not wait for one another's sum
    middle = bits.size // 2 * 2
    for i in range(0, middle, 2):
        table[_bin(bits[i], threshold)] += 1
        other[_bin(bits[i + 1], threshold)] += 1
    for i in range(middle, bits.size):
        table[_bin(bits[i], threshold)] += 1
    table += other


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


@njit("i8(f4[::1], f4[::1], i4[::1], i8[::1], i8, i4[::1], f4[::1], i8)", cache=True, nogil=True)
def _put(x, residual, masks, bases, hits, places, values, count):
    """Put what the masks of a block name into ``places`` and ``values``; returns how many there are now."""
    for hit in range(hits):
        mask = masks[hit]
        while mask:
            i = bases[hit] + lowest(mask)
            places[count] = i
            values[count] = x[i] + residual[i]
            count += 1
            mask &= mask - 1
    return count


@njit("i8(f4[::1], f4[::1], f4[::1], i4, i4[::1], f4[::1], i4[::1], i4[::1], i8, i8)", cache=True, nogil=True)
def sweep(x, residual, out, threshold, places, values, found, table, start, stop):
    """``out = x + residual``, where what reaches ``threshold`` is put into ``places`` and ``values`` and left 0.

    Returns how many, or ``FULL`` when ``places`` has no room (``out`` is then good for nothing). Which vectors hold
    something is noted for a block first, without a branch: at random places a branch is often foretold wrongly, which
    costs a third of a pass.
    """
    masks, bases = np.empty(BLOCK // WIDTH + 1, np.int32), np.empty(BLOCK // WIDTH + 1, np.int64)
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for first in range(start, whole, BLOCK):
        hits = 0
        for base in range(first, min(first + BLOCK, whole), WIDTH):
            masks[hits] = split(x, residual, out, base, threshold)
            bases[hits] = base
            hits += masks[hits] != 0
        if count > places.size - BLOCK:
            return FULL
        count = _put(x, residual, masks, bases, hits, places, values, count)
    count = _sweep_rest(x, residual, out, threshold, places, values, whole, stop, count)
    spread(found[: max(0, count)], threshold, table)
    return count


@njit("i8(f4[::1], f4[::1], f4[::1], i4, i4[::1], f4[::1], i4[::1], i4[::1], i8, i8)", cache=True, nogil=True)
def sweep_around_cache(x, residual, out, threshold, places, values, found, table, start, stop):
    """:func:`sweep` for what is larger than the cache: less memory moves where a store fetches no line first.

    Written twice, since numba keeps no loop on disk that is made by a function for another one.
    """
    masks, bases = np.empty(BLOCK // WIDTH + 1, np.int32), np.empty(BLOCK // WIDTH + 1, np.int64)
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for first in range(start, whole, BLOCK):
        hits = 0
        for base in range(first, min(first + BLOCK, whole), WIDTH):
            masks[hits] = split_around_cache(x, residual, out, base, threshold)
            bases[hits] = base
            hits += masks[hits] != 0
        if count > places.size - BLOCK:
            return FULL
        count = _put(x, residual, masks, bases, hits, places, values, count)
    fence()
    count = _sweep_rest(x, residual, out, threshold, places, values, whole, stop, count)
    spread(found[: max(0, count)], threshold, table)
    return count


@njit("i8(f4[::1], i4[::1], i4, i4[::1], f4[::1], i4[::1], i4[::1], i8, i8)", cache=True, nogil=True)
def collect(x, bits, threshold, places, values, found, table, start, stop):
    """What of ``x`` reaches ``threshold``, into ``places`` and ``values``; returns as :func:`sweep`."""
    masks, bases = np.empty(BLOCK // WIDTH + 1, np.int32), np.empty(BLOCK // WIDTH + 1, np.int64)
    count = 0
    whole = start + (stop - start) // WIDTH * WIDTH
    for first in range(start, whole, BLOCK):
        hits = 0
        for base in range(first, min(first + BLOCK, whole), WIDTH):
            masks[hits] = large(x, base, threshold)
            bases[hits] = base
            hits += masks[hits] != 0
        if count > places.size - BLOCK:
            return FULL
        for hit in range(hits):
            mask = masks[hit]
            while mask:
                i = bases[hit] + lowest(mask)
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
    spread(found[:count], threshold, table)
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


@njit("i4(f4[::1], f4[::1], b1, i8, i8, i8, f4[::1], i4[::1], i8)", cache=True, nogil=True)
def _guess(x, residual, both, start, stride, beside, sample, bits, rank):
    for i in range(sample.size // beside):  # far apart in memory: each is fetched before its turn
        at = start + i * stride
        soon = min(at + AHEAD * stride, x.size - 1)
        ahead(x, soon)
        if both:
            ahead(residual, soon)
        for j in range(beside):
            sample[beside * i + j] = x[at + j] + residual[at + j] if both else x[at + j]
    return kth_largest(bits, rank)


@njit("(i4[::1], f4[::1], i4[::1], i8, i8, i4, i4[::1], f4[::1], i4[::1], f4[::1], i8[::1])", cache=True, nogil=True)
def _keep(places, values, bits, start, stop, limit, kept_places, kept_values, back, backs, state):
    """Keep what is above ``limit``, and of what equals it the first; the rest goes to ``back`` and ``backs``.

    ``state``: how many are kept, how many are not, and how many equal ones still can be.
    """
    kept, refused, ties = state[0], state[1], state[2]
    moved, to = places.view(np.float32), kept_places.view(np.float32)
    above = np.int32(min(np.int64(limit) + 1, np.int64(MAGNITUDE)))
    for base in range(start, stop, WIDTH):
        if base + WIDTH <= stop and large(values, base, above) == (1 << WIDTH) - 1:
            move(moved, base, to, kept)
            move(values, base, kept_values, kept)
            kept += WIDTH
            continue
        for i in range(base, min(base + WIDTH, stop)):  # without a branch, which would be foretold wrongly
            magnitude = bits[i] & MAGNITUDE
            tied = (magnitude == limit) & (ties > 0)
            keeps = (magnitude > limit) | tied
            ties -= tied
            place, value = places[i], values[i]
            back[refused] = place
            backs[refused] = value
            refused += not keeps
            kept_places[kept] = place
            kept_values[kept] = value
            kept += keeps
    state[0], state[1], state[2] = kept, refused, ties


@njit(
    "(i4[::1], f4[::1], i4[::1], i8[::1], i8[::1], i4[:, ::1], i4[::1], f4[::1], i8, i8, f4[::1], b1)",
    cache=True,
    nogil=True,
)
def settle(places, values, bits, starts, counts, tables, kept_places, kept_values, k, threshold, out, restore):
    """Keep the ``k`` largest of what reaches ``threshold``, of equal ones the first, in order.

    With ``restore``, the others go back to where they came from in ``out``. The first arguments are :class:`Found`.
    """
    table = tables.sum(0)
    above, place = 0, BINS - 1
    while k > above + table[place]:  # in this bin is the k-th
        above += table[place]
        place -= 1
    inside = np.empty(table[place], np.int32)
    count = 0
    for part in range(starts.size):
        for i in range(starts[part], starts[part] + counts[part]):
            if _bin(bits[i], threshold) == place:
                inside[count] = bits[i] & MAGNITUDE
                count += 1
    limit = kth_largest(inside, k - above)
    for i in range(inside.size):
        above += inside[i] > limit
    state = np.array([0, 0, k - above])
    spare = counts.sum() - k
    back, backs = np.empty(spare + 1, np.int32), np.empty(spare + 1, np.float32)
    for part in range(starts.size):
        _keep(
            places,
            values,
            bits,
            starts[part],
            starts[part] + counts[part],
            limit,
            kept_places,
            kept_values,
            back,
            backs,
            state,
        )
    if restore:
        for i in range(spare):  # far apart in memory: each is fetched before it is needed
            if i + AHEAD < spare:
                ahead(out, back[i + AHEAD])
            out[back[i]] = backs[i]


@njit("(f4[::1], i4[::1], f4[::1], f8)", cache=True, nogil=True)
def _add_at(out, places, values, weight):
    factor = np.float32(weight)
    fetched = max(0, places.size - AHEAD)
    for i in range(fetched):
        ahead(out, places[i + AHEAD])
        out[places[i]] += factor * values[i]
    for i in range(fetched, places.size):
        out[places[i]] += factor * values[i]
