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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE = 1 << 17  # elements that are worth a thread of their own
KEPT = 1 << 24  # bytes; above this, malloc gives memory back to the system and gets it again page by page
ON_GPU = ("select", "blocks")  # modules with a Triton form
SPARE = 2  # buffers kept of one size
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
    if parts == 1:
        return [run(0, 0, numel)]
    futures = [_pool().submit(run, i, edges[i], edges[i + 1]) for i in range(1, parts)]
    return [run(0, 0, edges[1]), *(future.result() for future in futures)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="laconic-loops")


def empty_like(tensor: Tensor) -> Tensor:
    """As torch's, but a large one takes the memory of an earlier one that nobody holds any more.

    Fresh memory costs a page fault every 4 kB, which is more than a loop that writes it.
    """
    nbytes = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or nbytes < KEPT:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    try:
        memory = _spare.setdefault(nbytes, []).pop()
    except IndexError:
        memory = np.empty(nbytes + LINE, dtype=np.uint8)
        first = -memory.ctypes.data % LINE
        memory = memory[first : first + nbytes]
    lent = memory.view()  # dies with the last tensor that lies in it
    weakref.finalize(lent, _take_back, memory).atexit = False
    return torch.from_numpy(lent).view(tensor.dtype).reshape(tensor.shape)


def _take_back(memory: np.ndarray) -> None:
    kept = _spare.setdefault(memory.nbytes, [])
    if len(kept) < SPARE:
        kept.append(memory)
