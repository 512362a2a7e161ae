"""``laconic clusters``: lists cluster files, shows one, and makes one of a topology from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.plan.cluster import Cluster

WIDEST = 12  # machines whose matrix is printed
FOR = {".gml": ("bandwidth", "memory", "flops"), ".xml": ("memory", "flops", "hosts", "nic", "nvlink")}


def clusters(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE", help="a shipped one, a .toml, or a .gml or .xml to convert")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="write it as a cluster file")] = None,
    bandwidth: Annotated[str | None, typer.Option("--bandwidth", help="of a .gml's edges without one: 1gbit")] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="of a machine that is converted: 80GB")] = None,
    flops: Annotated[str | None, typer.Option("--flops", help="which it reaches in training: 125tflops")] = None,
    hosts: Annotated[int, typer.Option("--hosts", help="how many of an .xml's host")] = 1,
    nic: Annotated[str | None, typer.Option("--nic", help="the rate of each of its NICs: 100gbit")] = None,
    nvlink: Annotated[str | None, typer.Option("--nvlink", help="of a GPU's NVLinks, which an .xml leaves out")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """List the clusters that ship with laconic, show one, or convert a topology into a cluster file.

    A .gml is a network of silos (distance in km, capacity in bits a second), an .xml a GPU host as NCCL describes it.

    \b
      laconic clusters
      laconic clusters aws10
      laconic clusters geant.gml --bandwidth 1gbit --out geant.toml
      laconic clusters p4d-24xl-topo.xml --hosts 2 --nic 100gbit --nvlink 1920gbit --out p4d.toml
    """
    from laconic.cli.plan import parse_size
    from laconic.links.network import parse_rate
    from laconic.plan.cluster import parse_flops, read_cluster, shipped
    from laconic.plan.importing import Assumed, imported
    from laconic.plan.writing import write_cluster

    if out is not None and out.suffix != ".toml":
        raise ConfigError(f"clusters: --out {out}: a cluster file's name ends in .toml, as --cluster wants it")
    stated = {"bandwidth": bandwidth, "memory": memory, "flops": flops, "nic": nic, "nvlink": nvlink}
    given = {key: text for key, text in stated.items() if text is not None} | ({"hosts": hosts} if hosts != 1 else {})
    if name is None or not name.endswith((".gml", ".xml")):
        if given:
            raise ConfigError(f"clusters: --{next(iter(given))} is for a .gml or an .xml that is converted; name one")
        if name is None:
            if out is not None:
                raise ConfigError("clusters: --out writes one cluster; name it")
            found = [_told(read_cluster(each), each) for each in shipped()]
            typer.echo(json.dumps(found, indent=1) if as_json else _listing(found))
            return
        cluster = read_cluster(name)
        if out is not None:
            _copy(name, out)
    else:
        if foreign := sorted(given.keys() - FOR[name[-4:]]):
            raise ConfigError(
                f"clusters: --{foreign[0]} is not for {name}; for a {name[-4:]} there are "
                f"{', '.join(f'--{key}' for key in FOR[name[-4:]])}"
            )
        rates = {key: parse_rate(text) for key in ("bandwidth", "nic", "nvlink") if (text := stated[key]) is not None}
        assumed = Assumed(
            memory=None if memory is None else parse_size(memory),
            flops=None if flops is None else parse_flops(flops),
            hosts=hosts,
            bandwidth=rates.get("bandwidth"),
            nic=rates.get("nic"),
            nvlink=rates.get("nvlink"),
        )
        raw = imported(Path(name), assumed)
        cluster = _checked(raw) if out is None else write_cluster(out, raw)
    told = _told(cluster, name)
    typer.echo(json.dumps(told, indent=1) if as_json else _shown(cluster, told))
    if out is not None and not as_json:
        typer.echo(f"cluster file: {out}")


def _checked(raw: dict[str, Any]) -> Cluster:
    """What a cluster file of these tables says, without writing one where it would stay."""
    import tempfile

    from laconic.plan.writing import write_cluster

    with tempfile.TemporaryDirectory() as folder:
        return write_cluster(Path(folder) / f"{raw['name']}.toml", raw)


def _copy(name: str, out: Path) -> None:
    import tomllib

    from laconic.plan.cluster import SHIPPED
    from laconic.plan.writing import write_cluster

    path = Path(name) if name.endswith(".toml") or "/" in name else SHIPPED / f"{name}.toml"
    write_cluster(out, tomllib.loads(path.read_text()))


def _told(cluster: Cluster, name: str) -> dict[str, Any]:
    """What is to be said of a cluster: bytes, seconds, operations a second."""
    links = [
        (cluster.line(a, b), a.name, b.name)
        for a in cluster.machines
        for b in cluster.machines
        if a is not b and _joined(cluster, a.name, b.name)
    ]
    by_rate = sorted(links, key=lambda link: link[0].bandwidth)
    by_way = sorted(links, key=lambda link: link[0].latency)

    def ends(link: Any) -> dict[str, Any]:
        line, a, b = link
        return {"from": a, "to": b, "bandwidth": line.bandwidth, "latency": line.latency}

    memory, flops = ([getattr(m, key) for m in cluster.machines] for key in ("memory", "flops"))
    return {
        "name": Path(name).stem,
        "machines": len(cluster.machines),
        "memory": [min(memory), max(memory)],
        "flops": [min(flops), max(flops)],
        "slowest": ends(by_rate[0]) if links else None,
        "fastest": ends(by_rate[-1]) if links else None,
        "nearest": ends(by_way[0]) if links else None,
        "farthest": ends(by_way[-1]) if links else None,
        "about": cluster.about,
        "source": cluster.source,
        "licence": cluster.licence,
    }


def _joined(cluster: Cluster, a: str, b: str) -> bool:
    by_name = {machine.name: machine for machine in cluster.machines}
    try:
        cluster.line(by_name[a], by_name[b])
    except ConfigError:  # a machine on which no worker is placed may have none
        return False
    return True


def _listing(found: list[dict[str, Any]]) -> str:
    from laconic.bench import units

    lines = []
    for each in found:
        slow, fast = each["slowest"]["bandwidth"], each["fastest"]["bandwidth"]
        near, far = each["nearest"]["latency"], each["farthest"]["latency"]
        source = each["source"].split(";")[0]
        lines.append(
            f"{each['name']:<8} {each['machines']:>3} machines   {units.bandwidth(slow):>12} to "
            f"{units.bandwidth(fast):<12}  {units.duration(near):>8} to {units.duration(far):<8}  {source}"
        )
    return "\n".join([*lines, "", "laconic clusters NAME shows one in full."])


def _shown(cluster: Cluster, told: dict[str, Any]) -> str:
    from laconic.bench import units

    lines = [f"{told['name']}: {told['machines']} machines", ""]
    if cluster.about:
        lines += [cluster.about, ""]
    groups = sorted({m.group for m in cluster.machines if m.group})
    memory = " to ".join(units.size(x) for x in sorted(set(told["memory"])))
    flops = " to ".join(f"{units.rate(x)[:-2]}flop/s" for x in sorted(set(told["flops"])))
    lines.append(
        f"machines  {memory} of memory, {flops} in training" + (f"; groups {', '.join(groups)}" if groups else "")
    )
    for key in ("slowest", "fastest", "nearest", "farthest"):
        if link := told[key]:
            lines.append(
                f"{key:<9} {link['from']} to {link['to']}: {units.bandwidth(link['bandwidth'])}, "
                f"{units.duration(link['latency'])}"
            )
    for key in ("source", "licence"):
        if told[key]:
            lines.append(f"{key:<9} {told[key]}")
    if len(cluster.machines) <= WIDEST:
        lines += ["", *_matrix(cluster)]
    else:
        lines += ["", f"The matrix of {len(cluster.machines)} machines stands in the file (--out FILE)."]
    return "\n".join(lines)


def _matrix(cluster: Cluster) -> list[str]:
    """Rates above latencies, from the row's machine to the column's."""
    from laconic.bench import units

    names = [machine.name for machine in cluster.machines]
    cells = {}
    for a in cluster.machines:
        for b in cluster.machines:
            if _joined(cluster, a.name, b.name):
                line = cluster.line(a, b)
                rate = units.bandwidth(line.bandwidth).replace("bit/s", "")
                cells[a.name, b.name] = f"{rate} {units.duration(line.latency)}"
    left = max(len("from, to"), *map(len, names))
    width = max([len(text) for text in cells.values()] + [len(name) for name in names])
    lines = [f"{'from, to':<{left}}  " + "  ".join(f"{name:>{width}}" for name in names)]
    for name in names:
        row = (f"{cells.get((name, other), '–'):>{width}}" for other in names)
        lines.append(f"{name:<{left}}  " + "  ".join(row))
    return [*lines, "", "Bits a second and one-way latency."]
