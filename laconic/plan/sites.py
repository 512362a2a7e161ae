"""Who is near whom: the workers of a network as groups within groups, by where its rates fall."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from laconic.plan.groups import Group, Node

if TYPE_CHECKING:
    from laconic.links.network import Network

FALL = 2.0  # times by which a rate must fall between groups for them to be sites


def sites(network: Network) -> Group:
    """The workers in groups, so that inside a group rates are at least ``FALL`` times those to the outside.

    Where there are several such falls, groups are made of groups. Workers with equal links are one group. What counts
    between two workers is the slower of the two directions; a group holds together by its best links.
    """
    found = _within(network, list(range(network.workers)))
    return found if isinstance(found, Group) else Group((found,))


def _within(network: Network, ranks: list[int]) -> Node:
    if len(ranks) == 1:
        return ranks[0]
    joins = _joins(network, ranks)
    falls = [(a[0] / b[0], place) for place, (a, b) in enumerate(pairwise(joins)) if b[0] > 0]
    # Of equal falls the one between slower links: the outermost sites first.
    most, place = max(falls, default=(1.0, 0))
    if most < FALL:
        return Group(tuple(ranks))
    parts: dict[int, list[int]] = {rank: [rank] for rank in ranks}
    for _, a, b in joins[: place + 1]:
        one, other = parts[a], parts[b]
        if one is not other:
            one += other
            parts |= dict.fromkeys(other, one)
    distinct = sorted({id(part): sorted(part) for part in parts.values()}.values())
    return Group(tuple(_within(network, part) for part in distinct))


def _joins(network: Network, ranks: list[int]) -> list[tuple[float, int, int]]:
    """The links by which the workers come together, the fastest first: a spanning tree of the greatest rates."""

    def rate(a: int, b: int) -> float:
        ways = ((a, b), (b, a))
        return min(min(network.connections[i].up, network.link(i, j).up, network.connections[j].down) for i, j in ways)

    first, *rest = ranks
    near = {rank: (rate(first, rank), first) for rank in rest}
    joins = []
    while near:
        rank = max(near, key=lambda r: (near[r][0], -r))
        speed, at = near.pop(rank)
        joins.append((speed, at, rank))
        for other, (known, _) in near.items():
            if (here := rate(rank, other)) > known:
                near[other] = here, rank
    return sorted(joins, key=lambda join: (-join[0], join[1], join[2]))
