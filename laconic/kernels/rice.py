"""Loops that write and read rising places as Rice codes: see :mod:`laconic.compress.places` for the layout."""

from __future__ import annotations

import numpy as np
from numba import njit

ONE = np.uint64(1)
OUTSIDE = -1
UNFINISHED = -2


@njit(cache=True, nogil=True)
def unary_bits(places, low):
    """Bits of the first stream: one a place, and one zero for every whole ``2**low`` of its gap."""
    total = 0
    before = -1
    for i in range(places.size):
        total += ((places[i] - before - 1) >> low) + 1
        before = places[i]
    return total


@njit(cache=True, nogil=True)
def encode(places, low, high_bytes, low_bytes):
    """Fill both streams, which come as zeros."""
    at = 0
    before = -1
    word, have, to = np.uint64(0), 0, 0
    mask = (1 << low) - 1
    for i in range(places.size):
        gap = places[i] - before - 1
        before = places[i]
        at += gap >> low
        high_bytes[at >> 3] |= np.uint8(1 << (at & 7))
        at += 1
        word |= np.uint64(gap & mask) << np.uint64(have)
        have += low
        while have >= 8:
            low_bytes[to] = np.uint8(word & np.uint64(255))
            to += 1
            word >>= np.uint64(8)
            have -= 8
    if have > 0:
        low_bytes[to] = np.uint8(word & np.uint64(255))


@njit(cache=True, nogil=True)
def decode(high_bytes, low_bytes, low, numel, places):
    """Fill ``places``; returns 0, or ``OUTSIDE``, or ``UNFINISHED`` if the first stream has not as many ones."""
    at, end = 0, high_bytes.size * 8
    before = -1
    word, have, taken = np.uint64(0), 0, 0
    mask = np.uint64((1 << low) - 1)
    for i in range(places.size):
        gap = 0
        while at < end and not (high_bytes[at >> 3] >> (at & 7)) & 1:
            if (at & 7) == 0 and high_bytes[at >> 3] == 0:
                gap += 8
                at += 8
            else:
                gap += 1
                at += 1
        if at >= end:
            return UNFINISHED
        at += 1
        while have < low:
            word |= np.uint64(low_bytes[taken]) << np.uint64(have)
            taken += 1
            have += 8
        place = before + 1 + (gap << low) + np.int64(word & mask)
        word >>= np.uint64(low)
        have -= low
        if place >= numel:
            return OUTSIDE
        places[i] = place
        before = place
    while at < end:  # nothing may follow: one message has one spelling
        if (high_bytes[at >> 3] >> (at & 7)) & 1:
            return UNFINISHED
        at += 1
    return 0
