"""Adaptive: as much of each tensor as the link carries while the workers compute."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor
from laconic.compress.error_feedback import error_feedback
from laconic.compress.topk import topk
from laconic.errors import ClashError, ConfigError, LaconicError, PacketError
from laconic.exchange.accordion import one_state
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.packet import Message, Packet
from laconic.state import checkpointed

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SLACK = 0.9  # a level is only raised if it fits into so much of its room, or noise would move it up and down
SESSION = time.time_ns()  # a clock's readings mean nothing to a process that resumes later
PROBE = (256, 256)


@checkpointed
class Mark(NamedTuple):
    """Readings after the last measured round: ``round``, the clock's ``seconds``, the meter's bytes, and its seconds
    spent waiting or compressing (``busy``).
    """

    session: int
    round: int
    seconds: float
    busy: float
    nbytes: int


@checkpointed
class AdaptiveState(NamedTuple):
    """``round`` counts rounds; ``level`` is a place in the grid, ``prices`` the bytes of a round at each.

    ``exchange``: how long all the exchanges of one round take at this level; ``compute``: how long the slowest worker
    computes between two. Both are smoothed, in seconds, and 0 where nothing has been measured yet.
    """

    round: int
    level: int
    exchange: float
    compute: float
    mark: Mark
    prices: tuple[int, ...]
    inner: Any


def adaptive(
    kind: Callable[[float], Compressor] = topk,
    grid: Sequence[float] = GRID,
    room: float = 0.5,
    every: int = 10,
    smoothing: float = 0.3,
    clock: Callable[[], float] | None = None,
) -> Exchange:
    """Exchange by :func:`everyone` and ``kind(density)``, at the largest density of ``grid`` that hides.

    Once in ``every`` rounds a round is measured: all workers say that they are ready, so that waiting for a slow one
    does not count; then how long it takes until all have heard all. The slowest exchange and the slowest computation
    of all workers decide, the same on each. A level hides if its exchange takes at most ``room`` of the computation
    between two rounds. Seconds are taken to be ``a + bytes / R``, of which the last measurement times the ratio of the
    bytes is never less on the way up. The level begins at the lowest.

    Where a sync exchanges in buckets, each has a level of its own; its share of the exchange is that of its bytes.
    Seconds are by ``clock``, by default the link's.

    Wire:   that of the level; two messages of a few bytes to every peer once in ``every`` rounds.
    Law:    the error memory is kept through changes of level. With a grid of one density it is :func:`everyone`.
    Raises: ConfigError for settings out of range; ClashError for a ``kind`` that has no density.
    Source: the rule of when compression pays; the model of a link is the usual one of latency and rate.
    """
    check_settings(grid, room, every, smoothing)
    compressors = levels(kind, grid)
    talks = [everyone(compressor) for compressor in compressors]
    for talk in talks[1:]:
        one_state("adaptive", talks[0], talk)

    def init(tensors: Tensors) -> AdaptiveState:
        prices = tuple(price(compressor, tensors) for compressor in compressors)
        return AdaptiveState(0, 0, 0.0, 0.0, Mark(0, 0, 0.0, 0.0, 0), prices, talks[0].init(tensors))

    def run(tensors: Tensors, state: AdaptiveState, link: Link) -> tuple[list[Tensor], AdaptiveState]:
        now = link.now if clock is None else clock
        count = state.round + 1
        timed = len(talks) > 1 and link.size > 1 and bool(tensors)
        measured = timed and count % every == 0
        called, busy = now(), link.meter.seconds_waiting + link.meter.seconds_compressing
        if measured:
            link.all_gather([Packet({})])
        start, before = now(), link.meter.bytes_out
        combined, inner = talks[state.level].run(tensors, state.inner, link)
        after = state._replace(round=count, inner=inner)
        if not measured:
            fresh = (
                not timed or state.mark.session == SESSION
            )  # else the first round, or the first of a process that resumes
            return combined, after if fresh else after._replace(mark=reading(count, now(), link))
        seconds, own = now() - start, link.meter.bytes_out - before
        mark, rounds = state.mark, count - state.mark.round
        if mark.session == SESSION and own > 0:
            everything = (link.meter.bytes_out - mark.nbytes) / rounds  # of all buckets, of which this is one
            computed = (called - mark.seconds - (busy - mark.busy)) / rounds
            measurement = slowest(link, seconds * max(1.0, everything / own), max(0.0, computed))
            after = settled(after, *measurement)
        else:
            slowest(link, 0.0, 0.0)  # the others count on my word
        return combined, after._replace(mark=reading(count, now(), link))

    def settled(state: AdaptiveState, exchanged: float, computed: float) -> AdaptiveState:
        exchange = smoothed(state.exchange, exchanged, smoothing)
        compute = smoothed(state.compute, computed, smoothing)
        level = fitting(state.level, exchange, room * compute, state.prices)
        # What was measured at one level says nothing exact of another: the next measurement begins anew.
        return state._replace(level=level, exchange=exchange if level == state.level else 0.0, compute=compute)

    return Exchange(
        init,
        run,
        equal=True,
        name=f"adaptive({talks[0].name}, {grid[0]:g} to {grid[-1]:g}, room={room:g}, every={every})",
        sparse=any(talk.sparse for talk in talks),
        momentum=talks[0].momentum,
    )


def fitting(level: int, seconds: float, room: float, prices: Sequence[int]) -> int:
    """The highest level whose exchange takes at most ``room`` seconds, given that ``level``'s takes ``seconds``.

    Law:    where seconds are ``a + bytes / R`` with ``a >= 0``, a level that is raised to does fit; one that is lowered
            to may not yet, and is lowered again. Nothing is raised and lowered in turns.
    """
    bound = [seconds * price / prices[level] for price in prices]
    if bound[level] > room:
        return max((i for i in range(level) if bound[i] <= room), default=0)
    return max((i for i in range(level + 1, len(prices)) if bound[i] <= SLACK * room), default=level)


def smoothed(old: float, new: float, weight: float) -> float:
    """An exponential mean that begins with the first value."""
    return new if old == 0.0 else old + weight * (new - old)


def slowest(link: Link, *mine: float) -> list[float]:
    """The largest of all workers' numbers, place by place; the same on every worker."""
    heard = link.all_gather([Packet({}, {"seconds": list(mine)})])
    return [max(column) for column in zip(*(_numbers(message, len(mine)) for message in heard), strict=True)]


def _numbers(message: Message, count: int) -> list[float]:
    numbers = message[0].header.get("seconds") if len(message) == 1 else None
    if not isinstance(numbers, list) or len(numbers) != count:
        raise PacketError(f"adaptive: wanted {count} measurements of a peer, got {str(numbers)[:40]}")
    if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
        raise PacketError(f"adaptive: a peer measured {str(numbers)[:40]}, wanted seconds")
    return [float(n) for n in numbers]


def reading(round: int, seconds: float, link: Link) -> Mark:
    """What clock and meter show now."""
    meter = link.meter
    return Mark(SESSION, round, seconds, meter.seconds_waiting + meter.seconds_compressing, meter.bytes_out)


def price(compressor: Compressor, tensors: Tensors) -> int:
    """Bytes of one round's packets, found by compressing tensors without data; vectors as :func:`everyone` has them."""
    nbytes = 0
    for tensor in tensors:
        if tensor.dim() > 1 or compressor.summable:
            like = torch.empty_like(tensor, device="meta")
            nbytes += compressor.compress(like, compressor.init(like))[0].nbytes
        else:
            nbytes += tensor.numel() * tensor.element_size()
    return max(1, nbytes)


def levels(kind: Callable[[float], Compressor], grid: Sequence[float], who: str = "adaptive") -> list[Compressor]:
    """``kind`` at each density, with feedback where it has none of its own.

    Raises: ClashError for what is no function of a density, or sends no more at a higher one.
    """
    what = getattr(kind, "__name__", None) or getattr(kind, "name", str(kind))
    probe = torch.empty(PROBE, device="meta")
    try:
        found = [kind(density) for density in grid]
        sizes = [compressor.compress(probe, compressor.init(probe))[0].nbytes for compressor in found]
    except (TypeError, ValueError, AttributeError, RuntimeError, LaconicError) as error:
        raise ClashError(f"{who}: {what} has no density to set ({error}); give topk, random_k, ...") from None
    if any(b <= a for a, b in itertools.pairwise(sizes)):
        raise ClashError(f"{who}: {what} sends no more at a higher level; give topk, random_k, ...")
    return [compressor if compressor.no_feedback else error_feedback(compressor) for compressor in found]


def check_settings(grid: Sequence[float], room: float, every: int, smoothing: float) -> None:
    """Check what :func:`adaptive` is given.

    Raises: ConfigError.
    """
    if not grid or any(b <= a for a, b in itertools.pairwise(grid)):
        raise ConfigError(f"adaptive: grid must be densities that rise, got {list(grid)}")
    if not 0 < room < math.inf:
        raise ConfigError(f"adaptive: room must be positive, got {room}; it is a share of the time of computation")
    if type(every) is not int or every < 2:
        raise ConfigError(f"adaptive: every must be a whole number of at least 2, got {every!r}; it counts rounds")
    if not 0 < smoothing <= 1:
        raise ConfigError(f"adaptive: smoothing must be in (0, 1], got {smoothing}; it is the newest one's share")
