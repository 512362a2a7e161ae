"""GenTree: an all-reduce for a tree of switches, or for groups of workers near one another, chosen switch by switch.

From the leaves up, each switch takes the cheapest way for its members' shares to cross it, by GenModel's price of what
hangs on it: all at once, in stages of every factorisation, round a ring, and through fewer workers of each member. Or
it lets all workers below form one ring, which uses inner and outer lines at the same time.

Source: "Revisiting the Time Cost Model of AllReduce", arXiv:2409.04202, GenTree; the finding of who holds which blocks,
the candidates' details and the one ring are ours. Optimal plans on any topology are NP-hard to find (there), so this is
a heuristic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from laconic.plan.genmodel import price
from laconic.plan.groups import Group, Node, all_reduce, blocks_of, factorisations, nested, workers_of
from laconic.plan.ports import Ports
from laconic.plan.rounds import Plan, made

MOST_FACTORED = 64  # members of a switch, all of whose factorisations are tried
SAME = 1e-9  # of a price, by which two are the same and fewer rounds decide


Cost = Callable[[Plan, Ports, float], float]


def by_rounds(plan: Plan, ports: Ports, nbytes: float) -> float:
    """Seconds by GenModel."""
    return price(plan, ports, nbytes).seconds


def gentree(node: Group, ports: Ports, nbytes: float, cost: Cost = by_rounds) -> Plan:
    """A plan for the groups ``node`` of all workers, which is cheap over ``ports`` for a vector of ``nbytes``.

    Ways that ``node`` names are not heeded. Law: every worker ends with the sum of all.
    """
    return _plan(chosen(node, ports, nbytes, cost), ports, "gentree")


def chosen(node: Node, ports: Ports, nbytes: float, cost: Cost = by_rounds) -> Node:
    """The groups with the way that each of them takes."""
    if isinstance(node, int):
        return node
    members = tuple(chosen(member, ports, nbytes, cost) for member in node.members)
    if len(members) == 1:
        return members[0] if isinstance(members[0], Group) else Group(members)
    tried = [(group, _plan(group, ports, "candidate")) for group in candidates(members)]
    costs = [cost(plan, ports, nbytes) for _, plan in tried]
    least = min(costs) * (1 + SAME)
    _, place = min((len(plan.rounds), place) for place, (_, plan) in enumerate(tried) if costs[place] <= least)
    return tried[place][0]


def candidates(members: tuple[Node, ...]) -> Iterator[Group]:
    """Every way that is tried for members' shares to cross; all at once comes first."""
    count = len(members)
    largest = max(len(workers_of(member)) for member in members)
    fewer = sorted({0, *(largest >> k for k in range(1, largest.bit_length()))})
    for ports in fewer:
        yield Group(members, "direct", ports)
        if count > 2:
            yield Group(members, "ring", ports)
    if any(isinstance(member, Group) for member in members):
        yield Group(tuple(rank for member in members for rank in workers_of(member)), "ring")
    factored = factorisations(count) if count <= MOST_FACTORED else _pairs(count)
    yield from (nested(members, factors) for factors in factored if len(factors) > 1)


def _pairs(number: int) -> list[tuple[int, ...]]:
    return [(number // k, k) for k in range(2, number) if number % k == 0]


def _plan(group: Node, ports: Ports, name: str) -> Plan:
    """The all-reduce of those in the group; the other workers do nothing."""
    assert isinstance(group, Group), "a group of one worker is a group"
    return made(name, ports.workers, blocks_of(group), all_reduce(group, blocks_of(group)))
