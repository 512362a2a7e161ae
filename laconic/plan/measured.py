"""What a probe measured, beside what a cluster file states: the ``[measured]`` tables, with their spread.

The file's own numbers are medians of these, so a reader that asks no more can leave the tables aside. Each value that
was measured is kept, the newest :data:`KEPT` of them, so that a second probe refines the first instead of replacing it.
Bytes, seconds, and bytes a second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

KEPT = 24


@dataclass(frozen=True)
class Spread:
    """Values of one thing, measured one after the other, the newest last."""

    values: tuple[float, ...]

    @property
    def samples(self) -> int:
        """How many they are."""
        return len(self.values)

    @property
    def median(self) -> float:
        """Half of them are at most this."""
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def p10(self) -> float:
        """A tenth of them are below; in between, on a straight line."""
        return _quantile(self.values, 0.1)

    @property
    def p90(self) -> float:
        """A tenth of them are above."""
        return _quantile(self.values, 0.9)

    @property
    def width(self) -> float:
        """From p10 to p90, over the median."""
        return (self.p90 - self.p10) / self.median if self.median else math.inf


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


class Fan(NamedTuple):
    """One worker with several peers at once: bytes a second in all, and the share of bytes that was sent again."""

    peers: int
    bandwidth: Spread
    lost: float


class Speed(NamedTuple):
    """A compressor on one machine: bytes of the tensor a second, there and back, and bytes sent for one of float32."""

    compress: Spread
    decompress: Spread
    nbytes: float


@dataclass(frozen=True)
class LinkMeasured:
    """One direction between two machines.

    ``alone`` is one flow with nothing else in the cluster, ``together`` with all workers busy in pairs. ``latency`` is
    one way: as measured if ``one_way``, where both ends share a clock, else half of there and back. ``burst`` are the
    bytes that passed before the rate was held, ``frames`` the bytes on the wire for each of a message.
    """

    alone: Spread | None = None
    together: Spread | None = None
    latency: Spread | None = None
    one_way: bool = False
    burst: float = 0.0
    frames: float = 1.0

    @property
    def bandwidth(self) -> Spread | None:
        """What one flow gets: alone if that was measured."""
        return self.alone or self.together

    def and_then(self, newer: LinkMeasured) -> LinkMeasured:
        """Both, the newer last."""
        spreads = {name: pooled(getattr(self, name), getattr(newer, name)) for name in ("alone", "together", "latency")}
        if newer.latency is not None and newer.one_way != self.one_way:
            spreads["latency"] = newer.latency  # halves and one ways are not of a kind
        heard = newer if newer.bandwidth is not None else self
        way = newer.one_way if newer.latency is not None else self.one_way
        return LinkMeasured(**spreads, one_way=way, burst=heard.burst, frames=heard.frames)


@dataclass(frozen=True)
class MachineMeasured:
    """One machine: bytes of memory, seconds of a step of ``workload`` and its operations, and how fast it is otherwise.

    ``peak`` is the memory that a step takes at most, over what the process took before there was a model. ``copy`` is
    bytes copied a second, each read and written once; ``sums`` seconds a byte of summing so many tensors in one pass,
    by their number; ``loopback`` bytes a second between two workers on the machine. ``out`` and ``into`` are fans.
    """

    memory: float = 0.0
    workload: str = ""
    operations: float = 0.0
    tokens: int = 0
    peak: float = 0.0
    step: Spread | None = None
    forward: Spread | None = None
    backward: Spread | None = None
    copy: Spread | None = None
    sums: dict[int, Spread] = field(default_factory=dict)
    loopback: Spread | None = None
    compressors: dict[str, Speed] = field(default_factory=dict)
    out: dict[int, Fan] = field(default_factory=dict)
    into: dict[int, Fan] = field(default_factory=dict)

    @property
    def flops(self) -> float | None:
        """Operations a second that it reaches in training."""
        return self.operations / self.step.median if self.step is not None and self.operations else None

    def and_then(self, newer: MachineMeasured) -> MachineMeasured:
        """Both, the newer last; of another workload the newer alone."""
        same = newer.step is None or (newer.workload, newer.operations) == (self.workload, self.operations)
        spreads = {name: pooled(getattr(self, name), getattr(newer, name)) for name in ("copy", "loopback")}
        steps = {
            name: pooled(getattr(self, name), getattr(newer, name)) if same else getattr(newer, name)
            for name in ("step", "forward", "backward")
        }
        last = newer if newer.step is not None else self
        return MachineMeasured(
            memory=newer.memory or self.memory,
            workload=last.workload,
            operations=last.operations,
            tokens=last.tokens,
            peak=last.peak,
            sums=self.sums | newer.sums,
            compressors=self.compressors | newer.compressors,
            out=_fans(self.out, newer.out),
            into=_fans(self.into, newer.into),
            **spreads,
            **steps,
        )


@dataclass(frozen=True)
class Measured:
    """A probe's findings by the machines' names; links by their two ends, one way."""

    links: dict[tuple[str, str], LinkMeasured] = field(default_factory=dict)
    machines: dict[str, MachineMeasured] = field(default_factory=dict)
    on: str = ""
    when: str = ""
    seconds: float = 0.0
    nbytes: float = 0.0
    notes: tuple[str, ...] = ()

    def and_then(self, newer: Measured) -> Measured:
        """What both found, the newer last; of the two probes themselves the newer's account."""
        links, machines = dict(self.links), dict(self.machines)
        for ends, link in newer.links.items():
            links[ends] = links[ends].and_then(link) if ends in links else link
        for name, machine in newer.machines.items():
            machines[name] = machines[name].and_then(machine) if name in machines else machine
        return replace(newer, links=links, machines=machines)


def pooled(older: Spread | None, newer: Spread | None) -> Spread | None:
    """The values of both, the newest :data:`KEPT` of them."""
    if older is None or newer is None:
        return older or newer
    return Spread((*older.values, *newer.values)[-KEPT:])


def spread(values: Iterable[float]) -> Spread | None:
    """The values as one thing measured, the newest :data:`KEPT`; None where there are none."""
    kept = tuple(values)[-KEPT:]
    return Spread(kept) if kept else None


def _fans(older: dict[int, Fan], newer: dict[int, Fan]) -> dict[int, Fan]:
    found = dict(older)
    for peers, fan in newer.items():
        both = pooled(found[peers].bandwidth, fan.bandwidth) if peers in found else fan.bandwidth
        assert both is not None
        found[peers] = Fan(peers, both, fan.lost)
    return found
