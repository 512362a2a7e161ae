"""Plans made of groups within groups: rings, all at once, halving and doubling, sites, and whatever a tree has.

Reduce-scatter goes from the innermost groups outwards, and after each every worker of a group holds an equal share of
the group's sum. All-gather is the same backwards. A plan is therefore given by its groups, and in each of them the way
that its members' shares cross: all at once (``direct``), or round a ``ring``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, zip_longest
from typing import NamedTuple

from laconic.errors import ConfigError
from laconic.plan.rounds import Plan, Transfer, at_least, folded, made, mirrored

MOST_BLOCKS = 1 << 14  # beyond it shares are only nearly equal
WAYS = ("direct", "ring")


class Group(NamedTuple):
    """Members, which are workers or groups, and the way in which their shares cross to one another.

    ``ports`` is how many workers of each member do the crossing for all of its workers, who hand them their shares
    before and get them back after it; 0 is all of them, who need not.
    """

    members: tuple[Group | int, ...]
    way: str = "direct"
    ports: int = 0


Node = Group | int
Span = tuple[int, int]
Owned = dict[int, list[Span]]  # the blocks that each worker of a group holds of the group's sum, all of them once


def workers_of(node: Node) -> list[int]:
    """The workers of a group, in the order of its members."""
    return [node] if isinstance(node, int) else [rank for member in node.members for rank in workers_of(member)]


def of_groups(group: Group, name: str) -> Plan:
    """The all-reduce along a group of all workers, 0 to n-1.

    Wire:   if ``ports`` are 0, in all as many bytes as a ring, ``2 (n-1)`` vectors; and if the members of each group
            are alike, as many out of each worker.
    Raises: ConfigError for a group that has no members, a worker twice or left out, or a way that nobody knows.
    """
    _check(group, name)
    return made(name, len(workers_of(group)), blocks_of(group), all_reduce(group, blocks_of(group)))


def all_reduce(group: Group, blocks: int) -> list[list[Transfer]]:
    """Rounds after which each worker of the group holds the group's sum; rings go the same way round in both halves."""
    return [*reduce_scatter(group, blocks), *mirrored(reduce_scatter(group, blocks, -1))]


def reduce_scatter(group: Group, blocks: int, onwards: int = 1) -> list[list[Transfer]]:
    """Rounds after which each worker of the group holds the group's sum of an equal share of the blocks.

    Rings go from each member to the next, or with ``onwards=-1`` to the one before.
    """
    ordered = _ordered(group)
    edges = [blocks * k // len(ordered) for k in range(len(ordered) + 1)]
    return _rounds(group, {rank: [(edges[k], edges[k + 1])] for k, rank in enumerate(ordered)}, onwards)


def blocks_of(group: Group) -> int:
    """The least number of blocks with which all shares are equal, or one that is a little less than ``MOST_BLOCKS``."""
    total = len(workers_of(group))
    found = total
    for within in _groups(group):
        sizes = [len(workers_of(member)) for member in within.members]
        for mine in set(sizes):
            for other in set(sizes):
                found = math.lcm(found, Fraction(other, sum(sizes) * mine).denominator)
                if found > max(MOST_BLOCKS, total):
                    return total * max(1, MOST_BLOCKS // total)
    return found


# -- the usual ones -----------------------------------------------------------------------------------------------


def ring(workers: int, order: Sequence[int] | None = None) -> Plan:
    """Shares go round, ``2 (n-1)`` rounds of 1/n of the vector each; in ``order``, by default that of the ranks."""
    order = range(at_least(workers, "ring")) if order is None else order
    if sorted(order) != list(range(workers)):
        raise ConfigError(f"ring: its order is {list(order)}, wanted each of the workers 0 to {workers - 1} once")
    return of_groups(Group(tuple(order), "ring"), "ring")


def cps(workers: int) -> Plan:
    """Each worker sums a share for all (a parameter server on every worker): 2 rounds of n-1 messages each."""
    return of_groups(Group(tuple(range(at_least(workers, "cps")))), "cps")


def hcps(*factors: int) -> Plan:
    """:func:`cps` within groups of ``factors[0]``, then between these in groups of ``factors[1]``, and so on."""
    if not factors or min(factors) < 1:
        raise ConfigError(f"hcps: its factors are {list(factors)}, wanted whole numbers of at least 1")
    return of_groups(nested(range(math.prod(factors)), factors), "hcps " + "x".join(map(str, factors)))


def rhd(workers: int) -> Plan:
    """Recursive halving and doubling; the workers beyond a power of two fold into the others.

    Source: Thakur, Rabenseifner and Gropp 2005 (Rabenseifner's algorithm).
    """
    core = 1 << (at_least(workers, "rhd").bit_length() - 1)
    group = nested(range(core), (2,) * (core.bit_length() - 1))
    blocks = blocks_of(group)
    return made("rhd", workers, blocks, folded(workers, blocks, all_reduce(group, blocks)))


def leaders(sites: Sequence[Sequence[int]]) -> Plan:
    """Each site's first worker sums for it; these go round a ring, and send the sum to their sites."""
    first = [site[0] for site in sites]
    gathering = [[Transfer(rank, site[0], 0, len(sites)) for site in sites for rank in site[1:]]]
    around = all_reduce(Group(tuple(first), "ring"), len(sites))
    return made("leaders", sum(map(len, sites)), len(sites), [*gathering, *around, *mirrored(gathering)])


def nested(members: Iterable[Node], factors: Sequence[int], way: str = "direct") -> Group:
    """Members in groups of ``factors[0]``, these in groups of ``factors[1]``, and so on; the last holds all."""
    level = list(members)
    assert len(level) == math.prod(factors), "factors of the number of members"
    for factor in factors:
        level = [Group(tuple(level[k : k + factor]), way) for k in range(0, len(level), factor)]
    return level[0] if level and isinstance(level[0], Group) else Group(tuple(level), way)


def factorisations(number: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a number as a product of factors of at least 2, in every order."""
    if number == 1:
        yield ()
    for first in range(2, number + 1):
        if number % first == 0:
            for rest in factorisations(number // first):
                yield (first, *rest)


# -- who holds what -----------------------------------------------------------------------------------------------


def _rounds(node: Node, owned: Owned, onwards: int) -> list[list[Transfer]]:
    if isinstance(node, int):
        return []
    inner = [_within(node, place, owned) for place in range(len(node.members))]
    side_by_side = [_rounds(member, held, onwards) for member, held in zip(node.members, inner, strict=True)]
    below = [list(chain.from_iterable(rounds)) for rounds in zip_longest(*side_by_side, fillvalue=[])]
    if node.ports == 0:
        return [*below, *_crossing(node, inner, owned, onwards)]
    before: list[Transfer] = []
    after: list[Transfer] = []
    narrow_owned: Owned = {}
    narrow: list[Owned] = []
    for member, held in zip(node.members, inner, strict=True):
        port = _ports(member, node.ports)
        before += [
            Transfer(rank, port[rank], *span, False) for rank in port if port[rank] != rank for span in held[rank]
        ]
        after += [
            Transfer(port[rank], rank, *span, False) for rank in port if port[rank] != rank for span in owned[rank]
        ]
        narrow.append(_handed(held, port))
        narrow_owned |= _handed(owned, port)
    return [*below, before, *_crossing(node, narrow, narrow_owned, onwards), after]


def _within(group: Group, place: int, owned: Owned) -> Owned:
    """What each worker of one member holds of the member's sum, if ``owned`` is what it will hold of the group's.

    Its own share of the group's sum, and an equal part of what the workers of each other member will hold.
    """
    mine = _ordered(group.members[place])
    held = {rank: list(owned[rank]) for rank in mine}
    for other, member in enumerate(group.members):
        if other == place:
            continue
        theirs = [span for rank in _ordered(member) for span in owned[rank]]
        for rank, spans in zip(mine, _dealt(theirs, len(mine)), strict=True):
            held[rank] += spans
    return {rank: _merged(spans) for rank, spans in held.items()}


def _crossing(group: Group, inner: list[Owned], owned: Owned, onwards: int) -> list[list[Transfer]]:
    count = len(group.members)
    maps = [_Map(held) for held in inner]
    rounds: list[list[Transfer]] = [[] for _ in range(1 if group.way == "direct" else count - 1)]
    for place, held in enumerate(inner):
        for rank in held:
            for span in owned.get(rank, ()):
                for hop in range(count - 1):
                    source = (place + onwards * (1 + hop)) % count
                    if group.way == "direct":
                        rounds[0] += [Transfer(peer, rank, a, b) for peer, a, b in maps[source].cut(span)]
                        continue
                    onward = maps[(source + onwards) % count]
                    rounds[hop] += [
                        Transfer(peer, following, c, d)
                        for peer, a, b in maps[source].cut(span)
                        for following, c, d in onward.cut((a, b))
                    ]
    return rounds


class _Map:
    """Who holds a block."""

    def __init__(self, held: Owned) -> None:
        self.parts = sorted((start, stop, rank) for rank, spans in held.items() for start, stop in spans)
        self.starts = [start for start, _, _ in self.parts]

    def cut(self, span: Span) -> Iterator[tuple[int, int, int]]:
        """The span by its holders: rank, start, stop."""
        at, stop = span
        for i in range(bisect_right(self.starts, at) - 1, len(self.parts)):
            start, end, rank = self.parts[i]
            if start >= stop:
                return
            yield rank, max(at, start), min(stop, end)


def _ports(member: Node, ports: int) -> dict[int, int]:
    """Who crosses for each worker of a member."""
    ranks = _ordered(member)
    ports = min(ports, len(ranks))
    first = [-(-len(ranks) * k // ports) for k in range(ports)]
    return {rank: ranks[first[k * ports // len(ranks)]] for k, rank in enumerate(ranks)}


def _handed(held: Owned, port: dict[int, int]) -> Owned:
    found: Owned = {}
    for rank, to in port.items():
        found.setdefault(to, []).extend(held[rank])
    return {rank: _merged(spans) for rank, spans in found.items()}


def _dealt(spans: list[Span], hands: int) -> list[list[Span]]:
    """The spans in order, as equally as whole blocks allow."""
    total = sum(stop - start for start, stop in spans)
    dealt: list[list[Span]] = [[] for _ in range(hands)]
    hand, given = 0, 0
    for start, stop in spans:
        at = start
        while at < stop:
            while given >= total * (hand + 1) // hands:
                hand += 1
            upto = min(stop, at + total * (hand + 1) // hands - given)
            dealt[hand].append((at, upto))
            given, at = given + upto - at, upto
    return dealt


def _merged(spans: list[Span]) -> list[Span]:
    found: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def _ordered(node: Node) -> list[int]:
    """The workers by their place in the innermost group first, so that those who share blocks further out are
    neighbours, and what they hold together is in one piece.
    """
    return [rank for _, rank in sorted(_paths(node))]


def _paths(node: Node) -> Iterator[tuple[tuple[int, ...], int]]:
    if isinstance(node, int):
        yield (), node
        return
    for place, member in enumerate(node.members):
        for path, rank in _paths(member):
            yield (*path, place), rank


def _groups(node: Node) -> Iterator[Group]:
    if isinstance(node, Group):
        yield node
        for member in node.members:
            yield from _groups(member)


def _check(group: Group, name: str) -> None:
    ranks = workers_of(group)
    if sorted(ranks) != list(range(len(ranks))) or not ranks:
        raise ConfigError(f"{name}: its groups hold the workers {ranks}, wanted each from 0 on once")
    for within in _groups(group):
        if within.way not in WAYS:
            raise ConfigError(f"{name}: a group's way is {within.way!r}, wanted one of {', '.join(WAYS)}")
        if not within.members:
            raise ConfigError(f"{name}: one of its groups is empty")
