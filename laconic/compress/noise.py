"""Noise for random rounding: a hash of a key and a place, so that any part of a tensor can be rounded by itself.

The same bits come from plain torch on any device and from the compiled loops (:mod:`laconic.kernels.blocks`), for any
number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, SECOND = 0x7FEB352D, 0x846CA68B  # odd multipliers of a 32-bit mix with low bias (C. Wellons, 2018)
WORD = (1 << 32) - 1


def halves(key: int) -> tuple[int, int]:
    """Two unsigned 32-bit words of a key, each a function of all its bits (the finaliser of SplitMix64)."""
    z = key & ((1 << 64) - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = ((z ^ z >> shift) * factor) & ((1 << 64) - 1)
    return z & WORD, z >> 32


def noise(like: Tensor, key: int) -> Tensor:
    """32 random bits for each entry of ``like``, as int32: a pure function of ``key`` and of its place.

    Places are counted modulo 2^32. Products wrap around, as unsigned ones do; shifts are made logical by masks.
    """
    low, high = halves(key)
    count = like.numel()
    h = torch.arange(count, device=like.device, dtype=torch.int32 if count < 1 << 31 else torch.int64).int()
    h += _signed(low)
    h ^= (h >> 16) & 0xFFFF
    h *= FIRST
    h ^= _signed(high)
    h ^= (h >> 15) & 0x1FFFF
    h *= _signed(SECOND)
    h ^= (h >> 16) & 0xFFFF
    return h.reshape(like.shape)


def uniform(like: Tensor, key: int) -> Tensor:
    """Uniform float32 numbers in [0, 1), of 24 bits, in the shape of ``like``: see :func:`noise`."""
    return ((noise(like, key) >> 8) & 0xFFFFFF).float().mul_(2.0**-24)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
