"""A loop that draws a direction and adds it in one pass, without a tensor to hold it."""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor

from laconic.compress.noise import halves
from laconic.kernels import in_parallel
from laconic.kernels.blocks import mixed

LOW_HALF, HIGH_HALF = np.uint32(0xFFFF), np.uint32(16)


def add(into: Tensor, by: float, key: int, table: Tensor | None, scale: float) -> None:
    """Add ``by`` times the normal direction of ``key``, or without a ``table`` the one of signs, to a flat tensor."""
    out, (low, high), factor = into.numpy(), map(np.uint32, halves(key)), np.float32(by)
    quantiles = None if table is None else table.numpy()

    def run(part: int, start: int, stop: int) -> None:
        if quantiles is None:
            _signs(out[start:stop], start, low, high, factor)
        else:
            _normal(out[start:stop], start, low, high, quantiles, np.float32(scale), factor)

    in_parallel(run, into.numel())


@njit(cache=True, nogil=True)
def _normal(out, first, low, high, quantiles, scale, by):
    for i in range(out.size):
        bits = mixed(first + i, low, high)
        z = (quantiles[bits & LOW_HALF] + quantiles[bits >> HIGH_HALF]) * scale
        out[i] += z * by


@njit(cache=True, nogil=True)
def _signs(out, first, low, high, by):
    for i in range(out.size):
        if np.int32(mixed(first + i, low, high)) < 0:
            out[i] += -by
        else:
            out[i] += by
