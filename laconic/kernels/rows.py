"""Loops that find the large entries of each row of a matrix, and that pack and read numbers of a fixed width.

A row fits into the cache, so that looking at it several times costs little. What reaches a threshold is looked at
closely: the threshold is a little under what the row before had, or, where too few reach that, one that the maxima of
groups give, which at least as many entries reach as are wanted.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import in_parallel
from laconic.kernels.select import MAGNITUDE
from laconic.kernels.simd import WIDTH, large, lowest

GROUPS = 128  # groups of a row, or more where more are kept
FEWEST = 4  # entries of a group
BELOW = 1 << 19  # as bits: 3 to 6 percent


def pick(flat: Tensor, residual: Tensor | None, left: Tensor | None, size: int, keep: int) -> tuple[Tensor, Tensor]:
    """Places within its row (rising) and values of the ``keep`` largest of each ``size`` entries of the sum.

    Of equal ones, the first. ``left`` is filled with what is left of the sum without them, if there is a residual.
    """
    rows = flat.numel() // size
    groups = size // FEWEST
    while groups > GROUPS and groups >= 4 * keep:
        groups //= 2
    if groups < 2 * keep:
        groups = 1
    x = flat.numpy()
    out = x if left is None else left.numpy()
    e = x if residual is None else residual.numpy()
    places, values = np.empty(rows * keep, np.int32), np.empty(rows * keep, np.float32)

    def run(_: int, start: int, stop: int) -> None:
        first, last = start // size, stop // size
        _pick(x, e, out, out.view(np.int32), left is not None, size, keep, groups, places, values, first, last)

    in_parallel(run, flat.numel(), size)
    return torch.from_numpy(places), torch.from_numpy(values)


@njit(cache=True, nogil=True)
def _pick(x, residual, out, bits, carries, size, keep, groups, places, values, first, last):
    maxima, scratch = np.empty(groups, np.int32), np.empty(size, np.int32)
    found, sizes = np.empty(size, np.int32), np.empty(size, np.int32)
    deep = size // groups
    limit = np.int32(0)
    for row in range(first, last):
        base = row * size
        if carries:
            _add(x[base : base + size], residual[base : base + size], out[base : base + size])
        # Rows are often alike: a little under the last one's limit, most often enough reach it.
        count = 0
        limit = np.int32(limit - BELOW) if limit > BELOW else np.int32(0)
        if limit > 0:
            count = _reaching(out, bits, base, size, limit, found, sizes, scratch)
        if count < keep:
            limit = np.int32(0)
            if groups > 1:
                maxima[:] = 0
                for j in range(deep):  # a group is every so many-th entry: that is a loop over neighbours
                    at = base + j * groups
                    _raise(maxima, bits[at : at + groups])
                limit = kth(maxima, groups, keep)
            count = _reaching(out, bits, base, size, limit, found, sizes, scratch)
        limit = kth(scratch, count, keep)
        above = 0
        for j in range(count):
            above += sizes[j] > limit
        ties = keep - above
        at = row * keep
        for j in range(count):
            tied = sizes[j] == limit and ties > 0
            if sizes[j] > limit or tied:
                ties -= tied
                places[at] = found[j]
                values[at] = out[base + found[j]]
                if carries:
                    out[base + found[j]] = np.float32(0)
                at += 1


@njit(cache=True, nogil=True)
def _add(x, residual, out):
    for i in range(out.size):  # from 0, so that no place can be negative, which numba would look for
        out[i] = x[i] + residual[i]


@njit(cache=True, nogil=True)
def _raise(maxima, bits):
    for g in range(maxima.size):
        maxima[g] = max(maxima[g], np.int32(bits[g] & MAGNITUDE))


@njit(cache=True, nogil=True)
def _reaching(out, bits, base, size, limit, found, sizes, scratch):
    """The entries of a row that reach ``limit``: their places, and their magnitudes twice; returns how many."""
    count = 0
    whole = base + size // WIDTH * WIDTH
    for at in range(base, whole, WIDTH):
        mask = large(out, at, limit)
        while mask:
            i = at + lowest(mask)
            found[count] = i - base
            sizes[count] = np.int32(bits[i] & MAGNITUDE)
            scratch[count] = sizes[count]
            count += 1
            mask &= mask - 1
    for i in range(whole, base + size):
        magnitude = np.int32(bits[i] & MAGNITUDE)
        if magnitude >= limit:
            found[count] = i - base
            sizes[count] = magnitude
            scratch[count] = magnitude
            count += 1
    return count


@njit(cache=True, nogil=True)
def kth(numbers, count, k):
    """The ``k``-th largest of the first ``count`` numbers, which it rearranges."""
    low, high, place = 0, count - 1, k - 1
    while low < high:
        middle = (low + high) // 2
        a, b, c = numbers[low], numbers[middle], numbers[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while numbers[i] > pivot:
                i += 1
            while numbers[j] < pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return numbers[place]


@njit(cache=True, nogil=True)
def pack(numbers, width, out):
    """Write the low ``width`` bits of each number into the bytes ``out``, lowest bit first."""
    word, have, to = np.uint64(0), 0, 0
    mask = (1 << width) - 1
    for i in range(numbers.size):
        word |= np.uint64(numbers[i] & mask) << np.uint64(have)
        have += width
        while have >= 8:
            out[to] = np.uint8(word & np.uint64(255))
            to += 1
            word >>= np.uint64(8)
            have -= 8
    if have > 0:
        out[to] = np.uint8(word & np.uint64(255))


@njit(cache=True, nogil=True)
def unpack(data, width, numbers):
    """Fill ``numbers`` from what :func:`pack` wrote."""
    word, have, taken = np.uint64(0), 0, 0
    mask = np.uint64((1 << width) - 1)
    for i in range(numbers.size):
        while have < width:
            word |= np.uint64(data[taken]) << np.uint64(have)
            taken += 1
            have += 8
        numbers[i] = np.int32(word & mask)
        word >>= np.uint64(width)
        have -= width
