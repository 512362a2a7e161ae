"""What a probe found, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence

from laconic.bench import units
from laconic.plan.cluster import Cluster
from laconic.plan.measured import Fan, LinkMeasured, MachineMeasured, Measured, Spread

MOST_LINKS = 24  # shown one by one; of more, the slowest


def summary(cluster: Cluster, found: Measured) -> str:
    """The links and machines of a cluster as measured by now, and what the last probe took."""
    known = cluster.measured or found
    links = sorted(known.links.items())
    lines: list[str] = []
    if len(links) > MOST_LINKS:
        links = sorted(links, key=lambda item: item[1].bandwidth.median if item[1].bandwidth else 0.0)[:MOST_LINKS]
        lines.append(f"the {MOST_LINKS} slowest of {len(known.links)} links:")
    head: tuple[str, ...] = ("link", "one flow", "p10 to p90", "on the wire", "all pairs busy", "latency", "burst")
    lines += _table([head, *(_link_row(ends, link) for ends, link in links)])
    head = ("machine", "memory", "step", "reaches", "step takes", "copies", "out to all", "in from all", "lost")
    lines += ["", *_table([head, *(_machine_row(name, machine) for name, machine in known.machines.items())])]
    names = list(dict.fromkeys(name for machine in known.machines.values() for name in machine.compressors))
    if names:
        head = ("compresses, there/back", *names)
        lines += ["", *_table([head, *(_speeds(name, machine, names) for name, machine in known.machines.items())])]
    took = f"sent {units.size(found.nbytes)} in {units.duration(found.seconds)}"
    return "\n".join([*lines, "", took, *found.notes])


def _link_row(ends: tuple[str, str], link: LinkMeasured) -> tuple[str, ...]:
    rate = link.bandwidth
    return (
        f"{ends[0]} -> {ends[1]}",
        _rate(rate),
        "" if rate is None else f"{_rate_of(rate.p10)} to {_rate_of(rate.p90)} ({rate.samples})",
        "" if rate is None else _rate_of(rate.median * link.frames),
        _rate(link.together),
        "" if link.latency is None else units.duration(link.latency.median) + ("" if link.one_way else " (half)"),
        units.size(link.burst) if link.burst else "",
    )


def _machine_row(name: str, machine: MachineMeasured) -> tuple[str, ...]:
    out, into = _widest(machine.out.values()), _widest(machine.into.values())
    lost = max((fan.lost for fan in (out, into) if fan is not None), default=0.0)
    return (
        name,
        units.size(machine.memory) if machine.memory else "",
        "" if machine.step is None else units.duration(machine.step.median),
        "" if machine.flops is None else f"{machine.flops / 1e9:.3g} Gflop/s",
        units.size(machine.peak) if machine.peak else "",
        "" if machine.copy is None else f"{units.size(machine.copy.median)}/s",
        "" if out is None else _rate(out.bandwidth),
        "" if into is None else _rate(into.bandwidth),
        units.share(lost) if out or into else "",
    )


def _speeds(name: str, machine: MachineMeasured, names: Sequence[str]) -> tuple[str, ...]:
    found = []
    for which in names:
        speed = machine.compressors.get(which)
        there = "" if speed is None else f"{units.size(speed.compress.median)}/s"
        found.append("" if speed is None else f"{there} / {units.size(speed.decompress.median)}/s")
    return (name, *found)


def _widest(fans: object) -> Fan | None:
    return max(fans, default=None)  # type: ignore[call-overload]


def _rate(spread: Spread | None) -> str:
    return "" if spread is None else _rate_of(spread.median)


def _rate_of(bandwidth: float) -> str:
    return units.bandwidth(bandwidth)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])] if len(rows) > 1 else []
    widths = {i: max(len(row[i]) for row in rows) for i in used}
    return ["  ".join(row[i].ljust(widths[i]) for i in used).rstrip() for row in rows if used]
