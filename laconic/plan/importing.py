"""Clusters from elsewhere: silo topologies as GML files, and GPU hosts as the XML files that NCCL reads.

Both become the tables of a cluster file (:mod:`laconic.plan.cluster`), with what the source leaves open said in its
``about``. ``laconic clusters FILE --out mine.toml`` writes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.fabric import Graph
from laconic.plan.nccl import host_of

MEMORY, FLOPS = 16e9, 20e9  # of a silo, where nothing is said
MS_PER_KM, MS_PER_WAY = 0.0085, 4.0  # arXiv:2010.12229 (appendix), after Gueye et al. 2006
LARGEST = 1 << 22  # bytes of a file that is read


class Assumed(NamedTuple):
    """What a file may leave open: bytes of memory and operations a second of a machine, bytes a second of edges, of a
    host's NIC and of a GPU's NVLinks; and how many such hosts there are.
    """

    memory: float | None = None
    flops: float | None = None
    bandwidth: float | None = None
    nic: float | None = None
    nvlink: float | None = None
    hosts: int = 1


class Backbone(NamedTuple):
    """Silos, and the edges between them with kilometres and bytes a second (None: not known)."""

    silos: list[str]
    edges: list[tuple[int, int, float, float | None]]


def imported(path: Path, assumed: Assumed = Assumed()) -> dict[str, Any]:  # noqa: B008
    """The tables of a cluster file, from a ``.gml`` or an ``.xml``.

    Raises: ConfigError for what is neither, cannot be read, or leaves open what ``assumed`` does not say.
    """
    if path.suffix == ".gml":
        return _of_silos(read_gml(path), path, assumed)
    if path.suffix == ".xml":
        return _of_host(path, assumed)
    raise ConfigError(f"{path}: not a file of a kind that is known; give a .gml topology or a topology .xml of NCCL")


def read_gml(path: Path) -> Backbone:
    """Silos and edges of a GML file: ``distance`` in km, ``capacity`` in bits a second where it is known.

    Raises: ConfigError with what is wrong.
    """
    import networkx

    try:
        graph = networkx.parse_gml(text_of(path).splitlines(), label="id")
    except (networkx.NetworkXError, ValueError, IndexError, RecursionError) as error:
        raise ConfigError(f"{path}: no GML: {error}") from None
    except (AttributeError, TypeError, KeyError):  # a number where nodes should stand, a table as an id
        raise ConfigError(f"{path}: no GML: it has no graph with nodes that have an id each") from None
    if graph.is_directed():
        raise ConfigError(
            f"{path}: its edges have a direction, which is not read; take `directed 1` out if both are alike"
        )
    silos = [str(graph.nodes[node].get("label", node)).replace("+", " ") for node in graph]
    if len(silos) < 2:
        raise ConfigError(f"{path}: it has {len(silos)} nodes, and a cluster joins at least two")
    if len(set(silos)) != len(silos):
        twice = next(name for name in silos if silos.count(name) > 1)
        raise ConfigError(f"{path}: two nodes are called {twice!r}; each needs a label of its own")
    places = {node: i for i, node in enumerate(graph)}
    edges = []
    for a, b, about in graph.edges(data=True):
        where = f"{path}: the edge from {silos[places[a]]} to {silos[places[b]]}"
        if "distance" not in about:
            raise ConfigError(f"{where} has no distance, in km")
        km, bits = _number(about["distance"], where + "'s distance"), about.get("capacity")
        rate = None if bits is None else _number(bits, where + "'s capacity") / 8
        if km < 0 or (rate is not None and rate <= 0):
            raise ConfigError(f"{where} has {km:g} km and {bits} bit/s; both must be positive")
        edges.append((places[a], places[b], km, rate))
    return Backbone(silos, edges)


def backbone(path: Path, bandwidth: float | None = None) -> Graph:
    """A GML file as a fabric whose edges are shared by all that goes over them; one worker at each silo.

    A message goes the way of least kilometres. ``bandwidth`` is that of edges without a capacity, bytes a second.
    """
    return _graph(read_gml(path), path, bandwidth)


def _graph(found: Backbone, path: Path, bandwidth: float | None) -> Graph:
    open_ = [(a, b) for a, b, _, rate in found.edges if rate is None]
    if open_ and bandwidth is None:
        a, b = (found.silos[end] for end in open_[0])
        raise ConfigError(
            f"{path}: {len(open_)} of {len(found.edges)} edges have no capacity, the first from {a} to {b}; say theirs "
            "with --bandwidth, such as 1gbit"
        )
    ends = np.array([(a, b) for a, b, _, _ in found.edges]).reshape(-1, 2)
    km = np.array([km for _, _, km, _ in found.edges])
    rate = np.array([bandwidth if rate is None else rate for _, _, _, rate in found.edges], float)
    tail, head = np.concatenate((ends[:, 0], ends[:, 1])), np.concatenate((ends[:, 1], ends[:, 0]))
    length = np.concatenate((km, km)) + 1e-3  # of two ways as long the one of fewer edges
    return Graph(
        len(found.silos), tail, head, np.concatenate((rate, rate)), np.concatenate((km, km)) * MS_PER_KM * 1e-3,
        np.arange(len(found.silos)), length=length,
    )  # fmt: skip


def _of_silos(found: Backbone, path: Path, assumed: Assumed) -> dict[str, Any]:
    graph = _graph(found, path, assumed.bandwidth)
    count = len(found.silos)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    source, target = np.array(pairs).T
    try:
        laid = graph.lay(source, target, np.full(len(pairs), -1))
    except ConfigError:
        raise ConfigError(f"{path}: it falls apart: {_islands(found)}; a cluster needs a way between any two") from None
    narrow = np.where(laid.route >= 0, laid.capacity[laid.route], np.inf).min(axis=1)[laid.pair]
    late = laid.latency[laid.pair] + MS_PER_WAY * 1e-3
    widest = [0.0] * count
    for a, b, _, rate in found.edges:
        for end in (a, b):
            widest[end] = max(widest[end], rate if rate is not None else assumed.bandwidth or 0.0)
    bandwidth = [[widest[a] if a == b else 0.0 for b in range(count)] for a in range(count)]
    latency = [[MS_PER_WAY * 1e-3] * count for _ in range(count)]
    for i, (a, b) in enumerate(pairs):
        bandwidth[a][b], latency[a][b] = float(narrow[i]), round(float(late[i]), 7)
    told = [
        f"Silos of {path.name}. A pair has to itself the narrowest edge on the way of least kilometres; its latency "
        f"is {MS_PER_KM:g} ms a km of that way and {MS_PER_WAY:g} ms, taken as one way. Within a silo stand its widest "
        f"edge and {MS_PER_WAY:g} ms."
    ]
    if missing := sum(rate is None for *_, rate in found.edges):
        told.append(
            f"{missing} of {len(found.edges)} edges had no capacity; {assumed.bandwidth:g} bytes/s were assumed."
        )
    taken = ["16 GB"] * (assumed.memory is None) + ["20 Gflop/s in training"] * (assumed.flops is None)
    if taken:
        told.append(f"Of the machines it says nothing; assumed: {' and '.join(taken)}.")
    machine = {"memory": assumed.memory or MEMORY, "flops": assumed.flops or FLOPS}
    return {
        "version": 1,
        "name": path.stem,
        "about": " ".join(told),
        "machines": [{"name": name, **machine} for name in found.silos],
        "between": {"places": found.silos, "bandwidth": bandwidth, "latency": latency},
    }


def _islands(found: Backbone) -> str:
    import networkx

    graph = networkx.Graph([(a, b) for a, b, _, _ in found.edges])
    graph.add_nodes_from(range(len(found.silos)))
    parts = [sorted(found.silos[i] for i in part) for part in networkx.connected_components(graph)]
    return f"nothing joins {parts[0][0]} with {parts[1][0]}, in {len(parts)} parts"


def _of_host(path: Path, assumed: Assumed) -> dict[str, Any]:
    if assumed.hosts < 1:
        raise ConfigError(f"clusters: --hosts must be at least 1, got {assumed.hosts}")
    host = host_of(text_of(path), str(path), assumed.nvlink, assumed.nic)
    memory = assumed.memory or host.memory
    flops = assumed.flops or host.flops
    if memory is None or flops is None:
        wanted = "--memory, such as 80GB" if memory is None else "--flops, such as 125tflops"
        raise ConfigError(f"{path}: it does not say which GPUs it has ({host.model or 'no device'}); say {wanted}")
    several = assumed.hosts > 1
    if several and host.out is None:
        raise ConfigError(f"{path}: it has no NIC to join {assumed.hosts} hosts by; say its rate with --nic 100gbit")
    count = len(host.bandwidth)
    names = [f"host{h}.gpu{g}" if several else f"gpu{g}" for h in range(assumed.hosts) for g in range(count)]
    out = host.out or [0.0] * count

    def table(within: Sequence[Sequence[float]], between: Any) -> list[list[float]]:
        return [
            [
                within[a % count][b % count] if a // count == b // count else between(a % count, b % count)
                for b in places
            ]
            for a in places
        ]

    places = range(len(names))
    own = [dict.fromkeys(("up", "down"), max(*row, out[i])) for i, row in enumerate(host.bandwidth)]
    told = [f"GPUs of {path.name}: {host.told}", *host.notes]
    if several:
        told.append(
            "Between hosts each pair of GPUs has a GPU's share of the nearest NIC, and 10 us; that one GPU's messages "
            "to several others share it is not said."
        )
    if assumed.flops is None:
        told.append("In training 40 % of the GPU's 16-bit peak is assumed.")
    return {
        "version": 1,
        "name": path.stem,
        "about": " ".join(told),
        "machines": [
            {"name": name, "memory": memory, "flops": flops, "group": f"host{i // count}", **own[i % count]}
            for i, name in enumerate(names)
        ],
        "between": {
            "places": names,
            "bandwidth": table(host.bandwidth, lambda a, b: min(out[a], out[b])),
            "latency": table(host.latency, lambda a, b: 10e-6),
        },
    }


def text_of(path: Path) -> str:
    """A file's text.

    Raises: ConfigError if it cannot be read, is no text, or is larger than such files are.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ConfigError(f"{path}: over {LARGEST >> 20} MiB, which no topology needs")
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: no text") from None


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 <= value <= 1e300:
        raise ConfigError(f"{what} must be a number, got {value!r}")
    return float(value)
