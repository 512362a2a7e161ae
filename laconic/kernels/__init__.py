"""Compiled loops for work that torch alone needs several passes over memory for.

Each loop has a plain torch form beside its caller, equal to the bit by test, which is used wherever the loop cannot be:
on another device, for another dtype, or inside :func:`plain`. Nothing is compiled before its first use; what was is
kept on disk (numba's cache) for the next process.
"""

from __future__ import annotations

import ctypes
import glob
import importlib
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SHARE = 1 << 17  # elements that are worth a thread of their own
KEPT = 1 << 17  # bytes; from here on malloc may give memory back to the system, and gets it again page by page
BEYOND_CACHE = 1 << 24  # bytes; what is larger does not stay in the cache anyway
ON_GPU = ("select", "blocks")  # modules with a Triton form
SPARE = 1 << 28  # bytes kept of all small buffers; of each size of large ones, two
LINE = 64  # bytes of a cache line, where large memory begins

KINDS = {torch.float32: "<f4", torch.float64: "<f8", torch.int32: "<i4", torch.int64: "<i8", torch.uint8: "|u1"}

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
    parts = parts_of(numel)
    edges = [-(-numel * i // (parts * align)) * align for i in range(parts)] + [numel]
    if parts == 1:
        return [run(0, 0, numel)]
    return team(lambda part: run(part, edges[part], edges[part + 1]), parts)


def parts_of(numel: int) -> int:
    """In how many parts :func:`in_parallel` works on so many elements."""
    return max(1, min(torch.get_num_threads(), numel // SHARE))


def team(run: Callable[[int], Any], parts: int) -> list[Any]:
    """``[run(0), run(1), ...]``, at once: by torch's own threads where they can be had, else by a pool of ours.

    After each of its operations torch's threads stay awake for some milliseconds, looking for the next one. A pool
    beside them would share their cores with that.

    Raises: what the first part that failed raised.
    """
    fork = _torch_threads()
    if fork is None:
        futures = [_pool().submit(run, part) for part in range(1, parts)]
        return [run(0), *(future.result() for future in futures)]
    ended: list[Any] = [None] * parts
    todo = iter(range(parts))

    def work(_: Any) -> None:
        for part in todo:
            try:
                ended[part] = (run(part), None)
            except BaseException as error:
                ended[part] = (None, error)

    # A smaller team than torch's would end the threads that are too many.
    fork(_WORK(work), None, max(parts, torch.get_num_threads()), 0)
    for _, error in ended:
        if error is not None:
            raise error
    return [result for result, _ in ended]


_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _torch_threads() -> Any:
    """GNU OpenMP's way to run a function in all threads of a team, of the very library that torch has loaded."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libgomp*.so*")):
        try:
            return ctypes.CDLL(path, mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue  # not the one in use: another torch, or another OpenMP
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="laconic-loops")


def empty(numel: int, dtype: Any) -> np.ndarray:
    """As numpy's, but from :data:`KEPT` bytes on it takes the memory of an earlier one that nobody holds any more.

    Fresh memory costs a page fault every 4 kB, which is more than a loop that writes it.
    """
    kind = np.dtype(dtype)
    if numel * kind.itemsize < KEPT:
        return np.empty(numel, dtype)
    return _lent((numel,), kind.str, numel * kind.itemsize)


def _lent(shape: tuple[int, ...], kind: str, nbytes: int) -> np.ndarray:
    # Small ones of about the same size share memory; a large one gets what it needs.
    size = nbytes if nbytes >= BEYOND_CACHE else 1 << (nbytes - 1).bit_length()
    try:
        memory = _spare.setdefault(size, []).pop()
    except IndexError:
        memory = np.empty(size + LINE, np.uint8)
        first = -memory.ctypes.data % LINE
        memory = memory[first : first + size]
    return np.asarray(_Lent(memory, shape, kind))


_thread = threading.local()


def scratch(name: str, numel: int, dtype: Any) -> np.ndarray:
    """Memory of this thread to work in, good until it asks for ``name`` again; nothing in it may be handed on."""
    kept: dict[str, np.ndarray] = vars(_thread).setdefault("scratch", {})
    nbytes = numel * np.dtype(dtype).itemsize
    if name not in kept or kept[name].size < nbytes:
        kept[name] = np.empty(nbytes, np.uint8)
    return kept[name][:nbytes].view(dtype)


class _Lent:
    """Memory on loan: every array and tensor that lies in it keeps this alive."""

    __slots__ = ("__array_interface__", "_memory")

    def __init__(self, memory: np.ndarray, shape: tuple[int, ...], kind: str) -> None:
        self._memory = memory
        self.__array_interface__ = {"data": (memory.ctypes.data, False), "shape": shape, "typestr": kind, "version": 3}

    def __del__(self) -> None:
        if _take_back is not None:  # else the interpreter is ending
            _take_back(self._memory)


def empty_like(tensor: Tensor) -> Tensor:
    """As torch's, in the memory of :func:`empty` on a CPU."""
    return new(tensor.shape, tensor.dtype, tensor.device)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch's, in the memory of :func:`empty` on a CPU: filling it again takes a fifth of what fresh pages do."""
    return new(shape, dtype, device).zero_()


def new(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.empty``, in the memory of :func:`empty` on a CPU."""
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or nbytes < KEPT:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    if dtype in KINDS:
        return torch.from_numpy(_lent(tuple(shape), KINDS[dtype], nbytes))
    return torch.from_numpy(_lent((nbytes,), "|u1", nbytes)).view(dtype).reshape(tuple(shape))


def _take_back(memory: np.ndarray) -> None:
    kept = _spare.setdefault(memory.nbytes, [])
    if memory.nbytes >= BEYOND_CACHE:
        room = len(kept) < 2
    else:
        room = sum(size * len(some) for size, some in list(_spare.items()) if size < BEYOND_CACHE) < SPARE
    if room:
        kept.append(memory)
