"""Compiled loops for work that torch alone needs several passes over memory for.

Each loop has a plain torch form beside its caller, equal to the bit by test, which is used wherever the loop cannot be:
on another device, for another dtype, or inside :func:`plain`. Nothing is compiled before its first use; what was is
kept on disk (numba's cache) for the next process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE = 1 << 17  # elements that are worth a thread of their own
KEPT = 1 << 17  # bytes; from here on malloc may give memory back to the system, and gets it again page by page
BEYOND_CACHE = 1 << 24  # bytes; what is larger does not stay in the cache anyway
ON_GPU = ("select", "blocks")  # modules with a Triton form
LINE = 64  # bytes of a cache line, where large memory begins

_plain = False
_spare: dict[int, list[np.ndarray]] = {}


def loops(module: str, *tensors: Tensor) -> Any:
    """The module of loops to use on ``tensors``, or ``None`` where only the plain form will do.

    The loops take float32, flat and contiguous, on the CPU; some have a Triton form for a GPU.
    """
    if _plain or os.environ.get("LACONIC_PLAIN"):
        return None
    if any(tensor.dtype != torch.float32 or not tensor.is_contiguous() for tensor in tensors):
        return None
    devices = {tensor.device.type for tensor in tensors} or {"cpu"}
    if devices == {"cuda"} and module in ON_GPU and importlib.util.find_spec("triton"):
        return _load(f"{module}_gpu")
    return _load(module) if devices == {"cpu"} else None


@cache
def _load(module: str) -> Any:
    return importlib.import_module(f"laconic.kernels.{module}")


@contextmanager
def plain() -> Iterator[None]:
    """Use the plain torch forms inside, whatever the tensors."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def in_parallel(run: Callable[[int, int, int], Any], numel: int, align: int = 1) -> list[Any]:
    """``[run(part, start, stop), ...]`` over ``range(numel)`` in as many parts as torch has threads, in order.

    Parts begin at multiples of ``align``. Loops let go of the interpreter's lock, so parts run side by side.
    """
    parts = max(1, min(torch.get_num_threads(), numel // SHARE))
    edges = [-(-numel * i // (parts * align)) * align for i in range(parts)] + [numel]
    return side_by_side([partial(run, i, edges[i], edges[i + 1]) for i in range(parts)])


def side_by_side(runs: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each of them returns, in order; they run at once, a thread each."""
    futures = [_pool().submit(run) for run in runs[1:]]
    return [runs[0](), *(future.result() for future in futures)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="laconic-loops")


class _Lent:
    """Memory on loan: every array and tensor that lies in it keeps this alive."""

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__ = memory.__array_interface__


def empty(numel: int, dtype: Any) -> np.ndarray:
    """As numpy's, but from :data:`KEPT` bytes on it takes the memory of an earlier one that nobody holds any more.

    Fresh memory costs a page fault every 4 kB, which is more than a loop that writes it.
    """
    nbytes = numel * np.dtype(dtype).itemsize
    if nbytes < KEPT:
        return np.empty(numel, dtype)
    # Small ones of about the same size share memory; a large one gets what it needs.
    size = nbytes if nbytes >= BEYOND_CACHE else 1 << (nbytes - 1).bit_length()
    try:
        memory = _spare.setdefault(size, []).pop()
    except IndexError:
        memory = np.empty(size + LINE, np.uint8)
        first = -memory.ctypes.data % LINE
        memory = memory[first : first + size]
    lent = _Lent(memory)
    weakref.finalize(lent, _take_back, memory).atexit = False
    return np.asarray(lent)[:nbytes].view(dtype)


def empty_like(tensor: Tensor) -> Tensor:
    """As torch's, in the memory of :func:`empty` on a CPU."""
    nbytes = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or nbytes < KEPT:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return torch.from_numpy(empty(nbytes, np.uint8)).view(tensor.dtype).reshape(tensor.shape)


def _take_back(memory: np.ndarray) -> None:
    kept = _spare.setdefault(memory.nbytes, [])
    if len(kept) < (2 if memory.nbytes >= BEYOND_CACHE else 4):
        kept.append(memory)
