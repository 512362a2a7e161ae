"""``laconic shapes``: how to cut a large transformer on a cluster."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.plan.activations import Verdict
    from laconic.plan.cluster import Cluster
    from laconic.plan.cutting import Job, Priced
    from laconic.plan.shapes import Ranking

SHOWN = 12  # refused shapes
HEADINGS = {"inside machines": "near", "inside groups": "group", "between groups": "far"}


def shapes(
    layers: Annotated[int, typer.Option("--layers", help="of the transformer")],
    hidden: Annotated[int, typer.Option("--hidden", help="its hidden size")],
    heads: Annotated[int, typer.Option("--heads", help="its attention heads")],
    batch: Annotated[int, typer.Option("--batch", help="sequences of all workers in a step")],
    sequence: Annotated[int, typer.Option("--sequence", help="tokens of a sequence")] = 2048,
    vocabulary: Annotated[int, typer.Option("--vocabulary", help="different tokens")] = 51200,
    feed_forward: Annotated[int, typer.Option("--feed-forward", help="inner width of an MLP (0: 4 hidden)")] = 0,
    untied: Annotated[bool, typer.Option("--untied", help="the head is not the embedding")] = False,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster", help="a shipped name (aws10) or a TOML file; a machine is as many as workers name it"
        ),
    ] = "",
    hosts: Annotated[
        str, typer.Option("--hosts", help="in its place: equal hosts, and accelerators in each: 16x8")
    ] = "",
    flops: Annotated[str, typer.Option("--flops", help="that one reaches, as 20tflops (with --hosts)")] = "",
    memory: Annotated[str, typer.Option("--memory", help="of one, as 80GB (with --hosts)")] = "",
    inside: Annotated[
        str, typer.Option("--inside", help="RATE[,LATENCY] between two of a host, as 2400gbit,5us (with --hosts)")
    ] = "",
    link: Annotated[str, typer.Option("--link", help="RATE[,LATENCY] of one between hosts (with --hosts)")] = "",
    recompute: Annotated[
        str, typer.Option("--recompute", help="which activations are computed again: none, selective, full")
    ] = "selective",
    flash: Annotated[bool, typer.Option("--flash/--no-flash", help="attention that never holds its scores")] = True,
    sequence_parallel: Annotated[
        bool, typer.Option("--sequence-parallel/--no-sequence-parallel", help="cut also what tensor ways leave whole")
    ] = True,
    sharded_optimizer: Annotated[
        bool, typer.Option("--sharded-optimizer/--no-sharded-optimizer", help="cut its state among the copies (ZeRO-1)")
    ] = True,
    single: Annotated[bool, typer.Option("--single", help="32-bit values, not 16")] = False,
    memory_bandwidth: Annotated[
        str,
        typer.Option(
            "--memory-bandwidth", help="of one, a second: 1700GB; then --flops is what matrix products alone reach"
        ),
    ] = "",
    units: Annotated[
        int,
        typer.Option(
            "--units", help="multiprocessors of one, as 108: products take whole rounds of tiles; --flops: large ones'"
        ),
    ] = 0,
    peak: Annotated[
        str, typer.Option("--peak", help="of one, as 312tflops: show the share of it that is reached")
    ] = "",
    code: Annotated[
        float, typer.Option("--code", help="share of the values that a code of tensor messages sends: does it pay?")
    ] = 0.0,
    code_speed: Annotated[
        str, typer.Option("--code-speed", help="bytes a second that are coded and decoded, such as 40GB")
    ] = "",
    keep: Annotated[int, typer.Option("--keep", help="how many to show")] = 10,
    refused: Annotated[bool, typer.Option("--refused", help="show all that do not fit, and why")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """Say into how many stages, tensor ways and copies a transformer is best cut on a cluster, and what a step takes.

    Of all shapes that its workers allow, those that fit the memory are ranked: seconds, memory, bytes over each class
    of link, and why the first is first.

    \b
      laconic shapes --layers 48 --hidden 6144 --heads 48 --batch 512 --cluster mine.toml
      laconic shapes --layers 96 --hidden 12288 --heads 96 --batch 1536 --hosts 16x8 --flops 220tflops --memory 80GB \\
        --inside 2400gbit,5us --link 200gbit,5us --memory-bandwidth 1700GB --units 108 --peak 312tflops
    """
    from laconic.cli.plan import parse_size
    from laconic.plan.cluster import parse_flops, read_cluster
    from laconic.plan.cutting import Job
    from laconic.plan.shapes import rank
    from laconic.plan.transformer import Training, Transformer

    if bool(cluster) == bool(hosts):
        raise ConfigError("shapes: name a --cluster, or equal --hosts such as 16x8, and not both")
    if keep < 1:
        raise ConfigError(f"shapes: --keep must be at least 1, got {keep}")
    if bool(code) != bool(code_speed) or not 0 <= code <= 1:
        raise ConfigError(f"shapes: --code is a share from 0 to 1 and needs --code-speed, such as 40GB; got {code:g}")
    given = {"--flops": flops, "--memory": memory, "--inside": inside, "--link": link}
    if cluster and any(given.values()):
        told = next(name for name, value in given.items() if value)
        raise ConfigError(f"shapes: {told} describes --hosts, and a --cluster says it itself; give one of them")
    place = read_cluster(cluster) if cluster else _hosts(hosts, given)
    model = Transformer(layers, hidden, heads, sequence, vocabulary, feed_forward, not untied)
    training = Training(batch, recompute, flash, sequence_parallel, sharded_optimizer, 4 if single else 2)
    bandwidth = parse_size(memory_bandwidth) if memory_bandwidth else math.inf
    found = rank(Job(model, training, bandwidth, units=units), place, keep)
    most = parse_flops(peak) if peak else None
    verdict = _code(found.best[0], place, Job(model, training), code, parse_size(code_speed)) if code else None
    if as_json:
        page = _json(found, place, most) | ({} if verdict is None else {"code": verdict._asdict()})
        typer.echo(json.dumps(page, indent=1))
        return
    _show(found, most, refused)
    if verdict is not None:
        pays = "pays" if verdict.pays else "does not pay"
        typer.echo(f"\nSending {code:.3g} of the values of its tensor messages {pays}: {verdict.why}.")


def _code(first: Priced, place: Cluster, job: Job, share: float, speed: float) -> Verdict:
    """Whether a code that can be summed on its way pays in the tensor messages of a shape, by MCBench's model."""
    from collections import Counter

    from laconic.plan.activations import Costs, Verdict, worth
    from laconic.plan.layout import Layout, all_reduce_seconds, ranked, ring

    shape, workers = first.shape, ranked(place)
    if shape.tensor == 1:
        return Verdict(False, 0.0, f"{shape} has none")
    each, by_name = Counter(machine.name for machine in workers), {machine.name: machine for machine in workers}
    machines = tuple(by_name[name] for name in first.machines for _ in range(each[name]))
    layout = Layout(place, machines, shape, first.stages_across)
    groups = [(stage, copy) for stage in range(shape.pipeline) for copy in range(shape.data)]
    line = layout.slowest([pair for group in groups for pair in ring(layout.tensor_group(*group))])
    width = job.training.value_bytes
    least = all_reduce_seconds(line, shape.tensor, 0.0)
    value = all_reduce_seconds(line, shape.tensor, width) - least
    costs = Costs(0.0, width / speed, least, least / value if value else math.inf, value)
    model = job.model
    return worth(costs, shape.micro_batch, model.sequence, model.hidden, share * model.hidden)


def _hosts(text: str, given: dict[str, str]) -> Cluster:
    """The cluster of equal hosts that the options describe."""
    from laconic.cli.plan import parse_size
    from laconic.links.network import parse_connection
    from laconic.plan.cluster import Line, parse_flops
    from laconic.plan.layout import hosts

    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if match is None:
        raise ConfigError(f"shapes: --hosts {text!r} is no number of hosts and of accelerators; write it as 16x8")
    number, each = int(match[1]), int(match[2])
    needed = ["--flops", "--memory", *(["--inside"] if each > 1 else []), *(["--link"] if number > 1 else [])]
    for name in needed:
        if not given[name]:
            raise ConfigError(f"shapes: --hosts needs {name} as well")
    ends = [parse_connection(given[name]) if given[name] else None for name in ("--inside", "--link")]
    lines = [Line(end.up, end.latency) if end else Line(math.inf, 0.0) for end in ends]
    return hosts(number, each, parse_flops(given["--flops"]), parse_size(given["--memory"]), lines[0], lines[1], text)


def _show(found: Ranking, peak: float | None, refused: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from laconic.bench import units
    from laconic.plan.layout import CLASSES

    table = Table(box=None, pad_edge=False)
    table.add_column("shape", no_wrap=True)
    used = [kind for kind in CLASSES if any(priced.traffic[kind] for priced in found.best)]
    for heading in (
        "step",
        "tokens/s",
        *(["peak"] if peak else []),
        "memory",
        "work",
        *(HEADINGS[kind] for kind in used),
    ):
        table.add_column(heading, justify="right")
    for priced in found.best:
        cells = [units.duration(priced.seconds), units.count(priced.tokens_per_second)]
        cells += [units.share(priced.share(peak))] if peak else []
        cells += [units.size(priced.room.taken), units.share(priced.terms["computing"] / priced.seconds)]
        table.add_row(str(priced.shape), *cells, *(units.size(priced.traffic[kind]) for kind in used))
    console = Console()
    console.print(table)
    typer.echo(
        "p stages, t tensor ways, d copies, b examples at a time, v pieces a stage. work: the share of the step that\n"
        "the busiest stage computes. near, group, far: bytes inside machines, inside groups, between groups; of all."
    )
    typer.echo(f"\n{found.why()}")
    if found.more:
        typer.echo(f"{found.more} more shapes fit and are slower.")
    if found.refused:
        shown = found.refused if refused else found.nearly()[:SHOWN]
        few = "; those that miss by least (all: --refused)" if shown and not refused else ""
        typer.echo(f"\n{len(found.refused)} shapes will not do{few}")
        for one in shown:
            typer.echo(f"  {one.shape}: {one.why}")


def _json(found: Ranking, place: Cluster, peak: float | None) -> dict[str, Any]:
    return {
        "cluster": place.name,
        "shapes": [_one(priced, peak) for priced in found.best],
        "more": found.more,
        "refused": [{"shape": asdict(one.shape), "why": one.why} for one in found.refused],
        "why": found.why(),
    }


def _one(priced: Priced, peak: float | None) -> dict[str, Any]:
    """One shape as JSON, in SI units."""
    return {
        "shape": asdict(priced.shape),
        "stages_across": priced.stages_across,
        "layers": list(priced.layers),
        "step_seconds": priced.seconds,
        "terms": priced.terms,
        "tokens_per_second": priced.tokens_per_second,
        "share_of_peak": None if peak is None else priced.share(peak),
        "memory": {
            **priced.room.memory._asdict(),
            "stage": priced.room.stage,
            "taken": priced.room.taken,
            "limit": priced.room.limit,
        },
        "bytes": priced.traffic,
        "machines": list(priced.machines),
    }
