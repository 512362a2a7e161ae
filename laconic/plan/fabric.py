"""What messages share on their way: connections, lines, the edges of switches, as capacities in bytes a second.

A fabric says for each pair of workers which of its resources a message takes, and how long the way is. Two are here:
:class:`Joined`, workers with connections of their own and a line between each pair, made of a
:class:`laconic.plan.cluster.Cluster` or a :class:`laconic.links.network.Network`; and :class:`Graph`, switches and
edges that many pairs share, such as a :func:`tree` and a :func:`leaf_spine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.links.network import Network
from laconic.plan.cluster import Cluster
from laconic.plan.ports import Server, Switch

Array = NDArray[Any]
UNLIMITED = math.inf
FASTEST = 1e18  # bytes a second that stand for no limit where incast counts


class Incast(NamedTuple):
    """What many flows into one port cost: beyond ``degree``, ``seconds`` a byte for each more.

    Degree counts the receiver: k flows into a port are of degree ``k + 1``.
    Source: arXiv:2409.04202, the term ``max(w - w_t, 0) B epsilon``.
    """

    degree: float = UNLIMITED
    seconds: float = 0.0


NONE = Incast()


class Laid(NamedTuple):
    """Messages laid over a fabric: each one's ``pair``; each pair's resources (``-1`` ends a row) and seconds of way;
    each resource's bytes a second, incast's degree and seconds a byte.
    """

    pair: Array
    route: Array
    latency: Array
    capacity: Array
    degree: Array
    epsilon: Array


class Fabric(Protocol):
    """Whatever messages between workers can be laid over."""

    @property
    def workers(self) -> int:
        """How many workers it joins."""

    def lay(self, source: Array, target: Array, via: Array) -> Laid:
        """The resources of each message; ``via`` -1 is the shortest way."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Workers with a connection each (``up``, ``down``), at places between which ``rate`` and ``latency`` stand.

    A pair of workers has a line of its own at the rate between their places. A worker in ``trunk`` g shares what leaves
    and enters the trunk with the others there. ``incast`` is that of each worker's downlink.
    """

    up: Array
    down: Array
    place: Array
    rate: Array
    latency: Array
    trunk: Array
    trunk_up: Array
    trunk_down: Array
    incast: Incast = NONE

    @property
    def workers(self) -> int:
        """How many workers it joins."""
        return len(self.up)

    def lay(self, source: Array, target: Array, via: Array) -> Laid:
        """Uplink, downlink, line, and the trunks between them if they are two."""
        if via.size and via.max() >= 0:
            raise ConfigError("flows: a message is to go by a stated way, and between these workers there is one each")
        workers, trunks = self.workers, len(self.trunk_up)
        pairs, pair = np.unique(source.astype(np.int64) * workers + target, return_inverse=True)
        a, b = pairs // workers, pairs % workers
        ends = self.place[a], self.place[b]
        line = self.rate[ends]
        apart = self.trunk[a] != self.trunk[b]
        out = np.where(apart & (self.trunk[a] >= 0), 2 * workers + self.trunk[a], -1)
        into = np.where(apart & (self.trunk[b] >= 0), 2 * workers + trunks + self.trunk[b], -1)
        capacity = np.concatenate((self.up, self.down, self.trunk_up, self.trunk_down, line))
        own = 2 * workers + 2 * trunks + np.arange(len(pairs))
        columns = [a, workers + b, *([out, into] if trunks else []), own]
        degree, epsilon = np.full(len(capacity), UNLIMITED), np.zeros(len(capacity))
        degree[workers : 2 * workers], epsilon[workers : 2 * workers] = self.incast
        return _packed(pair, columns, self.latency[ends], capacity, degree, epsilon)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes and one-way edges that messages share; ``at`` is each worker's node.

    A message takes the way of least ``length``, or the one through ``waypoints[via]`` where it names one. Of ways as
    long as one another all messages take the same: between two leaves of a :func:`leaf_spine`, spine 0.
    """

    nodes: int
    tail: Array
    head: Array
    capacity: Array
    latency: Array
    at: Array
    waypoints: tuple[int, ...] = ()
    length: Array | None = None
    degree: Array | None = None
    epsilon: Array | None = None

    @property
    def workers(self) -> int:
        """How many workers it joins."""
        return len(self.at)

    def lay(self, source: Array, target: Array, via: Array) -> Laid:
        """The edges of each message's way.

        Raises: ConfigError if there is none, or no such waypoint.
        """
        stops = len(self.waypoints)
        if via.size and via.max() >= stops:
            raise ConfigError(f"flows: a message is to go through waypoint {via.max()} of {stops}; they count from 0")
        code = (source.astype(np.int64) * self.workers + target) * (stops + 1) + via + 1
        codes, pair = np.unique(code, return_inverse=True)
        ends, stop = codes // (stops + 1), codes % (stops + 1) - 1
        a, b = self.at[ends // self.workers], self.at[ends % self.workers]
        middle = np.where(stop >= 0, np.array([*self.waypoints, 0])[stop], a)
        columns = [*self._ways(a, middle), *self._ways(middle, b)]
        latency = np.zeros(len(codes))
        for column in columns:
            latency += np.where(column >= 0, self.latency[column], 0.0)
        none = np.full(len(self.capacity), UNLIMITED), np.zeros(len(self.capacity))
        degree = none[0] if self.degree is None else self.degree
        epsilon = none[1] if self.epsilon is None else self.epsilon
        return _packed(pair, columns, latency, self.capacity, degree, epsilon)

    def _ways(self, start: Array, end: Array) -> list[Array]:
        """The edges from each of ``start`` to its ``end``, a column a hop."""
        from laconic.kernels.paths import shortest

        if np.array_equal(start, end):  # as before a waypoint that is the start itself
            return []

        order = np.argsort(self.tail, kind="stable")
        first = np.searchsorted(self.tail[order], np.arange(self.nodes + 1))
        length = np.ones(len(self.tail)) if self.length is None else self.length
        starts, row = np.unique(start, return_inverse=True)
        by = np.empty((len(starts), self.nodes), np.int32)
        for i, node in enumerate(starts):
            shortest(int(node), first, order, self.head, length, by[i])
        columns, here = [], np.asarray(end).copy()
        while (going := here != start).any():
            edge = np.where(going, by[row, here], -1)
            if (lost := going & (edge < 0)).any():
                i = int(np.argmax(lost))
                raise ConfigError(f"flows: there is no way from node {start[i]} to node {end[i]}")
            columns.append(edge)
            here = np.where(going, self.tail[edge], here)
        return columns


def _packed(pair: Array, columns: list[Array], latency: Array, capacity: Array, degree: Array, epsilon: Array) -> Laid:
    """Routes without the resources that limit nothing, each row's from its left on."""
    capacity = np.where(epsilon > 0, np.minimum(capacity, FASTEST), capacity)
    if (capacity <= 0).any() or np.isnan(capacity).any():
        raise ConfigError("flows: a capacity is no positive number of bytes a second")
    route = np.stack([c.astype(np.int64) for c in columns], axis=1) if columns else np.full((len(latency), 1), -1)
    route = np.where((route >= 0) & np.isfinite(capacity)[route], route, -1)
    route = np.take_along_axis(route, np.argsort(route < 0, axis=1, kind="stable"), axis=1)
    depth = max(1, int((route >= 0).sum(axis=1).max(initial=0)))
    route = np.ascontiguousarray(route[:, :depth], np.int32)
    return Laid(pair.astype(np.int32).reshape(-1), route, latency, capacity, degree, epsilon)


def fabric_of(
    where: Cluster | Network,
    workers: int | None = None,
    *,
    incast: Incast = NONE,
    trunks: Mapping[str, tuple[float, float]] | None = None,
) -> Joined:
    """What a cluster's or a network's workers share: ``workers`` of a cluster are placed as its file says.

    ``trunks`` are groups (or machines) of the cluster whose members share one way out and one way in, with their bytes
    a second: ``{"upstairs": (1e6, 5e6)}``.

    Raises: ConfigError for a trunk that is no group and no machine of the cluster.
    """
    if isinstance(where, Network):
        if trunks or workers not in (None, where.workers):
            raise ConfigError(f"flows: the network has {where.workers} workers and no groups; trunks are a cluster's")
        return _of_network(where, incast)
    placed = where.placed(workers if workers is not None else len(where.workers) or len(where.machines))
    machines = list(dict.fromkeys(placed))
    place = np.array([machines.index(machine) for machine in placed])
    rate, latency = (np.full((len(machines), len(machines)), fill) for fill in (UNLIMITED, 0.0))
    several = np.bincount(place, minlength=len(machines)) > 1
    for i, a in enumerate(machines):
        for j, b in enumerate(machines):
            if i != j or several[i]:
                rate[i, j], latency[i, j] = (line := where.line(a, b)).bandwidth, line.latency
    names = list(trunks or {})
    known = {name for machine in where.machines for name in (machine.name, machine.group)}
    if missing := [name for name in names if name not in known]:
        raise ConfigError(f"flows: a trunk is of {missing[0]!r}, which is no group and no machine of {where.name}")
    own = [next((i for i, name in enumerate(names) if name in (m.name, m.group)), -1) for m in placed]
    rates = np.array([(trunks or {})[name] for name in names], float).reshape(-1, 2)
    ends = np.array([(machine.up, machine.down) for machine in placed], float)
    return Joined(ends[:, 0], ends[:, 1], place, rate, latency, np.array(own), rates[:, 0], rates[:, 1], incast)


def _of_network(network: Network, incast: Incast) -> Joined:
    ends = np.array([(c.up, c.down, c.latency) for c in network.connections], float).reshape(-1, 3)
    workers = len(ends)
    rate = np.full((workers, workers), UNLIMITED)
    latency = np.repeat(ends[:, 2:], workers, axis=1)
    for a, b, own in network.links:
        rate[a, b], latency[a, b] = own.up, own.latency
    none = np.zeros(0)
    return Joined(ends[:, 0], ends[:, 1], np.arange(workers), rate, latency, np.full(workers, -1), none, none, incast)


def tree(
    parents: Sequence[int],
    up: Sequence[float],
    down: Sequence[float],
    latency: float = 0.0,
    incast: Incast = NONE,
) -> Graph:
    """A tree of switches: node i hangs on ``parents[i]`` (the root's is -1), with ``up[i]`` and ``down[i]`` bytes a
    second.

    The leaves are the workers, in the order of their nodes. ``latency`` is an edge's, one way; ``incast`` is that of
    every edge downwards.

    Raises: ConfigError unless it is one tree.
    """
    above = np.asarray(parents, np.int64)
    hanging = np.flatnonzero(above >= 0)
    roots = len(above) - len(hanging)
    if roots != 1 or (above >= len(above)).any():
        raise ConfigError(f"flows: a tree has one root, whose parent is -1, and parents that exist; got {roots} roots")
    here = np.arange(len(above))
    for _ in above:
        here = np.where(here >= 0, above[here], -1)
    if (here >= 0).any():
        raise ConfigError(f"flows: node {int(np.argmax(here >= 0))} does not hang on the tree's root")
    leaves = np.setdiff1d(np.arange(len(above)), above)
    tail, head = np.concatenate((hanging, above[hanging])), np.concatenate((above[hanging], hanging))
    capacity = np.concatenate((np.asarray(up, float)[hanging], np.asarray(down, float)[hanging]))
    falls = np.arange(len(tail)) >= len(hanging)
    return Graph(
        len(above), tail, head, capacity, np.full(len(tail), latency), leaves,
        degree=np.where(falls, incast.degree, UNLIMITED), epsilon=np.where(falls, incast.seconds, 0.0),
    )  # fmt: skip


def of_switches(root: Switch) -> Graph:
    """The tree of switches that :func:`laconic.plan.ports.of_tree` prices, to be played on; it has no latencies.

    Worker k is the server of rank k. A switch's crowding is that of its members' lines, and here of those downwards
    alone: nothing crowds a port that sends.

    Raises: ConfigError for servers that are not 0 to n-1, once each.
    """
    servers: dict[int, tuple[Switch | Server, Switch, int]] = {}  # with the switch above and its place among all
    switches: list[tuple[Switch | Server, Switch, int]] = []

    def walk(switch: Switch, above: Switch, place: int) -> None:
        own = len(switches)
        switches.append((switch, above, place))
        for member in switch.members:
            if isinstance(member, Server):
                servers[member.rank] = member, switch, own
            else:
                walk(member, switch, own)

    walk(root, root, -1)
    count = len(servers)
    if sorted(servers) != list(range(count)):
        raise ConfigError(f"tree: its servers are {sorted(servers)}, wanted the workers from 0 on, each once")
    nodes = [*(servers[rank] for rank in range(count)), *switches]
    up = [1 / node.up if node.up else UNLIMITED for node, *_ in nodes]
    down = [1 / node.down if node.down else UNLIMITED for node, *_ in nodes]
    made = tree([-1 if place < 0 else count + place for *_, place in nodes], up, down)
    crowds = [(over.w_t, over.epsilon) for _, over, place in nodes if place >= 0]
    free = len(crowds)  # all but the root have a line upwards, and then one downwards
    degree = np.array([UNLIMITED] * free + [w_t for w_t, _ in crowds], float)
    epsilon = np.array([0.0] * free + [seconds for _, seconds in crowds])
    return replace(made, at=np.arange(count), degree=degree, epsilon=epsilon)


def leaf_spine(
    leaves: int, hosts: int, spines: int, host: float, spine: float | Sequence[float], latency: float = 0.0
) -> Graph:
    """``hosts`` workers under each of ``leaves`` switches, all of which are joined to each of ``spines``.

    ``host`` and ``spine`` are bytes a second of an edge, both ways; ``spine`` may be one for each spine. Waypoint k is
    spine k. ``latency`` is an edge's.
    """
    rates = np.broadcast_to(np.asarray(spine, float), (spines,))
    workers = leaves * hosts
    host_tail, host_head = np.arange(workers), workers + np.arange(workers) // hosts
    leaf_tail = np.repeat(workers + np.arange(leaves), spines)
    leaf_head = np.tile(workers + leaves + np.arange(spines), leaves)
    tail = np.concatenate((host_tail, host_head, leaf_tail, leaf_head))
    head = np.concatenate((host_head, host_tail, leaf_head, leaf_tail))
    capacity = np.concatenate((np.full(2 * workers, host), np.tile(rates, 2 * leaves)))
    return Graph(
        workers + leaves + spines, tail, head, capacity, np.full(len(tail), latency), np.arange(workers),
        tuple(range(workers + leaves, workers + leaves + spines)),
    )  # fmt: skip
