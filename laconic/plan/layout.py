"""Where the parts of a model lie on a cluster, and what its lines then carry.

A machine that stands k times in a cluster's ``workers`` is a host of k accelerators; its ``memory`` and ``flops`` are
those of one of them, and its ``up`` and ``down`` are each one's connection, which all of its messages pass, also those
within the machine: as everywhere that reads a cluster.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from laconic.errors import ConfigError
from laconic.plan.cluster import Cluster, Line, Machine
from laconic.plan.transformer import Shape

INSIDE, GROUP, APART = "inside machines", "inside groups", "between groups"
CLASSES = (INSIDE, GROUP, APART)


def hosts(
    number: int, each: int, flops: float, memory: float, inside: Line, between: Line, name: str = "hosts"
) -> Cluster:
    """A cluster of equal hosts with ``each`` accelerators: ``flops`` and ``memory`` of one, lines ``inside`` and
    ``between`` them.

    Raises: ConfigError for no hosts or accelerators.
    """
    if number < 1 or each < 1:
        raise ConfigError(f"hosts: at least one of at least one accelerator, got {number} x {each}")
    machines = tuple(Machine(f"host{i}", memory, flops, "all") for i in range(number))
    lines = {("all", "all"): between} | {(machine.name, machine.name): inside for machine in machines}
    workers = tuple(machine.name for machine in machines for _ in range(each))
    return Cluster(name, machines, lines, workers)


def ranked(cluster: Cluster) -> list[Machine]:
    """Each worker's machine, those of a machine and those of a group side by side, as the file names them first."""
    placed = cluster.placed(len(cluster.workers) or len(cluster.machines))
    machines = list(dict.fromkeys(placed))
    groups = list(dict.fromkeys(machine.group or machine.name for machine in machines))
    return sorted(placed, key=lambda m: (groups.index(m.group or m.name), machines.index(m)))


@dataclass(frozen=True)
class Layout:
    """A shape on the workers of a cluster.

    Workers of a tensor group follow one another. With ``stages_across`` so do the copies of a stage, and stages lie
    farthest apart; else the stages of a copy follow one another, and copies lie farthest apart.
    """

    cluster: Cluster
    machines: tuple[Machine, ...]
    shape: Shape
    stages_across: bool = True

    def rank(self, stage: int, copy: int, tensor: int) -> int:
        """The worker that holds this part."""
        p, t, d = self.shape.pipeline, self.shape.tensor, self.shape.data
        return ((stage * d + copy) if self.stages_across else (copy * p + stage)) * t + tensor

    def line(self, sender: int, receiver: int) -> Line:
        """What carries from one worker to another: no more than their own connections do."""
        return self._between(self.machines[sender].name, self.machines[receiver].name)

    def kind(self, sender: int, receiver: int) -> str:
        """The class of the link from one worker to another."""
        a, b = self.machines[sender], self.machines[receiver]
        if a.name == b.name:
            return INSIDE
        return GROUP if a.group == b.group and a.group else APART

    def speed(self, stage: int) -> float:
        """Operations a second of the slowest worker of a stage."""
        return min(self.machines[rank].flops for rank in self.stage(stage))

    def memory(self, stage: int) -> float:
        """Bytes of the smallest worker of a stage."""
        return min(self.machines[rank].memory for rank in self.stage(stage))

    def stage(self, stage: int) -> Iterator[int]:
        """All workers of a stage."""
        return (self.rank(stage, copy, t) for copy in range(self.shape.data) for t in range(self.shape.tensor))

    def tensor_group(self, stage: int, copy: int) -> list[int]:
        """The workers that share the layers of a stage of one copy."""
        return [self.rank(stage, copy, t) for t in range(self.shape.tensor)]

    def data_group(self, stage: int, tensor: int) -> list[int]:
        """The workers that hold the same parameters."""
        return [self.rank(stage, copy, tensor) for copy in range(self.shape.data)]

    def slowest(self, pairs: Sequence[tuple[int, int]]) -> Line:
        """The least bandwidth and the greatest latency of the lines between these pairs."""
        lines = [self.line(a, b) for a, b in pairs]
        return Line(min(line.bandwidth for line in lines), max(line.latency for line in lines))

    def _between(self, sender: str, receiver: str) -> Line:
        if (known := self._lines.get((sender, receiver))) is not None:
            return known
        a, b = self._by_name[sender], self._by_name[receiver]
        line = self.cluster.line(a, b)
        line = Line(min(line.bandwidth, a.up, b.down), line.latency)
        self._lines[sender, receiver] = line
        return line

    @cached_property
    def _lines(self) -> dict[tuple[str, str], Line]:
        return {}

    @cached_property
    def _by_name(self) -> dict[str, Machine]:
        return {machine.name: machine for machine in self.machines}


def ring(group: Sequence[int]) -> list[tuple[int, int]]:
    """Who sends to whom when these workers sum around a ring."""
    return [(a, group[(i + 1) % len(group)]) for i, a in enumerate(group)] if len(group) > 1 else []


def all_reduce_seconds(line: Line, ways: int, nbytes: float) -> float:
    """An all-reduce around a ring: ``2 (n - 1)`` rounds of ``1 / n`` of the bytes.

    ``nbytes`` is what is summed; for a reduce-scatter and an all-gather of unlike bytes, their mean.
    """
    return 2 * (ways - 1) * (nbytes / ways / line.bandwidth + line.latency) if ways > 1 else 0.0


@dataclass(frozen=True)
class Summing:
    """How the copies of a stage's parameters are summed: around one ring, or within machines first.

    Within machines each worker sums its part of the bytes with the others', and goes around a ring of the machines
    with that part alone: all connections of a machine are used.
    """

    seconds: float
    inner: int
    edges: tuple[tuple[int, int, float], ...]  # worker, worker, and the share of 2 x the bytes that goes between


def summing(layout: Layout, stage: int, nbytes: float) -> Summing:
    """The faster of the two ways for all data groups of a stage; ``nbytes`` as in :func:`all_reduce_seconds`."""
    groups = [layout.data_group(stage, t) for t in range(layout.shape.tensor)]
    d = layout.shape.data
    rings = [edge for group in groups for edge in ring(group)]
    if not rings:
        return Summing(0.0, 1, ())
    flat = all_reduce_seconds(layout.slowest(rings), d, nbytes)
    best = Summing(flat, 1, tuple((a, b, (d - 1) / d) for a, b in rings))
    counts = {tuple(Counter(layout.machines[rank].name for rank in group).values()) for group in groups}
    sizes = set(itertools.chain.from_iterable(counts))
    if len(sizes) != 1 or (inner := sizes.pop()) in (1, d):
        return best
    outer = d // inner
    within = [ring(part) for group in groups for part in _by_machine(layout, group)]
    without = [ring(part) for group in groups for part in zip(*_by_machine(layout, group), strict=True)]
    pairs = list(itertools.chain.from_iterable(within)), list(itertools.chain.from_iterable(without))
    seconds = all_reduce_seconds(layout.slowest(pairs[0]), inner, nbytes)
    seconds += all_reduce_seconds(layout.slowest(pairs[1]), outer, nbytes / inner)
    if seconds >= flat:
        return best
    edges = [(a, b, (inner - 1) / inner) for a, b in pairs[0]] + [
        (a, b, (outer - 1) / outer / inner) for a, b in pairs[1]
    ]
    return Summing(seconds, inner, tuple(edges))


def _by_machine(layout: Layout, group: Sequence[int]) -> list[list[int]]:
    parts: dict[str, list[int]] = {}
    for rank in group:
        parts.setdefault(layout.machines[rank].name, []).append(rank)
    return list(parts.values())
