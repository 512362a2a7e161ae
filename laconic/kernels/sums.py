"""Sums of several vectors in one pass over memory: each is read once, and the sum is read and written once.

They are added one after the other for each element, as the plain form adds them for all, so the bits are the same. All
loops are compiled, or read from numba's cache, when this is imported: a run should not stop to compile in its middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numba import njit
from torch import Tensor

from laconic.kernels import in_parallel


def add_all(into: Tensor, others: Sequence[Tensor]) -> None:
    """Add ``others`` to ``into``, in their order; in as few passes as seven at a time take."""
    x, left = into.numpy(), [other.numpy() for other in others]
    while left:
        loop, count = next((loop, count) for count, loop in LOOPS if count <= len(left))
        arrays, left = [x, *left[:count]], left[count:]
        in_parallel(partial(_part, loop, arrays), x.size)


def _part(loop: Callable[..., None], arrays: list[np.ndarray], part: int, start: int, stop: int) -> None:
    loop(*(array[start:stop] for array in arrays))


@njit("(f4[::1], f4[::1])", cache=True, nogil=True)
def _one(x, a):
    for i in range(x.size):  # from 0, or each place would be checked for being negative, one at a time
        x[i] += a[i]


@njit("(f4[::1], f4[::1], f4[::1])", cache=True, nogil=True)
def _two(x, a, b):
    for i in range(x.size):
        x[i] = x[i] + a[i] + b[i]


@njit("(f4[::1], f4[::1], f4[::1], f4[::1])", cache=True, nogil=True)
def _three(x, a, b, c):
    for i in range(x.size):
        x[i] = x[i] + a[i] + b[i] + c[i]


@njit("(f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1])", cache=True, nogil=True)
def _seven(x, a, b, c, d, e, f, g):
    for i in range(x.size):
        x[i] = x[i] + a[i] + b[i] + c[i] + d[i] + e[i] + f[i] + g[i]


LOOPS = ((7, _seven), (3, _three), (2, _two), (1, _one))
