"""Red-blue pebbling with several processors: what a computation costs in steps, and in words that come and go.

A processor has room for so many words, its *red* pebbles; slow memory, the *blue* ones, is shared and has no end.
Values that only inputs give are blue at the beginning, and what nobody uses further must be blue at the end. A step is
of one kind: every processor may compute one value whose inputs it all holds, or load one, or store one. Computing steps
cost 1, those of input and output ``gap``; letting go is free. Processors meet only through slow memory.

Source: arXiv:2409.03898 (MPP), after Hong and Kung 1981. To find the best schedule is hard there even approximately, so
:func:`greedy` is an upper bound and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

from laconic.errors import ConfigError

LOAD, STORE, COMPUTE, DROP = "load", "store", "compute", "drop"

Move = tuple[int, int]  # a processor and a value


class Step(NamedTuple):
    """What processors do at once: one kind, and at most one value each (of drops, any number)."""

    kind: str
    moves: tuple[Move, ...]


class Cost(NamedTuple):
    """Steps of computing and of input and output, and the words that were moved."""

    computing: int
    moving: int
    loads: int
    stores: int

    def total(self, gap: float) -> float:
        """All steps, where one of input and output costs ``gap`` of computing."""
        return self.computing + gap * self.moving

    @property
    def words(self) -> int:
        """What went in and out."""
        return self.loads + self.stores


@dataclass(frozen=True)
class Graph:
    """Which values each is computed from; these come before it. Those computed from nothing are given.

    Raises: ConfigError for an input that is not an earlier value, or named twice.
    """

    inputs: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for value, needed in enumerate(self.inputs):
            if any(not 0 <= one < value for one in needed) or len(set(needed)) < len(needed):
                raise ConfigError(f"graph: value {value} must be computed from different earlier ones, got {needed}")

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """Which values are computed from each."""
        found: list[list[int]] = [[] for _ in self.inputs]
        for value, needed in enumerate(self.inputs):
            for one in needed:
                found[one].append(value)
        return tuple(map(tuple, found))

    @cached_property
    def given(self) -> frozenset[int]:
        """Values that are there from the beginning."""
        return frozenset(value for value, needed in enumerate(self.inputs) if not needed)

    @cached_property
    def wanted(self) -> frozenset[int]:
        """Values that must be in slow memory at the end: those that nothing is computed from."""
        return frozenset(value for value, users in enumerate(self.users) if not users)

    @property
    def computed(self) -> int:
        """How many values are computed."""
        return len(self.inputs) - len(self.given)

    @property
    def degree(self) -> int:
        """The most inputs of one value."""
        return max(map(len, self.inputs), default=0)

    @property
    def depth(self) -> int:
        """The most values that must be computed one after the other."""
        depths: list[int] = []
        for needed in self.inputs:
            depths.append(1 + max(depths[one] for one in needed) if needed else 0)
        return max(depths, default=0)


def chain(length: int) -> Graph:
    """A given value, and ``length`` more, each computed from the one before."""
    return Graph(((), *((i,) for i in range(length))))


def reduction(depth: int) -> Graph:
    """A sum of ``2 ** depth`` given values, two at a time, level by level."""
    inputs: list[tuple[int, ...]] = [() for _ in range(2**depth)]
    level = list(range(2**depth))
    while len(level) > 1:
        pairs = list(zip(level[::2], level[1::2], strict=True))
        level = list(range(len(inputs), len(inputs) + len(pairs)))
        inputs += pairs
    return Graph(tuple(inputs))


# -- bounds --------------------------------------------------------------------------------------------------------


def check_room(graph: Graph, words: int) -> None:
    """See that the graph can be computed at all.

    Law:    it can exactly if there is room for the inputs of any value and for that value.
    Raises: ConfigError that says how many words that takes.
    """
    if graph.computed and words < graph.degree + 1:
        raise ConfigError(
            f"pebbling: a value has {graph.degree} inputs, so a processor needs {graph.degree + 1} words, got {words}"
        )


def at_least(graph: Graph, processors: int, gap: float) -> float:
    """What no schedule without recomputation goes below.

    All must be computed, no sooner than the longest path allows; given values that are used must be read, and wanted
    ones that were not given written.
    """
    read = sum(bool(graph.users[value]) for value in graph.given)
    written = len(graph.wanted - graph.given)
    computing = max(math.ceil(graph.computed / processors), graph.depth)
    return computing + gap * math.ceil((read + written) / processors)


def at_most(graph: Graph, gap: float) -> float:
    """What one processor needs that loads the inputs of each value anew, and stores it: any sensible one needs less."""
    return graph.computed * (1 + gap * (graph.degree + 1))


# -- the rules -----------------------------------------------------------------------------------------------------


def replay(graph: Graph, processors: int, words: int, schedule: Iterable[Step]) -> Cost:
    """Follow a schedule by every rule; what it costs.

    Raises: ConfigError that names the step, the processor and the rule it breaks; and where values that are wanted are
            not in slow memory at the end.
    """
    red: list[set[int]] = [set() for _ in range(processors)]
    blue = set(graph.given)
    counts = dict.fromkeys((LOAD, STORE, COMPUTE, DROP), 0)
    words_of = dict.fromkeys(counts, 0)
    for number, (kind, moves) in enumerate(schedule):
        if kind not in counts:
            raise ConfigError(f"step {number}: there is no step called {kind!r}")
        busy = [processor for processor, _ in moves]
        if kind != DROP and len(set(busy)) < len(busy):
            raise ConfigError(f"step {number}: a processor has more than one value to {kind}, and it may have one")
        stored = []
        for processor, value in moves:
            if not (0 <= processor < processors and 0 <= value < len(graph.inputs)):
                raise ConfigError(f"step {number}: there is no processor {processor}, or no value {value}")
            mine = red[processor]
            broken = _broken(graph, kind, value, mine, blue)
            if broken:
                raise ConfigError(f"step {number}: processor {processor} cannot {kind} value {value}: {broken}")
            if kind == STORE:
                stored.append(value)
            elif kind == DROP:
                mine.remove(value)
            else:
                mine.add(value)
            if len(mine) > words:
                raise ConfigError(
                    f"step {number}: processor {processor} holds {len(mine)} words, and has room for {words}"
                )
        blue.update(stored)
        counts[kind] += 1
        words_of[kind] += len(moves)
    missing = sorted(graph.wanted - blue)
    if missing:
        raise ConfigError(f"at the end values {missing[:5]} are not in slow memory, where they are wanted")
    return Cost(counts[COMPUTE], counts[LOAD] + counts[STORE], words_of[LOAD], words_of[STORE])


def _broken(graph: Graph, kind: str, value: int, mine: set[int], blue: set[int]) -> str:
    """The rule that a move breaks, if any."""
    if kind == LOAD:
        return "" if value in blue else "it is not in slow memory"
    if kind in (STORE, DROP):
        return "" if value in mine else "it does not hold it"
    if value in graph.given:
        return "it is given, and computed from nothing"
    lacking = [one for one in graph.inputs[value] if one not in mine]
    return f"it lacks {lacking}" if lacking else ""


# -- a schedule ----------------------------------------------------------------------------------------------------


@dataclass
class _Board:
    """Where values are while a schedule is made."""

    graph: Graph
    red: list[set[int]]
    blue: set[int]
    done: set[int]
    steps: list[Step] = field(default_factory=list)

    def next_use(self, value: int) -> float:
        """The first value still to be computed from this one."""
        return next((float(user) for user in self.graph.users[value] if user not in self.done), math.inf)

    def dead(self, value: int) -> bool:
        """Nobody needs it any more, where it is red."""
        return self.next_use(value) == math.inf and (value not in self.graph.wanted or value in self.blue)

    def together(self, kind: str, queues: Sequence[Sequence[int]]) -> None:
        """Steps in which every processor works off its own queue."""
        for values in zip_longest(*queues):
            self.steps.append(Step(kind, tuple((p, value) for p, value in enumerate(values) if value is not None)))
        for processor, queue in enumerate(queues):
            if kind == STORE:
                self.blue.update(queue)
            else:
                self.red[processor].update(queue)

    def drop(self, moves: Sequence[Move]) -> None:
        if moves:
            self.steps.append(Step(DROP, tuple(moves)))
        for processor, value in moves:
            self.red[processor].remove(value)


def greedy(graph: Graph, processors: int, words: int) -> list[Step]:
    """A schedule by near-sight: each processor takes the value most of whose inputs it holds.

    Ties go to more inputs held, then to the earlier value. What is let go is what is needed again last, and stored
    first if it is needed at all. Nothing is computed twice. An upper bound: it can be far from the best.

    Law:    ``at_least <= cost <= at_most``.
    Raises: ConfigError where there is too little room.
    """
    check_room(graph, words)
    if processors < 1:
        raise ConfigError(f"pebbling: processors must be at least 1, got {processors}")
    board = _Board(graph, [set() for _ in range(processors)], set(graph.given), set(graph.given))
    lacking = [sum(one not in board.done for one in needed) for needed in graph.inputs]
    ready = {value for value in range(len(graph.inputs)) if not lacking[value]} - board.done
    while ready:
        targets = _targets(board, ready)
        _make_room(board, targets, words)
        board.together(LOAD, [_missing(board, p, targets) for p in range(processors)])
        board.steps.append(Step(COMPUTE, tuple(targets.items())))
        for processor, value in targets.items():
            board.red[processor].add(value)
            board.done.add(value)
            for user in graph.users[value]:
                lacking[user] -= 1
                if not lacking[user]:
                    ready.add(user)
        board.drop([(p, value) for p, mine in enumerate(board.red) for value in sorted(mine) if board.dead(value)])
    last: list[list[int]] = [[] for _ in range(processors)]
    for value in sorted(graph.wanted - board.blue):
        last[next(p for p, mine in enumerate(board.red) if value in mine)].append(value)
    board.together(STORE, last)
    return board.steps


def _targets(board: _Board, ready: set[int]) -> dict[int, int]:
    """What each processor computes next; it is taken out of what is ready."""
    targets: dict[int, int] = {}
    inputs = board.graph.inputs
    for processor, mine in enumerate(board.red):
        if not ready:
            break
        held = {value: sum(one in mine for one in inputs[value]) for value in ready}
        best = max(ready, key=lambda value: (held[value] / len(inputs[value]), held[value], -value))
        ready.remove(best)
        targets[processor] = best
    return targets


def _missing(board: _Board, processor: int, targets: dict[int, int]) -> list[int]:
    if processor not in targets:
        return []
    return [one for one in board.graph.inputs[targets[processor]] if one not in board.red[processor]]


def _make_room(board: _Board, targets: dict[int, int], words: int) -> None:
    """Store what others are about to load, and what must go and is still needed; let go of that."""
    stores: list[list[int]] = [[] for _ in board.red]
    coming = set(board.blue)
    for processor in targets:
        for value in _missing(board, processor, targets):
            if value not in coming:
                stores[next(p for p, mine in enumerate(board.red) if value in mine)].append(value)
                coming.add(value)
    drops: list[Move] = []
    for processor, target in targets.items():
        spare = board.red[processor] - set(board.graph.inputs[target])
        over = len(board.red[processor]) + len(_missing(board, processor, targets)) + 1 - words
        order = sorted(spare, key=lambda value: (board.next_use(value), value in coming, value), reverse=True)
        for value in order[: max(over, 0)]:
            drops.append((processor, value))
            if value not in coming:
                stores[processor].append(value)
                coming.add(value)
    board.together(STORE, stores)
    board.drop(drops)
