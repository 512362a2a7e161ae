"""What compressing costs: bytes that its operations make, counted without data, and seconds for each of them.

A compressor's work is counted by running it on ``meta`` tensors: the bytes of every tensor that its operations make,
views left out. The seconds of such a byte are measured once, by running the same exchange on data and without; so a
plan for any model and any number of workers charges what this machine takes, and no second description of the
compressor is kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from laconic.attached import FEW
from laconic.exchange.base import Exchange
from laconic.links import memory
from laconic.links.base import Link
from laconic.links.meter import Meter
from laconic.links.simulated import SimulatedLink
from laconic.plan.job import Job
from laconic.plan.measured import Speed

SAMPLE = 1 << 20  # entries of the tensors that are timed
TIMED = 0.1  # seconds in which a compressor is timed against a probe's time of it
MOST_KNOWN = 1 << 14  # operations whose results' shapes are kept
ROUNDS = 3  # of them, after one that compiles and warms up


class Made(TorchDispatchMode):
    """Counts the bytes of what operations make inside; what only looks at another's memory makes nothing.

    An operation on ``meta`` tensors makes the same for the same shapes: each is asked once, for torch takes several
    times as long to reckon a shape as to make a tensor of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = _asked(func, args, kwargs or {})
        known = _MADE.get(key) if key is not None else None
        if known is not None:
            self.nbytes += known.nbytes
            if _writes(func):
                return args[0]
            return torch.empty_strided(known.shape, known.stride, dtype=known.dtype, device="meta")
        before = _told(args[0]) if key is not None and _writes(func) else None
        out = func(*args, **(kwargs or {}))
        if not _looks(func):
            nbytes = sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor))
            self.nbytes += nbytes
            if key is not None and _made_anew(out, before):
                if len(_MADE) > MOST_KNOWN:
                    _MADE.clear()
                _MADE[key] = _Like(out.shape, out.stride(), out.dtype, nbytes)
        return out


@cache
def _looks(func: Any) -> bool:
    """Whether an operation's result lies in another's memory."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


@cache
def _pure(func: Any) -> bool:
    """Whether it neither writes to what it is given nor looks at it."""
    return all(value.alias_info is None for value in (*func._schema.arguments, *func._schema.returns))


@cache
def _writes(func: Any) -> bool:
    """Whether it writes to its first argument alone, and returns that."""
    first, *rest = func._schema.arguments or [None]
    changed = [value.alias_info for value in (first, *func._schema.returns) if value is not None]
    only = len(changed) == 2 and all(alias is not None and alias.is_write for alias in changed)
    return only and all(value.alias_info is None for value in rest)


def _made_anew(out: Any, before: Any) -> bool:
    """Whether a shape says all about a result: it has no data, and what was written to has kept its shape."""
    return isinstance(out, Tensor) and out.device.type == "meta" and (before is None or before == _told(out))


class _Like(NamedTuple):
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int


_MADE: dict[tuple[Any, ...], _Like] = {}


def _asked(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What an operation's result depends on, on ``meta``; None where it looks at other memory, or has real data."""
    if not (_pure(func) or _writes(func)):
        return None
    try:
        return (func, _told(args), *((name, _told(value)) for name, value in kwargs.items()))
    except TypeError:
        return None


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "meta":
            raise TypeError("its values may matter")
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(_told(entry) for entry in value)
    hash(value)
    return type(value), value  # 1 and 1.0 make tensors of different kinds


class Counting(Meter):
    """A meter that counts what is made while compressing, in ``made``."""

    made = 0

    @contextmanager
    def compressing(self) -> Iterator[None]:
        """Count the time, and the bytes made, inside."""
        with super().compressing(), Made() as inside:
            yield
        self.made += inside.nbytes


class Charged(Meter):
    """The meter of a simulated link on which compressing takes ``pace`` seconds a byte made.

    ``shown`` are those of its seconds that nothing hides: on the thread that trains, or while that waits for the lane.
    """

    def __init__(self, link: SimulatedLink, pace: float) -> None:
        super().__init__(clock=link.now)
        self.link, self.pace, self.shown = link, pace, 0.0

    @contextmanager
    def compressing(self) -> Iterator[None]:
        """Let the time pass that what is done inside takes."""
        if not self.pace:
            yield
            return
        with super().compressing():
            with Made() as inside:
                yield
            seconds = self.pace * inside.nbytes
            self.link.compute(seconds)
            if not self.link.on_lane():
                self.shown += seconds

    def waited(self, start: float, end: float) -> float:
        """Count a wait: what the lane compressed meanwhile is shown, and the rest is waiting."""
        busy = super().waited(start, end)
        self.shown += busy
        return busy


def pace_of(exchange: Exchange | None, job: Job, threads: int = 1, workers: int = 1) -> float:
    """Processor seconds of a byte made while compressing, by this machine: the exchange on data and without.

    It runs among as many as ``workers``, up to FEW, for among several it cuts tensors in parts, and each part costs a
    little by itself. The quickest of a few rounds, since what else the machine does only adds.
    """
    if exchange is None:
        return 0.0
    shapes = [shape for _, shape in job.sample(SAMPLE).shapes]

    def count(link: Link) -> int:
        counting = link.meter = Counting()
        nothing = [torch.empty(shape, device="meta") for shape in shapes]
        state = exchange.run(nothing, exchange.init(nothing), link)[1]
        before = counting.made
        exchange.run(nothing, state, link)  # the first round may begin things
        return counting.made - before

    def take(link: Link) -> float:
        torch.set_num_threads(max(1, threads))  # of this thread
        link.meter = Meter(clock=time.thread_time)
        return _quickest(exchange, shapes, link)

    few = min(workers, FEW)
    made = memory.run(few, count)[0]
    return min(memory.run(few, take)) / made if made else 0.0


def speeds_here(names: Iterable[str], threads: int = 1) -> dict[str, Speed]:
    """What a probe would find of these compressors on this machine."""
    from laconic.plan.probing.machine import compressing

    with _threads(threads):
        return {name: compressing(name, TIMED) for name in names}


def slower_by(there: Mapping[str, Speed], here: Mapping[str, Speed]) -> float:
    """How many times as long as here compressing and decompressing take there: the mean of the compressors' ratios."""

    def seconds(speed: Speed) -> float:
        return 1 / speed.compress.median + 1 / speed.decompress.median

    return statistics.geometric_mean(seconds(there[name]) / seconds(here[name]) for name in there)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    own = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _quickest(exchange: Exchange, shapes: list[tuple[int, ...]], link: Link) -> float:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    found = []
    state = exchange.init(tensors)
    for _ in range(ROUNDS + 1):
        before = link.meter.seconds_compressing
        _, state = exchange.run(tensors, state, link)
        found.append(link.meter.seconds_compressing - before)
    return min(found[1:])
