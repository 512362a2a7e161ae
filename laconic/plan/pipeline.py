"""Pipelines: in which order each stage takes its micro-batches, and when everything is done.

A stage is one worker's part of the model, in ``chunks`` pieces; the pieces of all stages, in the order in which a
micro-batch passes them, are numbered ``chunk * stages + stage``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple

from laconic.errors import ConfigError


class Turn(NamedTuple):
    """One thing that a stage does: the forward or the backward pass of a micro-batch through one of its chunks."""

    forward: bool
    micro_batch: int
    chunk: int = 0


Order = list[list[Turn]]  # of each stage


def gpipe(stages: int, micro_batches: int) -> Order:
    """All forward, then all backward.

    Source: Huang et al. 2019, arXiv:1811.06965.
    """
    forward = [Turn(True, m) for m in range(micro_batches)]
    return [[*forward, *(Turn(False, m) for m in range(micro_batches))] for _ in range(stages)]


def one_forward_one_backward(stages: int, micro_batches: int) -> Order:
    """Each stage begins with as many forward passes as stages follow it, and then takes turns.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2.1.
    """
    return [
        _turns([(m, 0) for m in range(micro_batches)], [(m, 0) for m in range(micro_batches)], stages - stage - 1)
        for stage in range(stages)
    ]


def interleaved(stages: int, micro_batches: int, chunks: int) -> Order:
    """Each stage has ``chunks`` pieces of the model, far apart, and goes to the next after ``stages`` micro-batches.

    With one chunk it is :func:`one_forward_one_backward`, which gets along with a shorter beginning.

    Raises: ConfigError unless the stages divide the micro-batches.
    Source: arXiv:2104.04473, section 2.2.2.
    """
    if chunks == 1:
        return one_forward_one_backward(stages, micro_batches)
    if micro_batches % stages:
        raise ConfigError(
            f"interleaved: {stages} stages do not divide {micro_batches} micro-batches; "
            f"take {-(-micro_batches // stages) * stages} micro-batches, or one chunk a stage"
        )
    return [
        _turns(*_passes(stages, micro_batches, chunks), 2 * (stages - stage - 1) + (chunks - 1) * stages)
        for stage in range(stages)
    ]


def order(stages: int, micro_batches: int, chunks: int = 1) -> Order:
    """The order that training takes: interleaved, or with one chunk one forward and one backward."""
    return interleaved(stages, micro_batches, chunks)


def _passes(stages: int, micro_batches: int, chunks: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Micro-batch and chunk of a stage's forward passes, and of its backward passes."""
    forward, backward = [], []
    for k in range(micro_batches * chunks):
        rounds, place = divmod(k, stages * chunks)
        chunk, one = divmod(place, stages)
        forward.append((rounds * stages + one, chunk))
        backward.append((rounds * stages + one, chunks - 1 - chunk))
    return forward, backward


def _turns(forward: Sequence[tuple[int, int]], backward: Sequence[tuple[int, int]], before: int) -> list[Turn]:
    """So many forward passes, then one forward and one backward in turn, then what is left of the backward ones."""
    before = min(before, len(forward))
    turns = [Turn(True, *one) for one in forward[:before]]
    for there, back in zip(forward[before:], backward, strict=False):
        turns += [Turn(True, *there), Turn(False, *back)]
    return turns + [Turn(False, *one) for one in backward[len(forward) - before :]]


class Hop(NamedTuple):
    """A message from one stage to a neighbour: how long it holds the line, and how much later it has come."""

    line: Any
    later: Any = 0


class Timeline(NamedTuple):
    """When each stage is done with its last turn, and how long it has computed; in the unit that was given."""

    ends: tuple[Any, ...]
    busy: tuple[Any, ...]

    @property
    def total(self) -> Any:
        """When all are done."""
        return max(self.ends)


def simulate(
    order: Order, forward: Sequence[Any], backward: Sequence[Any], there: Sequence[Hop] = (), back: Sequence[Hop] = ()
) -> Timeline:
    """Go through the turns of all stages, each as soon as its stage is free and what it needs has come.

    ``forward`` and ``backward`` are the seconds of each piece for one micro-batch, ``there`` and ``back`` the messages
    from each piece to the next and from the next to it. A message does not keep its sender busy, but the line: a stage
    has one each way, and the next message waits for it. Rational numbers give rational times, exactly.
    """
    stages, pieces = len(order), len(forward)
    there, back = (there or [Hop(0)] * pieces), (back or there or [Hop(0)] * pieces)
    free = {True: [0] * stages, False: [0] * stages}  # when a stage's line to the next, and to the one before, is free
    come: dict[tuple[bool, int, int], Any] = {}  # when a pass's input is there
    for turn in order[0]:
        if turn.forward and turn.chunk == 0:
            come[True, turn.micro_batch, 0] = 0
    clocks: list[Any] = [0] * stages
    places = [0] * stages
    left = sum(len(turns) for turns in order)
    while left:
        before = left
        for stage in range(stages):
            turns, now, at = order[stage], clocks[stage], places[stage]
            while at < len(turns):
                onward, micro_batch, chunk = turns[at]
                piece = chunk * stages + stage
                ready = come.pop((onward, micro_batch, piece), None)
                if ready is None:
                    break
                now = max(now, ready) + (forward[piece] if onward else backward[piece])
                if onward and piece == pieces - 1:
                    come[False, micro_batch, piece] = now
                elif onward or piece:
                    hop = there[piece] if onward else back[piece - 1]
                    gone = free[onward][stage] = max(now, free[onward][stage]) + hop.line
                    come[onward, micro_batch, piece + (1 if onward else -1)] = gone + hop.later
                at += 1
            left -= at - places[stage]
            clocks[stage], places[stage] = now, at
        assert left < before, "every order here can be carried out"
    busy = tuple(
        sum(forward[t.chunk * stages + s] if t.forward else backward[t.chunk * stages + s] for t in turns)
        for s, turns in enumerate(order)
    )
    return Timeline(tuple(clocks), busy)


def steady(
    stages: int,
    micro_batches: int,
    chunks: int,
    forward: Sequence[float],
    backward: Sequence[float],
    there: Sequence[Hop] = (),
    back: Sequence[Hop] = (),
) -> Timeline:
    """:func:`simulate` for many micro-batches: the first some are simulated, and the pace of the last of them goes on.

    Exact where the pipeline has a steady pace by then, as equal stages have; else within a hundredth.
    """
    short = SETTLED * stages + micro_batches % stages
    if micro_batches <= short + PACED * stages:
        return simulate(order(stages, micro_batches, chunks), forward, backward, there, back)
    a, b = (simulate(order(stages, m, chunks), forward, backward, there, back) for m in (short, short + PACED * stages))
    more = (micro_batches - short) / (PACED * stages)
    grown = (tuple(x + (y - x) * more for x, y in zip(*pair, strict=True)) for pair in zip(a, b, strict=True))
    return Timeline(*grown)


SETTLED = 3  # so many micro-batches a stage before the pace is taken, and
PACED = 2  # over so many


def bubble(stages: int, micro_batches: int, chunks: int = 1) -> Fraction:
    """The share of waiting to computing in a pipeline of equal stages: ``(p - 1) / (v m)``.

    Source: arXiv:2104.04473, sections 2.2.1 and 2.2.2.
    """
    return Fraction(stages - 1, chunks * micro_batches)


def in_flight(stages: int, stage: int, micro_batches: int, chunks: int = 1) -> Fraction:
    """Micro-batches whose activations a stage holds at most, in units of all its layers.

    Law:    with one chunk ``min(p - i, m)``; the first of ``v`` chunks ``p (1 + (p - 1) / (p v))``.
    Source: arXiv:2205.05198, section 4.2.3.
    """
    before = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
    return Fraction(min(before + 1, micro_batches * chunks), chunks)


def least_time(forward: Sequence[Any], backward: Sequence[Any], micro_batches: int) -> Any:
    """No order of one piece a stage takes less: a stage computes all its passes after the first has come to it and
    before the last has gone back from it."""
    whole = [f + b for f, b in zip(forward, backward, strict=True)]
    return max(micro_batches * t + before for t, before in zip(whole, accumulate(whole, initial=0), strict=False))


def best_micro_batch(seconds: Callable[[int], float], stages: int, examples: int, sizes: Sequence[int]) -> int:
    """The micro-batch that ends first when one takes a stage ``seconds(size)``, forward and backward.

    ``examples`` are those of one copy in a step. Least is ``(examples / b + p - 1) seconds(b)``.

    Raises: ConfigError if no size divides the examples.
    Source: arXiv:2104.04473, section 3.4 (equation 1).
    """
    whole = [size for size in sizes if examples % size == 0]
    if not whole:
        raise ConfigError(f"none of the micro-batches {list(sizes)} divides a copy's {examples} examples")
    return min(whole, key=lambda size: ((examples // size + stages - 1) * seconds(size), size))
