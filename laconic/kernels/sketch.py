"""Loops of the count sketch: every entry into one cell of each row, and the median of an entry's cells."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.kernels import in_parallel

HIGH = np.uint64(32)
LOW31 = np.uint64(0x7FFFFFFF)
BLOCK = 1024  # entries that are looked up together


def fill(flat: Tensor, keys: list[tuple[int, int]], columns: int) -> Tensor:
    """The table of :func:`laconic.compress.count_sketch.fill`, flat."""
    table = np.zeros((len(keys), columns), np.float32)
    _fill(flat.numpy(), _as_array(keys), np.uint64(columns), table)
    return torch.from_numpy(table.reshape(-1))


def estimate(table: Tensor, keys: list[tuple[int, int]], numel: int) -> Tensor:
    """The estimates of :func:`laconic.compress.count_sketch.estimate`."""
    rows = len(keys)
    cells = table.contiguous().numpy().reshape(rows, -1)
    out = np.empty(numel, np.float32)
    in_parallel(
        lambda _, start, stop: _estimate(cells, _as_array(keys), np.uint64(cells.shape[1]), out, start, stop), numel
    )
    return torch.from_numpy(out)


def _as_array(keys: list[tuple[int, int]]) -> np.ndarray:
    return np.array([[part % (1 << 64) for part in key] for key in keys], np.uint64)


@njit(cache=True, nogil=True)
def _fill(x, keys, columns, table):
    for row in range(keys.shape[0]):  # row by row: one row of the table at a time is in the cache
        times, plus = keys[row, 0], keys[row, 1]
        cells = table[row]
        for i in range(x.size):
            code = (times * np.uint64(i) + plus) >> HIGH
            cell = np.int64(((code & LOW31) * columns) >> np.uint64(31))
            if code > LOW31:
                cells[cell] -= x[i]
            else:
                cells[cell] += x[i]


@njit(cache=True, nogil=True)
def _estimate(table, keys, columns, out, start, stop):
    rows = keys.shape[0]
    seen = np.empty((rows, BLOCK), np.float32)
    for base in range(start, stop, BLOCK):
        count = min(BLOCK, stop - base)
        for row in range(rows):
            times, plus = keys[row, 0], keys[row, 1]
            cells, here = table[row], seen[row]
            for i in range(count):
                code = (times * np.uint64(base + i) + plus) >> HIGH
                value = cells[np.int64(((code & LOW31) * columns) >> np.uint64(31))]
                here[i] = -value if code > LOW31 else value
        for turn in range(rows):  # sorts by comparing neighbours: always the same ones, so many entries at a time
            for row in range(turn % 2, rows - 1, 2):
                low, high = seen[row], seen[row + 1]
                for i in range(count):
                    a, b = low[i], high[i]
                    low[i] = a if a < b else b
                    high[i] = b if a < b else a
        for i in range(count):
            out[base + i] = seen[rows // 2, i]
