"""Who may talk to whom: named graphs, graphs from a file or a line of text, and whether they hold together."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from laconic.errors import ConfigError, unknown

Edges = tuple[tuple[int, int], ...]
EDGE = re.compile(r"\s*(\d+)\s*(-|>|\s)\s*(\d+)\s*")
WRITTEN = re.compile(r"[\d\s,;>#-]+")
TRIES = 100


@dataclass(frozen=True)
class Topology:
    """Directed edges (from, to), a set of them each round; after the last round's the first's come again.

    ``both``: every edge goes both ways, in each round.
    """

    name: str
    size: int
    rounds: tuple[Edges, ...]

    @cached_property
    def both(self) -> bool:
        """Whether every edge goes both ways."""
        return all({(b, a) for a, b in edges} == set(edges) for edges in self.rounds)

    def targets(self, rank: int, round: int) -> list[int]:
        """Whom ``rank`` sends to in this round."""
        return self._ends[0][round % len(self.rounds)][rank]

    def sources(self, rank: int, round: int) -> list[int]:
        """Whom ``rank`` hears from in this round."""
        return self._ends[1][round % len(self.rounds)][rank]

    @cached_property
    def _ends(self) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
        ends: tuple[list[list[list[int]]], list[list[list[int]]]] = ([], [])
        for edges in self.rounds:
            for way, (mine, other) in enumerate(((0, 1), (1, 0))):
                lists: list[list[int]] = [[] for _ in range(self.size)]
                for edge in sorted(edges):
                    lists[edge[mine]].append(edge[other])
                ends[way].append(lists)
        return ends


class Shape(NamedTuple):
    """A graph before the number of workers is known: ``among(size)`` is the graph of so many."""

    name: str
    among: Callable[[int], Topology]


def shape(text: str, seed: int = 0) -> Shape:
    """The graph that ``text`` says.

    ``ring``, ``torus``, ``complete``; ``exponential`` (to the workers 1, 2, 4, 8 ... places on) and ``one-peer`` (the
    same, one of them a round, in turn); ``random`` or ``random:0.3`` (each pair with that probability) and
    ``regular:3`` (each worker with so many), both drawn from ``seed``; or edges: ``0-1,1-2`` both ways, ``0>1,1>2`` one
    way, ``;`` between the edges of one round and the next. A name with a dot or a slash is a file of edges, one a line.

    Raises: ConfigError for an unknown name, a file that cannot be read, and edges that are none; ``among`` for a number
            of workers that does not fit, and a graph that falls apart.
    """
    if not isinstance(text, str):
        raise ConfigError(f"graph: wanted a name, edges such as '0-1,1-2', or a file, got {text!r}")
    rounds = _given(text)
    if rounds is not None:
        print_ = hashlib.sha256(repr(rounds).encode()).hexdigest()[:8]
        label = text if WRITTEN.fullmatch(text) and len(text) <= 40 else f"{Path(text).name[:40]} {print_}"
        make: Callable[[int], Topology] = lambda size: _of_edges(label, size, rounds)  # noqa: E731
    else:
        name, colon, value = text.partition(":")
        if name not in MAKERS or (colon and name not in ("random", "regular")):
            raise unknown("graph", text, MAKERS)
        number = _number(text, value) if colon else None
        if name in ("random", "regular"):
            _check_number(name, number)
        label = text
        make = lambda size: _named(label, size, name, number, seed)  # noqa: E731

    return Shape(label, lru_cache(maxsize=4)(make))


@lru_cache(maxsize=8)
def _of_edges(label: str, size: int, rounds: tuple[Edges, ...]) -> Topology:
    """The same for all workers of a process, of whom there may be a thousand."""
    return _connected(Topology(label, size, _fitting(label, rounds, size)))


@lru_cache(maxsize=8)
def _named(label: str, size: int, name: str, number: float | None, seed: int) -> Topology:
    rounds = MAKERS[name](size, number, f"graph/{seed}/{size}") if size > 1 else ((),)
    return _connected(Topology(label, size, rounds))


# -- edges that are given ----------------------------------------------------------------------------------------


def _given(text: str) -> tuple[Edges, ...] | None:
    """The rounds of edges that a line or a file holds; None for a name."""
    if WRITTEN.fullmatch(text):
        return _edges(text, text)
    if "." not in text.partition(":")[0] and "/" not in text:
        return None
    try:
        lines = Path(text).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"graph: {text} cannot be read: {why}") from None
    kept = [line.split("#")[0].strip() for line in lines]
    return _edges(",".join(line for line in kept if line).replace(",;", ";").replace(";,", ";"), text)


def _edges(text: str, where: str) -> tuple[Edges, ...]:
    rounds = []
    for part in text.strip(" ,;").split(";"):
        edges = set()
        for item in filter(None, (piece.strip() for piece in part.split(","))):
            match = EDGE.fullmatch(item)
            if match is None:
                raise ConfigError(f"graph {where}: {item!r} is no edge; write 0-1 for both ways or 0>1 for one")
            a, b = int(match[1]), int(match[3])
            if a == b:
                raise ConfigError(f"graph {where}: {item!r} leads from worker {a} to itself; leave it out")
            edges |= {(a, b)} if match[2] == ">" else {(a, b), (b, a)}
        rounds.append(tuple(sorted(edges)))
    if not any(rounds):
        raise ConfigError(f"graph {where}: it has no edges")
    return tuple(rounds)


def _fitting(label: str, rounds: tuple[Edges, ...], size: int) -> tuple[Edges, ...]:
    count = 1 + max(end for edges in rounds for edge in edges for end in edge)
    if count != size:
        raise ConfigError(
            f"graph {label}: it is of {count} workers (0 to {count - 1}), and the run has {size}; give it a graph of "
            f"{size}, or {count} workers"
        )
    return rounds


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"graph {text!r}: {value!r} is no number; write random:0.3 or regular:3") from None


def _check_number(name: str, number: float | None) -> None:
    if name == "random" and number is not None and not 0 < number <= 1:
        raise ConfigError(f"graph random:{number:g}: the probability of an edge must be in (0, 1]")
    if name == "regular" and (number is None or number != int(number) or number < 2):
        raise ConfigError("graph regular: say how many neighbours each has, at least 2, such as regular:3")


# -- graphs with a name ------------------------------------------------------------------------------------------


def _ring(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    return (_both((i, (i + 1) % size) for i in range(size)),)


def _torus(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    rows = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0)
    if rows == 1:
        raise ConfigError(f"graph torus: {size} workers make no rectangle; use ring, or a number with two factors")
    import networkx

    places = networkx.grid_2d_graph(rows, size // rows, periodic=True)
    columns = size // rows
    return (_both((a * columns + b, c * columns + d) for (a, b), (c, d) in places.edges if (a, b) != (c, d)),)


def _hops(size: int) -> list[int]:
    return [1 << k for k in range(max(1, (size - 1).bit_length()))]


def _exponential(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    return (tuple(sorted({(i, (i + hop) % size) for i in range(size) for hop in _hops(size)})),)


def _one_peer(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    return tuple(tuple((i, (i + hop) % size) for i in range(size)) for hop in _hops(size))


def _complete(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    return (tuple((i, j) for i in range(size) for j in range(size) if i != j),)


def _random(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    """Erdős–Rényi, drawn again until it is connected; by default dense enough that the first draw mostly is."""
    share = number if number is not None else min(1.0, 2 * math.log(size) / size)
    for attempt in range(TRIES):
        draw = random.Random(f"{seed}/{attempt}")
        edges = _both((i, j) for i in range(size) for j in range(i) if draw.random() < share)
        if len(_reached(size, edges)) == size:
            return (edges,)
    raise ConfigError(
        f"graph random:{share:g}: {TRIES} draws among {size} workers all fell apart; make an edge likelier, such as "
        f"random:{min(1.0, 2 * math.log(size) / size):.2g}"
    )


def _regular(size: int, number: float | None, seed: str) -> tuple[Edges, ...]:
    degree = int(number or 0)
    if degree >= size or degree * size % 2:
        raise ConfigError(
            f"graph regular:{degree}: {size} workers cannot have {degree} neighbours each; there must be more workers "
            "than that, and one of the two numbers even"
        )
    import networkx

    for attempt in range(TRIES):
        made = networkx.random_regular_graph(degree, size, seed=random.Random(f"{seed}/{attempt}"))
        edges = _both(made.edges)
        if len(_reached(size, edges)) == size:
            return (edges,)
    raise ConfigError(f"graph regular:{degree}: {TRIES} draws among {size} workers all fell apart; use more neighbours")


MAKERS: dict[str, Callable[[int, float | None, str], tuple[Edges, ...]]] = {
    "ring": _ring,
    "torus": _torus,
    "exponential": _exponential,
    "one-peer": _one_peer,
    "complete": _complete,
    "random": _random,
    "regular": _regular,
}


def _both(edges: Iterable[tuple[int, int]]) -> Edges:
    return tuple(sorted({way for a, b in edges for way in ((a, b), (b, a))}))


# -- whether it holds together -----------------------------------------------------------------------------------


def _connected(made: Topology) -> Topology:
    """The graph itself; one in which something never gets from one worker to another, over all rounds, is refused."""
    union = tuple({edge for edges in made.rounds for edge in edges})
    here = _reached(made.size, union)
    if len(here) < made.size and all((b, a) in union for a, b in union):
        raise ConfigError(
            f"graph {made.name}: not connected: no edge joins {_workers(here)} with "
            f"{_workers(set(range(made.size)) - here)}"
        )
    back = _reached(made.size, tuple((b, a) for a, b in union))
    for met, way in ((here, "from worker 0 to"), (back, "to worker 0 from")):
        if len(met) < made.size:
            raise ConfigError(
                f"graph {made.name}: not connected: no way leads {way} {_workers(set(range(made.size)) - met)}"
            )
    return made


def _reached(size: int, edges: Edges) -> set[int]:
    """Whom something that starts at worker 0 gets to."""
    onward: list[list[int]] = [[] for _ in range(size)]
    for a, b in edges:
        onward[a].append(b)
    met, front = {0}, [0]
    while front:
        front = [b for a in front for b in onward[a] if b not in met and not met.add(b)]  # type: ignore[func-returns-value]
    return met


def _workers(ranks: set[int]) -> str:
    listed = sorted(ranks)
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return f"worker{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed[:8]))}{more}"
