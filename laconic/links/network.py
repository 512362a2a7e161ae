"""What each worker's connection can carry: bytes a second up and down, and seconds of delay.

A :class:`Network` is the one description that :mod:`laconic.links.paced` holds its links to in user space
and :mod:`laconic.bench.testbed` shapes in the kernel. Inside it everything is bytes and seconds;
``100mbit`` and ``80ms`` exist only in the text that :func:`parse` reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from laconic.errors import ConfigError
from laconic.plan.cluster import Cluster, Machine

if TYPE_CHECKING:
    from laconic.plan.fitting import Probed

BIT_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
UNLIMITED = float("inf")
FRAMES = 1.0456  # bytes on an Ethernet wire for each byte that TCP carries: frames of 1514 bytes hold 1448
MOST_WORKERS = 100_000  # far more than are ever simulated: beyond, a number is a slip, and would fill the memory


@dataclass(frozen=True)
class Connection:
    """One worker's connection to the network.

    ``up`` and ``down`` are bytes a second out of and into the worker, ``latency`` the seconds that a byte
    leaving this worker takes to arrive (one way), on top of the time to send it.
    """

    up: float = UNLIMITED
    down: float = UNLIMITED
    latency: float = 0.0


@dataclass(frozen=True)
class Network:
    """The connections of all workers, and single links that are slower than the connections at their ends.

    ``links`` maps ``(sender, receiver)`` to a :class:`Connection` whose ``up`` is that link's bytes a second and
    whose ``latency`` replaces the sender's; a pair that is not there is limited by its two ends alone.
    ``probed`` is what was measured of each worker's machine, by which plans of sums are chosen.
    ``gloo``: dense sums go as torch's gloo sends them (:mod:`laconic.links.gloo_ring`), which a simulated link repeats.
    """

    connections: tuple[Connection, ...]
    links: tuple[tuple[int, int, Connection], ...] = ()
    gloo: bool = False
    probed: tuple[Probed, ...] = ()

    @property
    def workers(self) -> int:
        """How many workers the network joins."""
        return len(self.connections)

    def link(self, sender: int, receiver: int) -> Connection:
        """What one direction of one pair can carry by itself, shared ends left aside."""
        known = self._apart.get((sender, receiver))
        if known is None:
            ends = self.connections[sender], self.connections[receiver]
            rate = min(ends[0].up, ends[1].down)
            known = self._apart[sender, receiver] = Connection(rate, rate, ends[0].latency)
        return known

    @cached_property
    def slowest(self) -> tuple[int, int] | None:
        """The sender and the receiver between whom the fewest bytes a second go; None for one worker."""
        size, ends = self.workers, self.connections
        pairs = ((a, b) for a in range(size) for b in range(size) if a != b)
        if self.links or size < 2:
            return min(pairs, key=lambda pair: self.link(*pair).up, default=None)
        least = min(min(end.up, end.down) for end in ends)
        return next(pair for pair in pairs if self.link(*pair).up <= least)

    @cached_property
    def _apart(self) -> dict[tuple[int, int], Connection]:
        return {(a, b): connection for a, b, connection in self.links}


def of_cluster(cluster: Cluster, workers: int) -> Network:
    """The network of ``workers`` that are placed on a cluster's machines, each with a connection of its own."""
    placed = cluster.placed(workers)
    lines = {(a.name, b.name): cluster.line(a, b) for a in placed for b in placed if a is not b}
    if workers > len({machine.name for machine in placed}):  # some share a machine
        lines |= {(a.name, a.name): cluster.line(a, a) for a in placed if placed.count(a) > 1}
    made = {ends: Connection(line.bandwidth, line.bandwidth, line.latency) for ends, line in lines.items()}
    pairs = ((i, j, made[a.name, b.name]) for i, a in enumerate(placed) for j, b in enumerate(placed) if i != j)
    ends = tuple(Connection(machine.up, machine.down) for machine in placed)
    return Network(ends, tuple(pairs), probed=_probed(cluster, placed))


def _probed(cluster: Cluster, placed: Sequence[Machine]) -> tuple[Probed, ...]:
    if cluster.measured is None or not any(m.sums or m.into or m.out for m in cluster.measured.machines.values()):
        return ()
    from laconic.plan.fitting import Probed, fit_machine

    found = {name: fit_machine(machine) for name, machine in cluster.measured.machines.items()}
    return tuple(found.get(machine.name, Probed()) for machine in placed)


def on_the_wire(network: Network, frames: float = FRAMES) -> Network:
    """What a wire must carry so that messages have the rates of ``network``: ``frames`` bytes for each of theirs.

    A connection without a limit gets the rates of its links together, which hold nothing back.
    """
    links = [(a, b, replace(c, up=c.up * frames, down=c.down * frames)) for a, b, c in network.links]
    connections = []
    for rank, connection in enumerate(network.connections):
        out, into = (sum(link.up for *ends, link in links if ends[end] == rank) or UNLIMITED for end in (0, 1))
        up, down = connection.up * frames, connection.down * frames
        connections.append(replace(connection, up=min(up, out), down=min(down, into)))
    return replace(network, connections=tuple(connections), links=tuple(links))


def check_workers(workers: int) -> None:
    """Refuse a number of workers that nothing is made for.

    Raises: ConfigError.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    if workers > MOST_WORKERS:
        raise ConfigError(f"workers must be at most {MOST_WORKERS}, got {workers}")


def parse_rate(text: str) -> float:
    """Bytes a second from text such as ``100mbit``, ``1.5gbit`` or ``800kbit``.

    Raises: ConfigError with what would be right, also for ``100`` alone and for ``MB``, whose unit is a guess.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([kmg]?)bit(?:/s|ps)?", text.strip().lower())
    if match is None or not _positive(match[1]):
        raise ConfigError(f"link rate {text!r} is not a rate; write bits a second, such as 20mbit, 1.5gbit or 800kbit")
    return float(match[1]) * BIT_UNITS[match[2]] / 8


def parse_time(text: str) -> float:
    """Seconds from text such as ``30ms``, ``200us`` or ``1.5s``.

    Raises: ConfigError with what would be right.
    """
    match = re.fullmatch(r"([0-9.]+)(us|ms|s)", text.strip().lower())
    if match is None or not _is_number(match[1]):
        raise ConfigError(f"time {text!r} is not a time; write it with its unit, such as 30ms, 200us or 1.5s")
    return float(match[1]) * TIME_UNITS[match[2]]


def parse_connection(text: str) -> Connection:
    """A connection from ``RATE[/UPRATE][,LATENCY]``: ``20mbit``, ``20mbit,30ms``, ``50mbit/5mbit,40ms`` (down/up)."""
    rates, _, latency = text.partition(",")
    down, _, up = rates.partition("/")
    rate = parse_rate(down)
    return Connection(parse_rate(up) if up else rate, rate, parse_time(latency) if latency else 0.0)


def parse(link: str, workers: int, overrides: Sequence[str] = ()) -> Network:
    """The network of ``workers`` equal connections ``link``, with some of them overridden.

    An override is ``WORKER:CONNECTION`` for one worker's connection (``1:5mbit``) or
    ``SENDER-RECEIVER:CONNECTION`` for one direction of one pair (``0-1:5mbit,80ms``), which has its sender's latency
    unless it says another.

    Raises: ConfigError for text that is no connection, for a worker that does not exist, and for too many of them.
    """
    check_workers(workers)
    connections = [parse_connection(link)] * workers
    links: dict[tuple[int, int], tuple[Connection, bool]] = {}
    for override in overrides:
        where, colon, what = override.partition(":")
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", where.strip())
        if match is None or not colon:
            raise ConfigError(f"link override {override!r}: write WORKER:RATE or SENDER-RECEIVER:RATE, as in 1:5mbit")
        ends = [int(end) for end in match.groups() if end is not None]
        if max(ends) >= workers:
            raise ConfigError(f"link override {override!r}: worker {max(ends)} of {workers}; they count from 0")
        if len(ends) == 1:
            connections[ends[0]] = parse_connection(what)
        elif ends[0] == ends[1]:
            raise ConfigError(
                f"link override {override!r}: a link joins two workers, this one joins {ends[0]} to itself"
            )
        else:
            links[ends[0], ends[1]] = parse_connection(what), bool(what.partition(",")[2])
    return Network(
        tuple(connections),
        tuple((a, b, c if own else replace(c, latency=connections[a].latency)) for (a, b), (c, own) in links.items()),
    )


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _positive(text: str) -> bool:
    return _is_number(text) and float(text) > 0
