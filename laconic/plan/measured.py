"""What a probe measured, beside what a cluster file states: the ``[measured]`` tables, with their spread.

The file's own numbers are medians of these, so a reader that asks no more can leave the tables aside. Each value that
was measured is kept, the newest :data:`KEPT` of them, so that a second probe refines the first instead of replacing it.
Bytes, seconds, and bytes a second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

from laconic.errors import ConfigError, unknown

KEPT = 24
KEYS = {
    "measured": ("on", "when", "seconds", "nbytes", "notes", "links", "machines"),
    "measured.links": ("from", "to", "alone", "together", "latency", "one_way", "burst", "frames"),
    "measured.machines": (
        "name", "memory", "workload", "operations", "tokens", "peak", "step", "forward", "backward", "copy", "sums",
        "loopback", "compressors", "out", "into",
    ),
    "compressors": ("compress", "decompress", "nbytes"),
    "fan": ("peers", "bandwidth", "lost"),
    "spread": ("mean", "p10", "p90", "samples", "values"),
}  # fmt: skip
Value = TypeVar("Value")


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

    def raw(self) -> dict[str, Any]:
        """As the file has it."""
        kept = Spread(tuple(map(_digits, self.values)))  # so that what is read says the same
        told = {"mean": kept.mean, "p10": kept.p10, "p90": kept.p90}
        return {**_short(told), "samples": kept.samples, "values": list(kept.values)}


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

    def raw(self) -> dict[str, Any]:
        """As the file has it; :func:`read_measured` reads it back."""
        told = {"on": self.on, "when": self.when, "seconds": _digits(self.seconds), "nbytes": _digits(self.nbytes)}
        links = [{"from": a, "to": b} | _link_raw(link) for (a, b), link in self.links.items()]
        machines = [{"name": name} | _machine_raw(machine) for name, machine in self.machines.items()]
        return {**told, "notes": list(self.notes), "links": links, "machines": machines}


def pooled(older: Spread | None, newer: Spread | None) -> Spread | None:
    """The values of both, the newest :data:`KEPT` of them."""
    if older is None or newer is None:
        return older or newer
    return Spread((*older.values, *newer.values)[-KEPT:])


def spread(values: Iterable[float]) -> Spread | None:
    """The values as one thing measured, the newest :data:`KEPT`; None where there are none."""
    kept = tuple(values)[-KEPT:]
    return Spread(kept) if kept else None


def read_measured(raw: Any, names: Sequence[str]) -> Measured:
    """The ``[measured]`` table of a cluster with machines of these names.

    Raises: ConfigError: a key nobody knows, a machine that is none, a number that is not one.
    """
    table = _table(raw, "measured", "measured")
    links: dict[tuple[str, str], LinkMeasured] = {}
    for entry in _list(table, "links", "measured"):
        known = _table(entry, "measured.links", "measured link")
        ends = _name(known, "from", names, "measured link"), _name(known, "to", names, "measured link")
        where = f"measured link from {ends[0]} to {ends[1]}"
        links[ends] = LinkMeasured(
            alone=_spread(known.get("alone"), f"{where}: alone"),
            together=_spread(known.get("together"), f"{where}: together"),
            latency=_spread(known.get("latency"), f"{where}: latency"),
            one_way=bool(known.get("one_way", False)),
            burst=_number(known.get("burst", 0), f"{where}: burst"),
            frames=_number(known.get("frames", 1), f"{where}: frames"),
        )
    machines: dict[str, MachineMeasured] = {}
    for entry in _list(table, "machines", "measured"):
        known = _table(entry, "measured.machines", "measured machine")
        name = _name(known, "name", names, "measured machine")
        machines[name] = _machine(known, f"measured machine {name}")
    return Measured(
        links,
        machines,
        on=str(table.get("on", "")),
        when=str(table.get("when", "")),
        seconds=_number(table.get("seconds", 0), "measured: seconds"),
        nbytes=_number(table.get("nbytes", 0), "measured: nbytes"),
        notes=tuple(map(str, table.get("notes", []))),
    )


def _machine(known: dict[str, Any], where: str) -> MachineMeasured:
    spreads = ("step", "forward", "backward", "copy", "loopback")
    numbers = ("memory", "operations", "peak")
    compressors = {}
    for name, speeds in _mapping(known.get("compressors", {}), f"{where}: compressors").items():
        at = f"{where}: compressors: {name}"
        told = _table(speeds, "compressors", at)
        there, back = (
            _needed(_spread(told.get(key), f"{at}: {key}"), f"{at}: {key}") for key in KEYS["compressors"][:2]
        )
        compressors[name] = Speed(there, back, _number(told.get("nbytes", 0), f"{at}: nbytes"))
    sums = {
        _whole(key, f"{where}: sums"): _needed(_spread(value, f"{where}: sums: {key}"), f"{where}: sums: {key}")
        for key, value in _mapping(known.get("sums", {}), f"{where}: sums").items()
    }
    return MachineMeasured(
        workload=str(known.get("workload", "")),
        tokens=_whole(known.get("tokens", 0), f"{where}: tokens"),
        sums=sums,
        compressors=compressors,
        out=_fan_table(known, "out", where),
        into=_fan_table(known, "into", where),
        **{key: _spread(known.get(key), f"{where}: {key}") for key in spreads},  # type: ignore[arg-type]
        **{key: _number(known[key], f"{where}: {key}") for key in numbers if key in known},  # type: ignore[arg-type]
    )


def _fan_table(known: dict[str, Any], key: str, where: str) -> dict[int, Fan]:
    fans = {}
    for entry in _list(known, key, where):
        at = f"{where}: {key}"
        told = _table(entry, "fan", at)
        peers = _whole(told.get("peers"), f"{at}: peers")
        bandwidth = _needed(_spread(told.get("bandwidth"), f"{at}: bandwidth"), f"{at}: bandwidth")
        fans[peers] = Fan(peers, bandwidth, _number(told.get("lost", 0), f"{at}: lost"))
    return fans


def _fans(older: dict[int, Fan], newer: dict[int, Fan]) -> dict[int, Fan]:
    found = dict(older)
    for peers, fan in newer.items():
        both = pooled(found[peers].bandwidth, fan.bandwidth) if peers in found else fan.bandwidth
        assert both is not None
        found[peers] = Fan(peers, both, fan.lost)
    return found


# -- to the file ----------------------------------------------------------------------------------------------------


def _link_raw(link: LinkMeasured) -> dict[str, Any]:
    spreads = {key: getattr(link, key) for key in ("alone", "together", "latency")}
    told: dict[str, Any] = {key: value.raw() for key, value in spreads.items() if value is not None}
    return told | {"one_way": link.one_way, "burst": _digits(link.burst), "frames": _digits(link.frames)}


def _machine_raw(machine: MachineMeasured) -> dict[str, Any]:
    numbers = {key: getattr(machine, key) for key in ("memory", "operations", "peak")}
    told: dict[str, Any] = {key: _digits(value) for key, value in numbers.items() if value}
    if machine.workload:
        told |= {"workload": machine.workload, "tokens": machine.tokens}
    for key in ("step", "forward", "backward", "copy", "loopback"):
        value = getattr(machine, key)
        if value is not None:
            told[key] = value.raw()
    if machine.sums:
        told["sums"] = {str(number): value.raw() for number, value in machine.sums.items()}
    if machine.compressors:
        told["compressors"] = {
            name: {"compress": s.compress.raw(), "decompress": s.decompress.raw(), "nbytes": _digits(s.nbytes)}
            for name, s in machine.compressors.items()
        }
    for key, fans in (("out", machine.out), ("into", machine.into)):
        if fans:
            told[key] = [
                {"peers": fan.peers, "bandwidth": fan.bandwidth.raw(), "lost": _digits(fan.lost)}
                for fan in sorted(fans.values())
            ]
    return told


def _digits(value: float) -> float:
    """Six digits: more were never measured, and files are read by people."""
    return float(f"{value:.6g}")


def _short(numbers: Mapping[str, float]) -> dict[str, float]:
    return {key: _digits(value) for key, value in numbers.items()}


# -- from the file --------------------------------------------------------------------------------------------------


def _mapping(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a table, got {raw!r}")
    return raw


def _table(raw: Any, kind: str, where: str) -> dict[str, Any]:
    for key in _mapping(raw, where):
        if key not in KEYS[kind]:
            raise ConfigError(f"{where}: {unknown('key', key, KEYS[kind])}")
    return raw


def _list(table: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = table.get(key, [])
    if not isinstance(found, list):
        raise ConfigError(f"{where}: {key} must be a list of tables, got {found!r}")
    return found


def _name(table: Mapping[str, Any], key: str, names: Sequence[str], where: str) -> str:
    name = table.get(key)
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{where}: {unknown('machine', str(name), names)}")
    return name


def _spread(raw: Any, where: str) -> Spread | None:
    if raw is None:
        return None
    values = _table(raw, "spread", where).get("values")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: values must be a list of at least one number, got {values!r}")
    return Spread(tuple(_number(value, where) for value in values))


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{where} must be a number from 0 on, got {value!r}")
    return float(value)


def _whole(value: Any, where: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{where} must be a whole number, got {value!r}")
    return int(text)


def _needed(value: Value | None, where: str) -> Value:
    if value is None:
        raise ConfigError(f"{where} is missing")
    return value
