"""Loops that write and read rising places as Rice codes: see :mod:`laconic.compress.places` for the layout.

Both streams go through words of 64 bits, the lowest first, which little-endian bytes are as they lie.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import empty, scratch
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
    room = scratch("first codes", _words(k + (int(rising[-1]) >> low if k else 0)), np.uint64)
    plain = scratch("second codes", _words(k * low), np.uint64)
    first, second = -(-_write(rising, low, room, plain) // 8), -(-k * low // 8)
    streams = (room.view(np.uint8)[:first], plain.view(np.uint8)[:second])
    return torch.from_numpy(np.concatenate(streams, out=empty(first + second, np.uint8)))


def decode(data: Tensor, low: int, numel: int, k: int) -> Tensor | int:
    """The ``k`` places, or ``OUTSIDE``, or ``UNFINISHED`` if the first stream has not as many ones."""
    raw = data.contiguous().numpy()
    first = raw.size - -(-k * low // 8)
    places = empty(k, np.int32)
    answer = _read(_as_words("first", raw[:first]), _as_words("second", raw[first:]), low, numel, places)
    return torch.from_numpy(places) if answer == 0 else int(answer)


def _words(bits: int) -> int:
    return bits // 64 + 2  # one to spare: a code may begin in the last word that is full


def _as_words(stream: str, raw: np.ndarray) -> np.ndarray:
    words = scratch(f"{stream} codes", _words(raw.size * 8), np.uint64)
    words[raw.size // 8 :] = 0
    words.view(np.uint8)[: raw.size] = raw
    return words


@njit("i8(i4[::1], i8, u8[::1], u8[::1])", cache=True, nogil=True)
def _write(places, low, unary, plain):
    """Fill both streams; returns the bits of the first."""
    at, full, ones = np.int64(0), np.int64(0), np.uint64(0)  # ``ones``: the word of the first stream after ``full``
    before = np.int64(-1)
    mask = (np.int64(1) << low) - 1
    word, have, to = np.uint64(0), np.int64(0), np.int64(0)
    for i in range(places.size):
        gap = places[i] - before - 1
        before = np.int64(places[i])
        at += gap >> low
        while full < at >> 6:
            unary[full] = ones
            ones = np.uint64(0)
            full += 1
        ones |= ONE << np.uint64(at & 63)
        at += 1
        rest = np.uint64(gap & mask)
        word |= rest << np.uint64(have)
        have += low
        if have >= 64:
            plain[to] = word
            to += 1
            have -= 64
            word = rest >> np.uint64(low - have) if have else np.uint64(0)
    unary[full] = ones
    if have:
        plain[to] = word
    return at


@njit("i8(u8[::1], u8[::1], i8, i8, i4[::1])", cache=True, nogil=True)
def _read(unary, plain, low, numel, places):
    mask = (ONE << np.uint64(low)) - ONE
    before = np.int64(-1)
    place_of_word, word = np.int64(0), unary[0]
    last = np.int64(-1)  # where in the first stream the one before this was
    offset, step = np.uint64(0), np.uint64(low)  # in the second stream; without a sign, no index can be from the end
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
        # Two words, whether or not it goes on in the second: a branch would often be foretold wrongly.
        index, shift = offset >> np.uint64(6), offset & np.uint64(63)
        rest = (plain[index] >> shift) | ((plain[index + ONE] << ONE) << (np.uint64(63) - shift))
        offset += step
        before += gap + np.int64(rest & mask) + 1
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
