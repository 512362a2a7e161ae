"""A cluster: machines, what each computes, and what the links between them carry, as one TOML file.

Inside it everything is bytes and seconds::

    version = 1              # of the format; without it 1
    name    = "two rooms"
    workers = ["attic", "attic", "cellar"]      # where they are; by default one on each machine, round and round

    [[machines]]
    name   = "attic"
    memory = 16e9            # bytes
    flops  = 20e9            # floating-point operations a second that it reaches in training
    group  = "upstairs"      # a name that several may share, for the tables below

    [[machines]]
    name   = "cellar"
    memory = 8e9
    flops  = 5e9
    up     = 1e6             # of each worker's connection, bytes a second, for all of its messages (default: no limit)
    down   = 5e6

    [between]                # from the row's place to the column's; a place is a machine or a group
    places    = ["upstairs", "cellar"]
    bandwidth = [[1e9, 5e6], [1e6, 1e9]]        # bytes a second
    latency   = [[0.0001, 0.02], [0.02, 0.0001]]  # seconds, one way

    [[links]]                # pairs that differ from the tables, one way
    from = "attic"
    to   = "cellar"
    bandwidth = 2e6
    latency   = 0.03
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from laconic.errors import ConfigError, unknown
from laconic.plan.checking import as_measured, ends_in_line, in_line, version_of, whole
from laconic.plan.ledger import misses_in
from laconic.plan.measured import Measured
from laconic.plan.measured_tables import read_measured

SHIPPED = Path(__file__).parent / "clusters"
UNLIMITED = math.inf
LARGEST = 1e300
KEYS = {
    "the file": (
        "version",
        "checked",
        "name",
        "about",
        "source",
        "licence",
        "workers",
        "machines",
        "between",
        "links",
        "errors",
        "measured",
    ),
    "machines": ("name", "memory", "flops", "group", "up", "down"),
    "between": ("places", "bandwidth", "latency"),
    "links": ("from", "to", "bandwidth", "latency"),
}
# What a number may be, and what to ask about one that is not: a unit is mistaken more often than a link is that fast.
RANGES = {
    "bandwidth": (1e3, 1e12, "bytes a second", "is it in megabytes or megabits a second?", "is it in bits a second?"),
    "latency": (0.0, 10.0, "seconds one way", "", "is it in milliseconds?"),
    "memory": (1e6, 1e15, "bytes", "is it in gigabytes?", "is it in bits?"),
    "flops": (1e6, 1e18, "floating-point operations a second", "is it in teraflops?", "is it of the whole cluster?"),
}


@dataclass(frozen=True)
class Machine:
    """One machine: bytes of memory, floating-point operations a second in training, and its own connection's rates."""

    name: str
    memory: float
    flops: float
    group: str = ""
    up: float = UNLIMITED
    down: float = UNLIMITED


@dataclass(frozen=True)
class Line:
    """One direction between two places: bytes a second, and seconds one way."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Machines, the lines between their places, and where workers are put. Made by :func:`read_cluster`, checked."""

    name: str
    machines: tuple[Machine, ...]
    lines: dict[tuple[str, str], Line]
    workers: tuple[str, ...] = ()
    about: str = ""
    source: str = ""
    licence: str = ""
    measured: Measured | None = None

    def placed(self, workers: int) -> list[Machine]:
        """Each worker's machine: as the file places them, else one on each, and round again for more."""
        by_name = {machine.name: machine for machine in self.machines}
        order = [by_name[name] for name in self.workers] or list(self.machines)
        return [order[rank % len(order)] for rank in range(workers)]

    def shares(self, workers: int) -> list[Machine]:
        """Each worker's machine with its part of the memory and of the speed, where several are on one."""
        placed = self.placed(workers)
        count = Counter(machine.name for machine in placed)
        return [replace(m, memory=m.memory / count[m.name], flops=m.flops / count[m.name]) for m in placed]

    def line(self, sender: Machine, receiver: Machine) -> Line:
        """What carries from one machine to another, or within one; a machine's own line before its group's.

        Raises: ConfigError if the file has none.
        """
        for a in (sender.name, sender.group):
            for b in (receiver.name, receiver.group):
                if (a, b) in self.lines:
                    return self.lines[a, b]
        if sender.name == receiver.name:
            raise ConfigError(
                f"cluster {self.name}: two workers are on {sender.name}, and nothing says what carries within it; "
                f"add [[links]] from and to {sender.name!r}, or place one worker there"
            )
        raise ConfigError(
            f"cluster {self.name}: no link from {sender.name} to {receiver.name}; add it to [between] or as one of "
            "[[links]]"
        )


def shipped() -> list[str]:
    """The names of the cluster files that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read_cluster(name_or_path: str | Path) -> Cluster:
    """The shipped cluster of that name, or the one in a file (what ends in ``.toml`` or has a slash).

    Raises: ConfigError: no such cluster, no TOML, a key nobody knows, a table that is not square, a number that is not
            one or whose unit looks mistaken, a pair without a link, a file of a newer version.
    """
    text = str(name_or_path)
    if not text.endswith(".toml") and "/" not in text:
        if text not in shipped():
            error = unknown("cluster", text, shipped())
            raise ConfigError(f"{error}; a file of your own is given by its path, such as mine.toml")
        name_or_path = SHIPPED / f"{text}.toml"
    path = Path(name_or_path)
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    return _Reader(str(path)).cluster(raw, path.stem)


def parse_flops(text: str) -> float:
    """Floating-point operations a second from text such as ``20gflops``, ``1.5tflops`` or ``500mflops``.

    Raises: ConfigError with what would be right.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([mgtp])flops?(?:/s)?", text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"flops {text!r} is no speed; write operations a second, such as 20gflops or 1.5tflops")
    return float(match[1]) * {"m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}[match[2]]


class _Reader:
    """Turns what TOML gives into a cluster, and says where in which file something is wrong."""

    def __init__(self, path: str) -> None:
        self.path = path

    def cluster(self, raw: dict[str, Any], stem: str) -> Cluster:
        """The whole file."""
        self._told(lambda: version_of(raw))  # before its keys: a newer file may have others
        self._known("the file", raw, "")
        machines = tuple(self._machine(i, entry) for i, entry in enumerate(self._tables(raw, "machines", 1), 1))
        names = [machine.name for machine in machines]
        for name in names:
            if names.count(name) > 1:
                raise self._wrong(f"{names.count(name)} machines are called {name!r}; each needs a name of its own")
        groups = [machine.group for machine in machines if machine.group]
        for group in groups:
            if group in names:
                raise self._wrong(f"{group!r} is a machine and a group; call one of them something else")
        places = [*names, *dict.fromkeys(groups)]
        lines = self._between(raw["between"], places) if "between" in raw else {}
        for i, entry in enumerate(self._tables(raw, "links", 0), 1):
            ends, line = self._link(i, entry, places)
            lines[ends] = line
        workers = raw.get("workers", [])
        if not isinstance(workers, list) or not all(isinstance(worker, str) for worker in workers):
            raise self._wrong('workers must be a list of machines\' names, such as ["attic", "cellar"]')
        for worker in workers:
            if worker not in names:
                raise self._wrong(str(unknown("machine in workers:", worker, names)))
        misses_in(raw, self.path)  # read by what corrects a plan, but told before a run and not after it
        words = {key: self._text(raw, key, "") for key in ("about", "source", "licence")}
        found = self._told(lambda: read_measured(raw["measured"], names)) if "measured" in raw else None
        name = self._text(raw, "name", stem)
        cluster = Cluster(name, machines, lines, tuple(workers), **words, measured=found)
        placed = cluster.placed(len(workers) or len(machines))
        for i, a in enumerate(placed):
            for j, b in enumerate(placed):
                if i != j:
                    self._told(lambda a=a, b=b: cluster.line(a, b))  # type: ignore[misc]
        self._in_line(cluster, list(dict.fromkeys(placed)), raw.get("checked", False))
        return cluster

    def _in_line(self, cluster: Cluster, machines: Sequence[Machine], checked: Any) -> None:
        """Ask about a link that is far from those beside it, unless the file says that it is right.

        What was measured was not typed: there only what is far from the measurement is asked about.
        """
        if not isinstance(checked, bool):
            raise self._wrong(f"checked must be true or false, got {checked!r}")
        if checked:
            return
        by_name = {machine.name: machine for machine in machines}
        if cluster.measured is not None:
            for (a, b), link in cluster.measured.links.items():
                if link.alone is not None and a in by_name and b in by_name and link.alone.median > 0:
                    stated = cluster.line(by_name[a], by_name[b]).bandwidth
                    self._told(partial(as_measured, (a, b), stated, link.alone.median, "bytes a second"))
            return
        lines = [[None if a is b else cluster.line(a, b) for b in machines] for a in machines]
        names, groups = [machine.name for machine in machines], [machine.group for machine in machines]
        for what, unit, near in (("bandwidth", "bytes a second", 1), ("latency", "seconds", -1)):
            table = np.array([[0.0 if line is None else getattr(line, what) for line in row] for row in lines])
            self._told(partial(in_line, names, table, what, unit, near, groups))
        ends = {key: [getattr(machine, key) for machine in machines] for key in ("up", "down")}
        self._told(lambda: ends_in_line(names, ends, "bytes a second"))

    def _machine(self, number: int, entry: dict[str, Any]) -> Machine:
        name = self._text(entry, "name", "")
        where = f"machine {name or number}: "
        self._known("machines", entry, where)
        for key in ("name", "memory", "flops"):
            if key not in entry:
                raise self._wrong(f"{where}it has no {key}")
        if not name:
            raise self._wrong(f"{where}its name is empty")
        rates = {key: self._number(entry[key], "bandwidth", f"{where}{key}") for key in ("up", "down") if key in entry}
        memory = self._number(entry["memory"], "memory", f"{where}memory")
        flops = self._number(entry["flops"], "flops", f"{where}flops")
        return Machine(name, memory, flops, self._text(entry, "group", ""), **rates)

    def _between(self, entry: Any, places: Sequence[str]) -> dict[tuple[str, str], Line]:
        if not isinstance(entry, dict):
            raise self._wrong("between must be a table: [between]")
        self._known("between", entry, "between: ")
        for key in KEYS["between"]:
            if not isinstance(entry.get(key), list):
                raise self._wrong(f"between: {key} must be a list, got {entry.get(key)!r}")
        names = entry["places"]
        for name in names:
            if name not in places:
                raise self._wrong(str(unknown("place in between:", str(name), places)))
        if len(set(names)) != len(names):
            raise self._wrong("between: a place stands there twice")
        tables = {key: self._square(entry[key], key, names) for key in ("bandwidth", "latency")}
        return {
            (a, b): Line(tables["bandwidth"][i][j], tables["latency"][i][j])
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        }

    def _square(self, table: list[Any], key: str, names: Sequence[str]) -> list[list[float]]:
        wanted = f"wanted {len(names)} rows of {len(names)} numbers, one for each place"
        if len(table) != len(names):
            raise self._wrong(f"between: {key} has {len(table)} rows, {wanted}")
        for a, row in zip(names, table, strict=True):
            if not isinstance(row, list) or len(row) != len(names):
                got = f"{len(row)} numbers" if isinstance(row, list) else repr(row)
                raise self._wrong(f"between: the row of {a} in {key} has {got}, {wanted}")
        if key == "bandwidth":
            self._told(lambda: whole(names, table))
        return [
            [self._number(x, key, f"between: {key} from {a} to {b}") for b, x in zip(names, row, strict=True)]
            for a, row in zip(names, table, strict=True)
        ]

    def _link(self, number: int, entry: dict[str, Any], places: Sequence[str]) -> tuple[tuple[str, str], Line]:
        where = f"link {number}: "
        self._known("links", entry, where)
        for key in KEYS["links"]:
            if key not in entry:
                raise self._wrong(f"{where}it has no {key}")
        ends = self._text(entry, "from", ""), self._text(entry, "to", "")
        for end in ends:
            if end not in places:
                raise self._wrong(f"{where}{unknown('place', end, places)}")
        where = f"link from {ends[0]} to {ends[1]}: "
        values = [self._number(entry[key], key, where + key) for key in ("bandwidth", "latency")]
        return ends, Line(*values)

    # -- values ----------------------------------------------------------------------------------------------

    def _number(self, value: Any, kind: str, what: str) -> float:
        least, most, unit, if_small, if_large = RANGES[kind]
        if isinstance(value, int) and abs(value) > LARGEST:  # longer than a float can be
            value = math.inf if value > 0 else -math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self._wrong(f"{what} must be a number of {unit}, got {value!r}")
        if value < 0 or (value == 0 and least > 0):
            raise self._wrong(f"{what} must be positive, got {value:g}")
        if value < least:
            raise self._wrong(f"{what} is {value:g} {unit}, under {least:g}: {if_small}")
        if value > most:
            raise self._wrong(f"{what} is {value:g} {unit}, over {most:g}: {if_large}")
        return float(value)

    def _text(self, entry: dict[str, Any], key: str, default: str) -> str:
        value = entry.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(f"{key} must be text in quotes, got {value!r}")
        return value

    def _tables(self, raw: dict[str, Any], key: str, least: int) -> list[dict[str, Any]]:
        entries = raw.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self._wrong(f"{key} must be tables: [[{key}]]")
        if len(entries) < least:
            raise self._wrong(f"it has no [[{key}]]")
        return entries

    def _known(self, table: str, entry: dict[str, Any], where: str) -> None:
        for key in entry:
            if key not in KEYS[table]:
                raise self._wrong(f"{where}{unknown('key', key, KEYS[table])}")

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ConfigError as error:
            raise self._wrong(str(error)) from None

    def _wrong(self, sentence: str) -> ConfigError:
        return ConfigError(f"{self.path}: {sentence}")
