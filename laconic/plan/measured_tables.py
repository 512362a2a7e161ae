"""The ``[measured]`` tables of a cluster file: written from what was measured, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from laconic.errors import ConfigError, unknown
from laconic.plan.measured import Fan, LinkMeasured, MachineMeasured, Measured, Speed, Spread

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
LARGEST = 1e300  # of a number; whole ones may be longer in a file than a float can be
Value = TypeVar("Value")


def tables_of(measured: Measured) -> dict[str, Any]:
    """What was measured as the file has it.

    Law:    of what :func:`read_measured` reads from tables of this, the tables are the same.
    """
    told = {
        "on": measured.on,
        "when": measured.when,
        "seconds": _digits(measured.seconds),
        "nbytes": _digits(measured.nbytes),
        "notes": list(measured.notes),
    }
    links = [{"from": a, "to": b} | _of_link(link) for (a, b), link in measured.links.items()]
    machines = [{"name": name} | _of_machine(machine) for name, machine in measured.machines.items()]
    return {**told, "links": links, "machines": machines}


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
            one_way=_truth(known.get("one_way", False), f"{where}: one_way"),
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
        notes=_texts(table.get("notes", []), "measured: notes"),
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


# -- to the file ----------------------------------------------------------------------------------------------------


def _of_spread(spread: Spread) -> dict[str, Any]:
    kept = Spread(tuple(map(_digits, spread.values)))  # so that what is read says the same
    told = {"mean": _digits(kept.mean), "p10": _digits(kept.p10), "p90": _digits(kept.p90)}
    return {**told, "samples": kept.samples, "values": list(kept.values)}


def _of_link(link: LinkMeasured) -> dict[str, Any]:
    spreads = {key: getattr(link, key) for key in ("alone", "together", "latency")}
    told: dict[str, Any] = {key: _of_spread(value) for key, value in spreads.items() if value is not None}
    return told | {"one_way": link.one_way, "burst": _digits(link.burst), "frames": _digits(link.frames)}


def _of_machine(machine: MachineMeasured) -> dict[str, Any]:
    numbers = {key: getattr(machine, key) for key in ("memory", "operations", "peak")}
    told: dict[str, Any] = {key: _digits(value) for key, value in numbers.items() if value}
    if machine.workload:
        told |= {"workload": machine.workload, "tokens": machine.tokens}
    for key in ("step", "forward", "backward", "copy", "loopback"):
        value = getattr(machine, key)
        if value is not None:
            told[key] = _of_spread(value)
    if machine.sums:
        told["sums"] = {str(number): _of_spread(value) for number, value in machine.sums.items()}
    if machine.compressors:
        told["compressors"] = {
            name: {
                "compress": _of_spread(s.compress),
                "decompress": _of_spread(s.decompress),
                "nbytes": _digits(s.nbytes),
            }
            for name, s in machine.compressors.items()
        }
    for key, fans in (("out", machine.out), ("into", machine.into)):
        if fans:
            told[key] = [
                {"peers": fan.peers, "bandwidth": _of_spread(fan.bandwidth), "lost": _digits(fan.lost)}
                for fan in sorted(fans.values())
            ]
    return told


def _digits(value: float) -> float:
    """Six digits: more were never measured, and files are read by people."""
    return float(f"{value:.6g}")


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise ConfigError(f"{where} must be a number from 0 on, got {value!r}")
    return float(value)


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false, got {value!r}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{where} must be a list of text in quotes, got {value!r}")
    return tuple(value)


def _whole(value: Any, where: str) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{where} must be a whole number, got {value!r}")
    return int(text)


def _needed(value: Value | None, where: str) -> Value:
    if value is None:
        raise ConfigError(f"{where} is missing")
    return value
