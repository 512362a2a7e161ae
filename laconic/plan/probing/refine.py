"""Cluster files from what was measured: a new one, or an old one refined. Pure: tables in, tables out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations, product
from typing import Any

from laconic.errors import ConfigError
from laconic.plan.checking import VERSION
from laconic.plan.cluster import Cluster, Line
from laconic.plan.measured import Fan, Measured
from laconic.plan.measured_tables import tables_of
from laconic.plan.probing.schedule import Pair

ENOUGH = 3  # times a link is measured, after which it is settled
NARROW = 0.1  # if its values lie this close together, from p10 to p90 over the median
CAPPED = 1.05  # lone flows together over what they get at once: from here on a machine's own connection limits


def settled(cluster: Cluster | None, names: Sequence[str]) -> set[Pair]:
    """The directions, by the places of ``names``, that a file knows well enough to be left out of the next probe."""
    if cluster is None or cluster.measured is None:
        return set()
    found = set()
    for i, j in permutations(range(len(names)), 2):
        link = cluster.measured.links.get((names[i], names[j]))
        rates = None if link is None or link.latency is None else link.bandwidth
        if rates is not None and rates.samples >= ENOUGH and rates.width <= NARROW:
            found.add((i, j))
    return found


def fanned(cluster: Cluster | None, names: Sequence[str], peers: int) -> set[int]:
    """Who has been measured with ``peers`` at once, out and in."""
    known = {} if cluster is None or cluster.measured is None else cluster.measured.machines
    return {
        i for i, name in enumerate(names) if name in known and peers in known[name].out and peers in known[name].into
    }


def check_joined(cluster: Cluster | None, names: Sequence[str], path: str) -> None:
    """Refuse machines that are not in a file when machines of the file stay away: their links would be unknown.

    Raises: ConfigError with whom to probe as well, and for two machines of one name.
    """
    twice = [name for name in names if list(names).count(name) > 1]
    if twice:
        raise ConfigError(
            f"probe: two workers are on {twice[0]}; start one on each machine, what a machine carries within is "
            "measured by it alone"
        )
    if cluster is None:
        return
    known = [machine.name for machine in cluster.machines]
    new, absent = [n for n in names if n not in known], [n for n in known if n not in names]
    if new and absent:
        raise ConfigError(
            f"{path} has {absent[0]}, which is not probed, and not {new[0]}, which is: the link between them would be "
            f"unknown; probe {', '.join([*names, *absent])} together, what is known well is left out, or choose "
            "another --out"
        )


def refined(
    old: Mapping[str, Any] | None, cluster: Cluster | None, found: Measured, name: str, about: str = ""
) -> dict[str, Any]:
    """The tables of a cluster file with what was found: those of the old one, where there is one, made better.

    What the old file says and a probe does not measure stays: groups, placement, corrections. Rates and latencies
    are medians of all that was measured; ``up`` and ``down`` stand where a machine's own connection was seen to limit.

    Law:    refined by nothing new, the tables are the same.
    """
    measured = found if cluster is None or cluster.measured is None else cluster.measured.and_then(found)
    tables = dict(old or {"version": VERSION, "name": name, "about": about})
    entries = {entry["name"]: dict(entry) for entry in tables.get("machines", [])}
    for machine, seen in measured.machines.items():
        entry = entries.setdefault(machine, {"name": machine})
        if seen.memory:
            entry["memory"] = seen.memory
        if seen.flops:
            entry["flops"] = float(f"{seen.flops:.4g}")
        for key, fans in (("up", seen.out), ("down", seen.into)):
            lone = _lone(measured, machine, outward=key == "up")
            fan = fans.get(len(lone))  # with all that it has links to: of fewer it is not known which they were
            if fan is not None:
                entry.pop(key, None)
                cap = _cap(fan, lone)
                entry |= {} if cap is None else {key: cap}
    tables["machines"] = list(entries.values())
    lines = _lines(cluster, measured, list(entries))
    inner = [place for place in entries if (place, place) in lines]
    square = [[lines.get((a, b)) for b in inner] for a in inner]
    rest = dict(lines)
    if inner and all(line is not None for row in square for line in row):
        tables["between"] = {
            "places": inner,
            "bandwidth": [[line.bandwidth for line in row if line is not None] for row in square],
            "latency": [[line.latency for line in row if line is not None] for row in square],
        }
        rest = {ends: line for ends, line in lines.items() if not set(ends) <= set(inner)}
    else:
        tables.pop("between", None)
    tables["links"] = [
        {"from": a, "to": b, "bandwidth": line.bandwidth, "latency": line.latency} for (a, b), line in rest.items()
    ]
    if not tables["links"]:
        del tables["links"]
    tables["measured"] = tables_of(measured)
    return tables


def _lines(cluster: Cluster | None, measured: Measured, places: Sequence[str]) -> dict[tuple[str, str], Line]:
    """What carries from each place to each: as measured, else as the file said."""
    found: dict[tuple[str, str], Line] = {}
    machines = {} if cluster is None else {machine.name: machine for machine in cluster.machines}
    for a, b in product(places, places):
        link, within = measured.links.get((a, b)), measured.machines.get(a)
        if a == b and within is not None and within.loopback is not None:
            found[a, b] = Line(_four(within.loopback.median), 0.0)
        elif link is not None and link.bandwidth is not None and link.latency is not None:
            found[a, b] = Line(_four(link.bandwidth.median), float(f"{link.latency.median:.4g}"))
        elif a in machines and b in machines and cluster is not None:
            try:
                found[a, b] = cluster.line(machines[a], machines[b])
            except ConfigError:  # nothing was said of what carries within it, and nothing has to be
                if a != b:
                    raise
    return found


def _lone(measured: Measured, machine: str, outward: bool) -> list[float]:
    """The rates of a machine's lone flows, out of it or into it."""
    return [
        link.bandwidth.median
        for (a, b), link in measured.links.items()
        if (a if outward else b) == machine and link.bandwidth is not None
    ]


def _cap(fan: Fan, lone: Sequence[float]) -> float | None:
    """What limits a machine's flows together; None where they are no slower at once than alone."""
    at_once = fan.bandwidth.median
    if sum(lone) <= CAPPED * at_once:
        return None
    return _four(max(at_once, *lone))  # a lone flow went through the same connection


def _four(rate: float) -> float:
    return math.inf if math.isinf(rate) else float(f"{rate:.4g}")
