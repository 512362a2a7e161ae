"""Plans of an all-reduce: rounds of transfers of blocks, and what each receiver does with them.

A plan says who sends which blocks of a vector to whom, round by round. :mod:`laconic.plan.genmodel` prices it, and
:mod:`laconic.exchange.planned` runs it over a link, so that what is priced is what is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError


class Transfer(NamedTuple):
    """Blocks ``start`` to ``stop`` (not included) from one worker to another.

    It ``adds`` to what the target holds of them, or else takes its place.
    """

    source: int
    target: int
    start: int
    stop: int
    adds: bool = True


Round = tuple[Transfer, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """An all-reduce of a vector cut into ``blocks`` equal blocks.

    In a round everyone sends what it held before it. Whoever is sent several parts of a block to add sums them and its
    own in one pass. After the last round every worker holds the sum of all: :func:`check`.
    """

    name: str
    workers: int
    blocks: int
    rounds: tuple[Round, ...]

    @cached_property
    def tables(self) -> tuple[NDArray[np.int64], ...]:
        """Each round as a table: source, target, start, stop and adds of each transfer."""
        return tuple(np.array(transfers, dtype=np.int64).reshape(-1, 5) for transfers in self.rounds)

    def shares(self) -> tuple[list[float], list[float]]:
        """How many times the vector's bytes each worker sends, and how many times it is sent them."""
        out, into = np.zeros(self.workers), np.zeros(self.workers)
        for table in self.tables:
            size = (table[:, 3] - table[:, 2]) / self.blocks
            np.add.at(out, table[:, 0], size)
            np.add.at(into, table[:, 1], size)
        return out.tolist(), into.tolist()

    @cached_property
    def crowd(self) -> int:
        """How many workers send to one in one round at most."""
        pairs = [{(t.source, t.target) for t in transfers} for transfers in self.rounds]
        return max((max(Counter(target for _, target in each).values()) for each in pairs if each), default=0)

    def messages(self) -> list[int]:
        """How many messages each worker sends; what it has for one other in one round is one message."""
        sent = [0] * self.workers
        for transfers in self.rounds:
            for source, _ in {(t.source, t.target) for t in transfers}:
                sent[source] += 1
        return sent


def made(name: str, workers: int, blocks: int, rounds: Iterable[Iterable[Transfer]]) -> Plan:
    """The plan of these rounds; blocks that touch and go the same way are one transfer, and no round is empty."""
    return Plan(name, workers, blocks, tuple(_joined(transfers) for transfers in map(list, rounds) if transfers))


def _joined(transfers: list[Transfer]) -> Round:
    found: list[Transfer] = []
    for t in sorted(transfers):
        last = found[-1] if found else None
        if last and last[:2] == t[:2] and last.stop == t.start and last.adds == t.adds:
            found[-1] = last._replace(stop=t.stop)
        else:
            found.append(t)
    return tuple(found)


def mirrored(rounds: Sequence[Iterable[Transfer]]) -> list[list[Transfer]]:
    """The rounds backwards, each transfer the other way and in place of what is there.

    Law: after rounds that leave each block's whole sum with one worker, these give it to all that had a part in it.
    """
    return [[Transfer(t.target, t.source, t.start, t.stop, False) for t in transfers] for transfers in reversed(rounds)]


def played(plan: Plan, given: NDArray[Any]) -> NDArray[Any]:
    """What each worker holds in the end (rows) of each block (columns), if it begins with its row of ``given``."""
    held = given.copy()
    for transfers in plan.rounds:
        before, taken = held.copy(), np.zeros(held.shape, dtype=bool)
        for source, target, start, stop, adds in transfers:
            if adds:
                held[target, start:stop] += before[source, start:stop]
            else:
                assert not taken[target, start:stop].any(), "two transfers take the place of one block"
                held[target, start:stop] = before[source, start:stop]
                taken[target, start:stop] = True
        for _, target, start, stop, adds in transfers:
            assert not (adds and taken[target, start:stop].any()), "a block is added to and replaced in one round"
    return held


def check(plan: Plan) -> Plan:
    """The plan itself, once it is seen to give every worker every block's sum, each part counted once.

    Numbers drawn for all parts are added exactly (in integers of 64 bits, whose overflow loses nothing): a part that
    is missing or counted twice goes unseen with a probability under ``2**-60``.
    """
    drawn = np.random.default_rng(0).integers(0, 2**64, (plan.workers, plan.blocks), dtype=np.uint64)
    wrong = played(plan, drawn) != drawn.sum(axis=0, dtype=np.uint64)
    assert not wrong.any(), f"{plan.name}: {wrong.sum()} blocks of {wrong.size} end with another sum"
    return plan


# -- plans that are not made of groups ----------------------------------------------------------------------------


def star(workers: int, hub: int = 0) -> Plan:
    """Everyone sends all to the hub, which sums and sends the sum to all: 2 rounds, and ``2 (n-1)`` vectors at the hub.

    Raises: ConfigError for a hub that is no worker.
    """
    if not 0 <= hub < workers:
        raise ConfigError(f"star: its hub is worker {hub}, and there are {workers}, counted from 0")
    gathering = [[Transfer(rank, hub, 0, 1) for rank in range(workers) if rank != hub]]
    return made("star" if hub == 0 else f"star around {hub}", workers, 1, [*gathering, *mirrored(gathering)])


def tree(workers: int) -> Plan:
    """Sums go up a binomial tree to worker 0, and the whole sum down it: ``2 log2 n`` rounds of whole vectors."""
    gathering = [
        [Transfer(rank, rank - hop, 0, 1) for rank in range(hop, workers, 2 * hop)] for hop in _powers(workers)
    ]
    return made("tree", workers, 1, [*gathering, *mirrored(gathering)])


def doubling(workers: int) -> Plan:
    """Pairs at distance 1, 2, 4, … swap whole vectors, in ``log2 n`` rounds; those beyond a power of two fold in."""
    core = 1 << (workers.bit_length() - 1)
    swaps = [[Transfer(rank, rank ^ hop, 0, 1) for rank in range(core)] for hop in _powers(core)]
    return made("doubling", workers, 1, folded(workers, 1, swaps))


def folded(workers: int, blocks: int, rounds: list[list[Transfer]]) -> list[list[Transfer]]:
    """Rounds among the first workers, a power of two, for all: the others give theirs to one each, and get the sum."""
    core = 1 << (workers.bit_length() - 1)
    lent = [[Transfer(rank, rank - core, 0, blocks) for rank in range(core, workers)]]
    return [*lent, *rounds, *mirrored(lent)]


def _powers(workers: int) -> list[int]:
    return [1 << k for k in range((workers - 1).bit_length())]


def at_least(workers: int, what: str) -> int:
    """``workers``, if there is one.

    Raises: ConfigError.
    """
    if workers < 1:
        raise ConfigError(f"{what}: it needs at least 1 worker, got {workers}")
    return workers
