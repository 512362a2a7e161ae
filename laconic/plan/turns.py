"""A plan from each worker's side, what it sends and takes in its turn, and how long all of them take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sized
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.ports import Ports
from laconic.plan.rounds import Plan, Transfer

Span = tuple[int, int]


class Turn(NamedTuple):
    """What one worker does in a round.

    ``sends`` and ``takes`` are peers with the blocks of their message, in the order in which they are served. ``sums``
    are blocks with those who sent them to be added; ``copies`` blocks that take the place of what is there.
    """

    sends: tuple[tuple[int, tuple[Span, ...]], ...]
    takes: tuple[tuple[int, tuple[Span, ...]], ...]
    sums: tuple[tuple[Span, tuple[int, ...]], ...]
    copies: tuple[tuple[Span, int], ...]


@lru_cache(maxsize=64)
def turns(plan: Plan) -> list[list[Turn | None]]:
    """What each worker does in each round; None where it has no part."""
    found: list[list[Turn | None]] = [[None] * len(plan.rounds) for _ in range(plan.workers)]
    for number, transfers in enumerate(plan.rounds):
        out: defaultdict[int, defaultdict[int, list[Span]]] = defaultdict(lambda: defaultdict(list))
        into: defaultdict[int, list[Transfer]] = defaultdict(list)
        for t in transfers:
            out[t.source][t.target].append((t.start, t.stop))
            into[t.target].append(t)
        for rank in sorted(out.keys() | into.keys()):
            sends = {peer: tuple(spans) for peer, spans in out[rank].items()}
            # The next one first, so that not everyone queues at one worker.
            order = sorted(sends, key=lambda peer: (peer - rank) % plan.workers)
            takes = {t.source: tuple(out[t.source][rank]) for t in into[rank]}
            heard = sorted(takes, key=lambda peer: (rank - peer) % plan.workers)
            found[rank][number] = Turn(
                tuple((peer, sends[peer]) for peer in order),
                tuple((peer, takes[peer]) for peer in heard),
                _sums([t for t in into[rank] if t.adds]),
                tuple(((t.start, t.stop), t.source) for t in into[rank] if not t.adds),
            )
    return found


def _sums(adding: list[Transfer]) -> tuple[tuple[Span, tuple[int, ...]], ...]:
    """Blocks with all who send them: cut wherever a transfer begins or ends."""
    begin: defaultdict[int, set[int]] = defaultdict(set)
    end: defaultdict[int, set[int]] = defaultdict(set)
    for t in adding:
        begin[t.start].add(t.source)
        end[t.stop].add(t.source)
    found: list[tuple[Span, tuple[int, ...]]] = []
    here: set[int] = set()
    for start, stop in pairwise(sorted(begin.keys() | end.keys())):
        here = (here - end[start]) | begin[start]
        if here:
            found.append(((start, stop), tuple(sorted(here))))
    return tuple(found)


def seconds(plan: Plan, ports: Ports, nbytes: float) -> float:
    """Until the last worker has the sum, if each goes on as soon as it has what it waits for.

    :func:`laconic.plan.genmodel.price` lets a round begin when all have ended the one before, which is too long where
    links are uneven: then only those who hear from a slow one wait. Here a worker sends its messages one after the
    other, each occupying it until all but ``ports.ahead`` bytes have left, then takes those sent to it in turn, and
    then adds. A byte at a port takes ``epsilon`` longer for each worker beyond ``w_t`` that it deals with in the round.

    Raises: ConfigError for ports that transfers share otherwise than at their two ends.
    """
    if ports.ahead is None or plan.workers != ports.workers:
        raise ConfigError(f"{plan.name}: workers' clocks are for {plan.workers} workers with a port out and in each")
    everyone = np.arange(plan.workers)
    sources, targets = np.repeat(everyone, plan.workers), np.tile(everyone, plan.workers)
    betas = ports.route(sources, targets)[1]
    out, into, line = (betas[:, k].reshape(plan.workers, -1).tolist() for k in (0, 1, 2 if betas.shape[1] > 2 else 0))
    start = ports.start(sources, targets).reshape(plan.workers, -1).tolist()
    block = nbytes / plan.blocks
    gamma, delta = (ports.gamma * block).tolist(), (ports.delta * block).tolist()
    clock, free, up = [0.0] * plan.workers, [0.0] * plan.workers, [0.0] * plan.workers
    busy: dict[tuple[int, int], float] = {}
    epsilon, w_t = ports.epsilon.tolist(), ports.w_t.tolist()

    def crowd(port: int, peers: Sized) -> float:
        return max(len(peers) + 1 - w_t[port], 0.0) * epsilon[port] if epsilon[port] else 0.0

    for number in range(len(plan.rounds)):
        due: dict[tuple[int, int], float] = {}
        here = [(rank, turn) for rank, mine in enumerate(turns(plan)) if (turn := mine[number]) is not None]
        for rank, turn in here:
            for to, spans in turn.sends:
                size, begin = _length(spans) * block, max(clock[rank], up[rank])
                up[rank] = begin + size * (out[rank][to] + crowd(rank, turn.sends))
                left = max(up[rank], max(begin, busy.get((rank, to), 0.0)) + size * line[rank][to])
                busy[rank, to] = left
                due[rank, to] = left + start[rank][to]
                clock[rank] = max(clock[rank], left - min(size, ports.ahead) * max(out[rank][to], line[rank][to]))
        for rank, turn in here:
            crowded = crowd(plan.workers + rank, turn.takes)
            for source, spans in sorted(turn.takes, key=lambda take: due[take[0], rank]):
                slow = into[source][rank] + crowded
                free[rank] = max(due[source, rank], free[rank] + _length(spans) * block * slow)
            clock[rank] = max(clock[rank], free[rank])
            added = [(stop - first, len(sources)) for (first, stop), sources in turn.sums]
            clock[rank] += sum(size * (count * gamma[rank] + (count + 2) * delta[rank]) for size, count in added)
    return max(clock, default=0.0)


def _length(spans: tuple[Span, ...]) -> int:
    return sum(stop - start for start, stop in spans)
