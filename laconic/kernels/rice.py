"""Loops that write and read rising places as Rice codes: see :mod:`laconic.compress.places` for the layout.

Both streams go through words of 64 bits, the lowest first, which little-endian bytes are as they lie.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels.simd import lowest

OUTSIDE = -1
UNFINISHED = -2
ONE = np.uint64(1)
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)

assert sys.byteorder == "little", "words are written as they lie in memory"


def encode(places: Tensor, low: int) -> Tensor:
    """Both streams, one after the other, as bytes."""
    rising = places.int().contiguous().numpy()
    k = rising.size
    room = np.zeros(_words(k + (int(rising[-1]) >> low if k else 0)), np.uint64)
    plain = np.zeros(_words(k * low), np.uint64)
    bits = _write(rising, low, room, plain)
    return torch.from_numpy(
        np.concatenate((room.view(np.uint8)[: -(-bits // 8)], plain.view(np.uint8)[: -(-k * low // 8)]))
    )


def decode(data: Tensor, low: int, numel: int, k: int) -> Tensor | int:
    """The ``k`` places, or ``OUTSIDE``, or ``UNFINISHED`` if the first stream has not as many ones."""
    raw = data.contiguous().numpy()
    first = raw.size - -(-k * low // 8)
    places = np.empty(k, np.int32)
    answer = _read(_as_words(raw[:first]), _as_words(raw[first:]), low, numel, places)
    return torch.from_numpy(places) if answer == 0 else int(answer)


def _words(bits: int) -> int:
    return bits // 64 + 2  # one to spare: a code may begin in the last word that is full


def _as_words(raw: np.ndarray) -> np.ndarray:
    words = np.zeros(_words(raw.size * 8), np.uint64)
    words.view(np.uint8)[: raw.size] = raw
    return words


@njit("i8(i4[::1], i8, u8[::1], u8[::1])", cache=True, nogil=True)
def _write(places, low, unary, plain):
    """Fill both streams, which come as zeros; returns the bits of the first."""
    at = np.int64(0)
    before = np.int64(-1)
    mask = (np.int64(1) << low) - 1
    word, have, to = np.uint64(0), np.int64(0), np.int64(0)
    for i in range(places.size):
        gap = places[i] - before - 1
        before = np.int64(places[i])
        at += gap >> low
        unary[at >> 6] |= ONE << np.uint64(at & 63)
        at += 1
        rest = np.uint64(gap & mask)
        word |= rest << np.uint64(have)
        have += low
        if have >= 64:
            plain[to] = word
            to += 1
            have -= 64
            word = rest >> np.uint64(low - have) if have else np.uint64(0)
    if have:
        plain[to] = word
    return at


@njit("i8(u8[::1], u8[::1], i8, i8, i4[::1])", cache=True, nogil=True)
def _read(unary, plain, low, numel, places):
    mask = (ONE << np.uint64(low)) - ONE
    before = np.int64(-1)
    place_of_word, word = np.int64(0), unary[0]
    last = np.int64(-1)  # where in the first stream the one before this was
    for i in range(places.size):
        while word == 0:
            place_of_word += 1
            if place_of_word >= unary.size:
                return UNFINISHED
            word = unary[place_of_word]
        at = (place_of_word << 6) + lowest(word)
        word &= word - ONE
        gap = (at - last - 1) << low
        last = at
        if low:
            offset = i * low
            index, shift = offset >> 6, np.uint64(offset & 63)
            rest = plain[index] >> shift
            if (offset & 63) + low > 64:
                rest |= plain[index + 1] << (np.uint64(64) - shift)
            gap += np.int64(rest & mask)
        before += gap + 1
        if before >= numel:
            return OUTSIDE
        places[i] = before
    while True:  # nothing may follow: one set of places has one spelling
        if word != 0:
            return UNFINISHED
        place_of_word += 1
        if place_of_word >= unary.size:
            return 0
        word = unary[place_of_word]
