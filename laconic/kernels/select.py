"""Loops that find large entries: magnitudes of floats order as their bits do, so that integers are compared.

A threshold is such bits with the sign cleared. NaN and infinity are above every threshold: they always come out as
candidates, which is where the caller looks for them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import empty_like, in_parallel

MAGNITUDE = np.int32(0x7FFFFFFF)
SAMPLE = 1 << 16  # magnitudes that the guess at the threshold looks at
WORTH_GUESSING = 1 << 15  # under this many entries a histogram is as quick
RUN = 32  # entries that are looked at together: most runs hold nothing large, and end with one comparison
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
    if n >= WORTH_GUESSING and 4 * k <= n:
        stride = n // SAMPLE | 1  # odd, so that it does not step along one column of a matrix
        sample = x[::stride] if e is None else x[::stride] + e[::stride]
        expected = k * sample.size / n
        rank = min(sample.size, math.ceil(expected + 3 * math.sqrt(expected) + 2))
        found = _gather(x, e, out, kth_largest(np.ascontiguousarray(sample).view(np.int32), rank), 2 * k, n)
    if sum(places.size for places, _ in found) < k:
        if out is not None:
            np.add(x, e, out=out)  # type: ignore[arg-type]
            x = out
        counts = np.sum(in_parallel(lambda _, start, stop: _count(x, start, stop), n), axis=0)
        passing = np.cumsum(counts[::-1])
        place = int(np.searchsorted(passing, k))
        found = _gather(x, None, None, (len(passing) - 1 - place) << 20, int(passing[place]), n)
        if out is not None:
            for places, _ in found:
                out[places] = 0
    places, values = (np.concatenate([pair[i] for pair in found]) for i in (0, 1))
    settle(places, values, values.view(np.int32), k, values if out is None else out, out is not None)
    return torch.from_numpy(places[:k]), torch.from_numpy(values[:k]), left


def add_at(out: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """``out[places] += weight * values``."""
    _add_at(out.numpy(), places.numpy(), values.numpy(), weight)


def _gather(x, e, out, threshold, most, n) -> Candidates:  # type: ignore[no-untyped-def]
    """Candidates of each part of ``x`` (``+ e``, into ``out``), in order; none if one part has more than ``most``."""
    bits = (x if out is None else out).view(np.int32)

    def run(_: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray] | None:
        room = min(stop - start, most) + RUN
        places, values = np.empty(room, np.int32), np.empty(room, np.float32)
        if out is None:
            count = collect(x, bits, threshold, places, values, start, stop)
        else:
            count = sweep(x, e, out, bits, threshold, places, values, start, stop)
        return None if count == FULL else (places[:count], values[:count])

    found = in_parallel(run, n, RUN)
    return [] if any(part is None for part in found) else found


def _count(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    table = np.zeros((2, 2048), np.int64)
    histogram(x.view(np.int32), table, start, stop)
    return table.sum(0)


@njit(cache=True, nogil=True)
def sweep(x, residual, out, bits, threshold, places, values, start, stop):
    """``out = x + residual``, where what reaches ``threshold`` is put into ``places`` and ``values`` and left 0.

    ``bits`` is ``out``'s memory as integers. Returns how many, or ``FULL`` when ``places`` has no room (``out`` is then
    good for nothing).
    """
    room = places.size
    count = 0
    for base in range(start, stop, RUN):
        end = min(base + RUN, stop)
        for i in range(base, end):
            out[i] = x[i] + residual[i]
        top = np.int32(0)
        for i in range(base, end):
            top = max(top, np.int32(bits[i] & MAGNITUDE))
        if top >= threshold:
            if count + RUN > room:
                return FULL
            for i in range(base, end):
                if (bits[i] & MAGNITUDE) >= threshold:
                    places[count] = i
                    values[count] = out[i]
                    out[i] = np.float32(0)
                    count += 1
    return count


@njit(cache=True, nogil=True)
def collect(x, bits, threshold, places, values, start, stop):
    """What of ``x`` reaches ``threshold``, into ``places`` and ``values``; returns as :func:`sweep`."""
    room = places.size
    count = 0
    for base in range(start, stop, RUN):
        end = min(base + RUN, stop)
        top = np.int32(0)
        for i in range(base, end):
            top = max(top, np.int32(bits[i] & MAGNITUDE))
        if top >= threshold:
            if count + RUN > room:
                return FULL
            for i in range(base, end):
                if (bits[i] & MAGNITUDE) >= threshold:
                    places[count] = i
                    values[count] = x[i]
                    count += 1
    return count


@njit(cache=True, nogil=True)
def histogram(bits, table, start, stop):
    """Count magnitudes by their upper 11 bits (exponent and 3 of the mantissa) into the two rows of ``table``."""
    middle = start + (stop - start) // 2 * 2
    for i in range(start, middle, 2):  # two tables, so that equal neighbours do not wait for one another's sum
        table[0, (bits[i] & MAGNITUDE) >> 20] += 1
        table[1, (bits[i + 1] & MAGNITUDE) >> 20] += 1
    for i in range(middle, stop):
        table[0, (bits[i] & MAGNITUDE) >> 20] += 1


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def settle(places, values, bits, k, out, restore):
    """Keep the ``k`` largest of the candidates, in place and in order; of equal ones, the first.

    With ``restore``, the others go back to where they came from in ``out``. ``bits`` is ``values``' memory.
    """
    limit = kth_largest(bits, k)
    above = 0
    for i in range(places.size):
        if (bits[i] & MAGNITUDE) > limit:
            above += 1
    ties = k - above
    kept = 0
    for i in range(places.size):
        magnitude = bits[i] & MAGNITUDE
        if magnitude > limit or (magnitude == limit and ties > 0):
            if magnitude == limit:
                ties -= 1
            places[kept] = places[i]
            values[kept] = values[i]
            kept += 1
        elif restore:
            out[places[i]] = values[i]


@njit(cache=True, nogil=True)
def _add_at(out, places, values, weight):
    """``out[places] += weight * values``, one after another."""
    if weight == 1.0:
        for i in range(places.size):
            out[places[i]] += values[i]
    else:
        factor = np.float32(weight)
        for i in range(places.size):
            out[places[i]] += factor * values[i]
