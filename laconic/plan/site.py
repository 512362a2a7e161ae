"""What there is to train on, as a plan sees it: the network, each worker's step and memory; and what could change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from laconic.bench import units
from laconic.errors import ConfigError
from laconic.links.network import Connection, Network, of_cluster
from laconic.plan.charging import slower_by, speeds_here
from laconic.plan.cluster import Cluster, Machine
from laconic.plan.job import Job, Step, threads_of

ALIKE = 1.01  # links within this of the slowest are as slow as it
DIGITS = 1e-5  # operations that differ by less are the same: a cluster file keeps six digits
BY_GLOO = 16  # workers up to which sums are priced message by message as gloo sends them; beyond, as a plain ring


@dataclass(frozen=True)
class Site:
    """Workers: ``steps`` and ``memory`` (bytes, infinite where nobody says) of each, and the network that joins them.

    ``where`` is what the links are called, and ``told`` how the seconds of a step are known. ``compressing`` is how
    many times as long as here each machine takes to compress, where that was probed.
    """

    network: Network
    steps: tuple[Step, ...]
    memory: tuple[float, ...]
    where: str = ""
    told: str = ""
    compressing: tuple[float, ...] = ()

    @property
    def workers(self) -> int:
        """How many."""
        return len(self.steps)

    def slowest(self) -> tuple[int, int, Connection] | None:
        """The pair that carries the fewest bytes a second, one way; None for one worker."""
        pair = self.network.slowest
        return None if pair is None else (*pair, self.network.link(*pair))

    def alone(self) -> Site:
        """The quickest worker by itself."""
        best = min(range(self.workers), key=lambda worker: self.steps[worker].seconds)
        return replace(
            self,
            network=Network((Connection(),)),
            steps=(self.steps[best],),
            memory=(self.memory[best],),
            compressing=(),
        )

    def quicker_links(self, factor: float = 2.0) -> Site:
        """The slowest links, and those about as slow, so many times faster."""
        slow = self.slowest()
        if slow is None:
            return self
        return replace(self, network=_quicker(self.network, slow[2].up * ALIKE, factor))

    def nearer(self, factor: float = 2.0) -> Site:
        """All latencies so many times shorter."""
        ends = tuple(replace(c, latency=c.latency / factor) for c in self.network.connections)
        links = tuple((a, b, replace(c, latency=c.latency / factor)) for a, b, c in self.network.links)
        return replace(self, network=replace(self.network, connections=ends, links=links))

    def shared(self, share: float) -> Site:
        """What is left where others take a share of every link all the time.

        Raises: ConfigError.
        """
        if not 0 <= share < 1:
            raise ConfigError(
                f"plan: --background is the share of the links that others take, in [0, 1), got {share:g}"
            )
        return replace(self, network=_quicker(self.network, math.inf, 1 - share))

    def quicker_machines(self, factor: float = 2.0) -> Site:
        """Every machine so many times quicker."""
        return replace(self, steps=tuple(step.times(1 / factor) for step in self.steps))

    def one_more(self) -> Site:
        """One more worker, on a machine and a connection like the last one's, as far from it as that is from others."""
        last, size = self.workers - 1, self.workers
        links = list(self.network.links)
        links += [(size, b, c) for a, b, c in self.network.links if a == last]
        links += [(a, size, c) for a, b, c in self.network.links if b == last]
        near = self.network.link(last, last - 1) if self.network.links and last else None
        if near is not None:
            links += [(last, size, near), (size, last, near)]
        ends = (*self.network.connections, self.network.connections[last])
        more = (*self.steps, self.steps[last]), (*self.memory, self.memory[last])
        paces = (*self.compressing, *self.compressing[-1:])
        probed = (*self.network.probed, *self.network.probed[-1:])
        wider = replace(self.network, connections=ends, links=tuple(links), probed=probed)
        return replace(self, network=wider, steps=more[0], memory=more[1], compressing=paces)


def of(network: Network, steps: Sequence[Step], memory: float | None = None, where: str = "", told: str = "") -> Site:
    """A site of a network, with so much memory on each machine.

    Raises: ConfigError for a step that takes no time: nothing could be said of what it hides.
    """
    for step in steps:
        if not 0 < step.seconds < math.inf:
            raise ConfigError(f"plan: a step must take time, got {step.seconds:g} s; give --step-seconds or --flops")
    limit = math.inf if memory is None else memory
    if network.workers <= BY_GLOO:
        network = replace(network, gloo=True)
    return Site(network, tuple(steps), (limit,) * len(steps), where, told)


def of_cluster_file(cluster: Cluster, workers: int, job: Job, memory: float | None = None, where: str = "") -> Site:
    """A site of a cluster's machines: their operations a second say what a step takes, their memory what fits.

    A step that was probed with this very job is taken as it was measured, with its parts. Workers on one machine have
    equal parts of its speed and memory.

    Raises: ConfigError where the job's operations could not be counted.
    """
    placed, whole = cluster.shares(workers), cluster.placed(workers)
    limits = tuple(machine.memory if memory is None else memory for machine in placed)
    steps = [_step(cluster, one, job, of.flops / one.flops) for one, of in zip(placed, whole, strict=True)]
    rates = sorted({machine.flops for machine in placed})
    told = " to ".join(f"{rate / 1e9:,.4g}" for rate in (rates if len(rates) < 3 else (rates[0], rates[-1])))
    made = of(of_cluster(cluster, workers), steps, None, where or cluster.name, f"its machines reach {told} Gflop/s")
    return replace(made, memory=limits, compressing=_compressing(cluster, placed))


def _compressing(cluster: Cluster, placed: Sequence[Machine]) -> tuple[float, ...]:
    """Each machine's time to compress over this one's, for the same compressors; empty where none were timed there."""
    known = {} if cluster.measured is None else cluster.measured.machines
    speeds = {machine.name: known[machine.name].compressors for machine in placed if machine.name in known}
    names = sorted({name for each in speeds.values() for name in each})
    if not names:
        return ()
    own = speeds_here(names, threads_of(len(placed)))
    slower = {name: slower_by(each, own) for name, each in speeds.items() if each}
    return tuple(slower.get(machine.name, 1.0) for machine in placed)


def _step(cluster: Cluster, machine: Machine, job: Job, sharing: float = 1.0) -> Step:
    """A step as a probe measured it, if that was of this very job; else the job's operations at the machine's speed.

    What was measured takes as many times as long as workers share the machine.
    """
    found = None if cluster.measured is None else cluster.measured.machines.get(machine.name)
    if found is None or found.step is None:
        return job.at(machine.flops)
    if not math.isclose(found.operations, job.forward + job.backward, rel_tol=DIGITS):
        return job.at(machine.flops)
    forward, backward = (0.0 if part is None else part.median for part in (found.forward, found.backward))
    rest = max(0.0, found.step.median - forward - backward)
    parts = Step(forward, backward, rest) if forward and backward else None
    return job.split(found.step.median * sharing, parts)


def described(site: Site) -> str:
    """The site in a line: how many workers, their slowest link, their step."""
    slow = site.slowest()
    seconds = sorted(step.seconds for step in site.steps)
    step = units.duration(seconds[0])
    if seconds[-1] > seconds[0] * ALIKE:
        step += f" to {units.duration(seconds[-1])}"
    link = (
        "" if slow is None else f", the slowest link {units.bandwidth(slow[2].up)}, {units.duration(slow[2].latency)}"
    )
    told = f" ({site.told})" if site.told else ""
    return f"{site.workers} worker{'s' * (site.workers > 1)}{link}; a step computes for {step}{told}"


def _quicker(network: Network, limit: float, factor: float) -> Network:
    """Everything that carries at most ``limit`` bytes a second, ``factor`` times faster."""

    def quick(connection: Connection) -> Connection:
        up, down = (rate * factor if rate <= limit else rate for rate in (connection.up, connection.down))
        return replace(connection, up=up, down=down)

    links = tuple((a, b, quick(connection)) for a, b, connection in network.links)
    return replace(network, connections=tuple(quick(connection) for connection in network.connections), links=links)
