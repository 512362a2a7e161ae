"""The ports and lines that transfers pass, and what each takes a byte: what :mod:`laconic.plan.genmodel` prices.

There are :class:`Ports` of equal workers, of a :class:`~laconic.links.network.Network`, and of a tree of switches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.plan.collectives import Rates
from laconic.plan.groups import Group, Node

if TYPE_CHECKING:  # a network is made from a cluster, whose package this is
    from laconic.links.network import Network

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
BUFFERS = float(1 << 20)
"""Bytes that the kernel is taken to hold of one TCP connection, sent and not yet gone, before a sender waits."""


@dataclass(frozen=True, eq=False)
class Ports:
    """``workers`` and the ``count`` of ports and lines between them.

    ``route(sources, targets)`` gives, for each pair, the ports it passes (a row; ``count`` stands for none) and the
    seconds that a byte of the pair takes of each. ``start(sources, targets)`` is the seconds before anything comes.
    ``epsilon`` and ``w_t`` are each port's, ``gamma`` and ``delta`` each worker's, as in
    :class:`~laconic.plan.collectives.Rates`. ``ahead`` is how many bytes of a message may still be on their way when
    its worker goes on; None where transfers share more than their two ends and the line between these.
    """

    workers: int
    count: int
    route: Callable[[Places, Places], tuple[Places, Numbers]]
    start: Callable[[Places, Places], Numbers]
    epsilon: Numbers
    w_t: Numbers
    gamma: Numbers
    delta: Numbers
    ahead: float | None = None


def even(workers: int, rates: Rates) -> Ports:
    """Equal workers on a switch without bounds: a port out and a port in for each."""

    def route(sources: Places, targets: Places) -> tuple[Places, Numbers]:
        places = np.stack([sources, workers + targets], axis=1)
        return places, np.full(places.shape, rates.beta)

    count = 2 * workers
    return Ports(workers, count, route, _constant(rates.alpha), *_shared(count, rates), *_each(workers, rates), 0.0)


def of_network(network: Network, rates: Rates, overhead: float = 1.0, ahead: float = 0.0) -> Ports:
    """The workers of a network; its latencies come on top of ``alpha``, and its rates stand in ``beta``'s place.

    Of a machine that was probed its own ``gamma`` and ``delta`` hold, and its ports' own ``epsilon`` and ``w_t``.

    With ``ahead=0`` a worker waits until its message has left, as on simulated and paced links: a slow line to one peer
    keeps its uplink busy for as long as the message takes. The buffers of real connections (:data:`BUFFERS`) let it go
    on sooner. ``overhead`` is bytes on the wire for each byte of payload.

    Raises: ConfigError for a pair that nothing carries between.
    """
    n = network.workers
    up = np.array([network.connections[i].up for i in range(n)])
    down = np.array([network.connections[i].down for i in range(n)])
    rate, latency = np.full((n, n), math.inf), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                between = network.link(i, j)
                rate[i, j], latency[i, j] = min(up[i], between.up), between.latency
    if (rate <= 0).any():
        i, j = np.argwhere(rate <= 0)[0]
        raise ConfigError(f"network: nothing carries from worker {i} to worker {j}; its rate is {rate[i, j]:g}")
    line, own, into = overhead / rate, overhead / up, overhead / down

    def route(sources: Places, targets: Places) -> tuple[Places, Numbers]:
        if ahead == 0:
            places = np.stack([sources, n + targets], axis=1)
            return places, np.stack([line[sources, targets], into[targets]], axis=1)
        places = np.stack([sources, n + targets, 2 * n + sources * n + targets], axis=1)
        return places, np.stack([own[sources], into[targets], line[sources, targets]], axis=1)

    def start(sources: Places, targets: Places) -> Numbers:
        return rates.alpha + latency[sources, targets]

    count = 2 * n if ahead == 0 else 2 * n + n * n
    crowd, each = _shared(count, rates), _each(n, rates)
    for rank, known in enumerate(network.probed):
        for port, found in ((rank, known.out), (n + rank, known.into)):
            if found is not None:
                crowd[0][port], crowd[1][port] = found
        if known.gamma is not None and known.delta is not None:
            each[0][rank], each[1][rank] = known.gamma, known.delta
    return Ports(n, count, route, start, *crowd, *each, ahead)


# -- trees ---------------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A worker and its line to its switch: seconds a byte ``up`` from it and ``down`` to it."""

    rank: int
    up: float
    down: float


class Switch(NamedTuple):
    """A switch, what hangs on it, and its line to the switch above (none at the root).

    ``w_t`` and ``epsilon`` are those of all lines of its members, in both directions: how many flows one bears, and
    seconds a byte for each one more.
    """

    members: tuple[Switch | Server, ...]
    up: float = 0.0
    down: float = 0.0
    w_t: float = math.inf
    epsilon: float = 0.0


@dataclass
class _Lines:
    """The lines of a tree, two to a node, as they are found."""

    up: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    w_t: list[float] = field(default_factory=list)
    epsilon: list[float] = field(default_factory=list)
    above: dict[int, list[int]] = field(default_factory=dict)  # of each worker: its own line, then those further up


def of_tree(root: Switch, rates: Rates) -> Ports:
    """The servers of a tree of switches; ``alpha``, ``gamma`` and ``delta`` are those of ``rates``.

    Raises: ConfigError for workers that are not 0 to n-1, once each, and for a line that takes negative time.
    """
    lines = _Lines()
    _walk(root, [], lines)
    n, count = len(lines.above), len(lines.up)
    if sorted(lines.above) != list(range(n)) or n == 0:
        raise ConfigError(f"tree: its servers are {sorted(lines.above)}, wanted the workers from 0 on, each once")
    if min([*lines.up, *lines.down, *lines.epsilon], default=0.0) < 0:
        raise ConfigError("tree: a line takes a negative time; wanted seconds a byte, such as 8e-8 for 100 Mbit/s")
    longest = max(map(len, lines.above.values()))
    chains = np.array([[*([-1] * (longest - len(c))), *c] for _, c in sorted(lines.above.items())])
    beta = np.array([*lines.up, *lines.down, 0.0])

    def route(sources: Places, targets: Places) -> tuple[Places, Numbers]:
        a, b = chains[sources], chains[targets]
        up = np.where((a >= 0) & ~_also_in(a, b), a, 2 * count)
        down = np.where((b >= 0) & ~_also_in(b, a), count + b, 2 * count)
        places = np.concatenate([up, down], axis=1)
        return places, beta[places]

    crowd = np.array([*lines.epsilon, *lines.epsilon]), np.array([*lines.w_t, *lines.w_t])
    return Ports(n, 2 * count, route, _constant(rates.alpha), *crowd, *_each(n, rates))


def groups_of(tree: Switch | Server) -> Node:
    """The servers of a tree as groups within groups."""
    return tree.rank if isinstance(tree, Server) else Group(tuple(groups_of(member) for member in tree.members))


def racks(sizes: Sequence[int], server: float, uplink: float, w_t: float = math.inf, epsilon: float = 0.0) -> Switch:
    """A tree of two levels: racks of so many servers, seconds a byte of a server's line and of a rack's uplink."""
    first = [sum(sizes[:k]) for k in range(len(sizes))]
    made = (
        Switch(tuple(Server(at + i, server, server) for i in range(size)), uplink, uplink, w_t, epsilon)
        for at, size in zip(first, sizes, strict=True)
    )
    return Switch(tuple(made), w_t=w_t, epsilon=epsilon)


def _walk(node: Switch | Server, above: list[int], lines: _Lines, over: Switch | None = None) -> None:
    if over is not None:
        above = [len(lines.up), *above]
        lines.up.append(node.up)
        lines.down.append(node.down)
        lines.w_t.append(over.w_t)
        lines.epsilon.append(over.epsilon)
    if isinstance(node, Server):
        lines.above[node.rank] = above
        return
    for member in node.members:
        _walk(member, above, lines, node)


def _also_in(a: Places, b: Places) -> NDArray[np.bool_]:
    """Which lines of the first chains are in the second, row by row: those above where the two ways meet."""
    return (a[:, :, None] == b[:, None, :]).any(axis=2)


def _constant(alpha: float) -> Callable[[Places, Places], Numbers]:
    return lambda sources, targets: np.full(len(sources), alpha)


def _shared(count: int, rates: Rates) -> tuple[Numbers, Numbers]:
    return np.full(count, rates.epsilon), np.full(count, rates.w_t)


def _each(workers: int, rates: Rates) -> tuple[Numbers, Numbers]:
    return np.full(workers, rates.gamma), np.full(workers, rates.delta)
