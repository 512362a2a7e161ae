"""``laconic probe``: measures machines and links into a cluster file."""

from __future__ import annotations

import math
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.links.network import Network
    from laconic.plan.cluster import Cluster
    from laconic.plan.measured import Measured
    from laconic.plan.probing.schedule import Experiment, Limits

MACHINE_SHARE = 0.3  # of the seconds, at most, for what each machine does by itself
MACHINE_SECONDS = 15.0
MEETING_SECONDS = 60.0  # that workers may take to start and to meet
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def probe(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="HOSTS", help="as ssh takes them; without any, workers on this machine"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-n", help="how many on this machine, without HOSTS", show_default="2")
    ] = None,
    link: Annotated[str, typer.Option("--link", help="what their links are held to: RATE[,LATENCY]")] = "",
    link_of: Annotated[list[str] | None, typer.Option("--link-of", help="one that differs, as train has it")] = None,
    cluster: Annotated[str, typer.Option("--cluster", help="in --link's place: the links of this cluster")] = "",
    on: Annotated[
        str,
        typer.Option(
            "--on", help="what holds them so: paced, testbed (needs root), or group: nothing", show_default="paced"
        ),
    ] = "",
    testbed: Annotated[bool, typer.Option("--testbed", help="the same as --on testbed")] = False,
    workload: Annotated[str, typer.Option("--workload", help="whose training step is timed on each")] = "shakespeare",
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="of the workload: batch_size=32")] = None,
    compressors: Annotated[str, typer.Option("--compressors", help="to time on each, comma-separated")] = "",
    out: Annotated[Path, typer.Option("--out", help="the file; one that is there is refined")] = Path("cluster.toml"),
    seconds: Annotated[float, typer.Option("--seconds", "-S", help="how long it may take, about")] = 60.0,
    nbytes: Annotated[str, typer.Option("--bytes", help="how much it may send over all links: 200MB")] = "1GB",
    again: Annotated[bool, typer.Option("--again", help="measure also what the file knows well")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask before sending")] = False,
    python: Annotated[str, typer.Option("--python", help="which has laconic, on HOSTS", show_default="python3")] = "",
    port: Annotated[
        int | None, typer.Option("--port", help="of the first of HOSTS, where they meet", show_default="29400")
    ] = None,
    commands: Annotated[
        bool, typer.Option("--print", help="only print what to type on each of HOSTS, where there is no ssh")
    ] = False,
) -> None:
    """Measure machines and the links between them, and write a cluster file with what was found and its spread.

    Of each link, both ways: the rate of one flow alone and with all pairs busy, the latency, one to many and many to
    one. Of each machine: a training step, memory, copying, and how fast it compresses. What the file knows well already
    is left out, so a probe can be continued, and machines can be added.

    \b
      laconic probe attic cellar user@10.0.0.7 --out home.toml --bytes 200MB
      laconic probe --workers 3 --link 50mbit,20ms --link-of 2:5mbit --testbed
      laconic probe attic cellar --print                 for hosts without ssh, Slurm, Kubernetes
      laconic train shakespeare --simulate --cluster ./home.toml

    Before anything is sent it says how much it will send at most, and asks, unless everything is on this machine.
    """
    from laconic.plan.measured_tables import read_measured
    from laconic.plan.probing import start

    under = not hosts and all(name in os.environ for name in TORCHRUN)
    limit, looking = _bytes(nbytes), _looking(workload, option, compressors)
    if not 1 <= seconds <= 1e6:
        raise ConfigError(f"probe: --seconds must be from 1 to a million, got {seconds:g}")
    if testbed and on not in ("", "testbed"):
        raise ConfigError(f"probe: --testbed is the same as --on testbed, and --on {on} is given too")
    on = "testbed" if testbed else on
    if (hosts or under) and (link or cluster or link_of or on or workers is not None):
        raise ConfigError(
            "probe: --workers, --link, --link-of, --cluster, --on and --testbed are for workers on this machine; hosts "
            "have their own links, and one worker each"
        )
    if not hosts and (python or port is not None):
        raise ConfigError("probe: --python and --port are for HOSTS, which are started over ssh; name them")
    on, python, port = on or "paced", python or "python3", start.PORT if port is None else port
    workers = 2 if workers is None else workers
    if commands:
        if not hosts:
            raise ConfigError("probe: --print says what to type on HOSTS; name them")
        said = ["--out", str(out), "--seconds", f"{seconds:g}", "--bytes", nbytes, "--workload", workload]
        said += [word for pair in option or [] for word in ("--option", pair)]
        said += ["--compressors", compressors] if compressors else []
        typer.echo(start.by_hand(hosts, port, [*said, *(["--again"] if again else []), "--yes"]))
        return
    if under and os.environ["RANK"] != "0":
        _serve(looking)
        return
    plan = Plan(out, seconds, limit, again, looking)
    if under:
        _lead(plan, yes)
        return
    if hosts:
        names = [start.plain(host) for host in hosts]
        work = plan.work(names, "network")
        _agree(plan, work, yes or not sys.stdin.isatty())
        found = start.over_ssh(hosts, python, port, work, typer.echo)
    else:
        names, network = _here(workers, link, link_of or [], cluster, on)
        work = plan.work(names, on) | {"network": asdict(network) if on == "paced" else None}
        _agree(plan, work, yes=True)
        found = start.in_testbed(network, work, typer.echo) if on == "testbed" else start.here(work, typer.echo)
    plan.finish(
        names, read_measured(found, names), f"over {' '.join(filter(None, [on, link or cluster]))}" if not hosts else ""
    )


class Plan:
    """One probe's limits and its file, before and after."""

    def __init__(self, out: Path, seconds: float, nbytes: float, again: bool, looking: dict[str, Any]) -> None:
        from laconic.plan.cluster import read_cluster

        self.out, self.seconds, self.nbytes, self.again, self.looking = out, seconds, nbytes, again, looking
        self.cluster: Cluster | None = read_cluster(str(out.absolute())) if out.exists() else None
        self.old: dict[str, Any] | None = tomllib.loads(out.read_text()) if out.exists() else None
        if not out.parent.is_dir():
            raise ConfigError(f"{out}: there is no folder {out.parent}")

    def work(self, names: Sequence[str], on: str) -> dict[str, Any]:
        """What the workers are to do, as JSON."""
        from laconic.plan.probing.refine import check_joined, fanned, settled
        from laconic.plan.probing.schedule import experiments, limits
        from laconic.plan.probing.talk import GRACE, SILENCE

        if len(names) < 2:
            raise ConfigError(f"probe: a link has two ends, and there is {len(names)} machine; name at least two")
        check_joined(self.cluster, names, str(self.out))
        known = set() if self.again else settled(self.cluster, names)
        done = set() if self.again else fanned(self.cluster, names, len(names) - 1)
        planned = experiments(len(names), known, fanned=done)
        looked = not self.again and self._looked(names)
        looking = {**self.looking, "seconds": min(MACHINE_SECONDS, MACHINE_SHARE * self.seconds)}
        left = self.seconds - (0 if looked else looking["seconds"])
        return {
            "names": list(names),
            "on": on,
            "network": None,
            "planned": planned,
            "limits": limits(planned, left, self.nbytes),
            "looking": looking | ({"workload": ""} if looked else {}),
            "timeout": MEETING_SECONDS,
            "patience": MEETING_SECONDS + GRACE + (0.0 if looked else SILENCE) + 2 * self.seconds,
        }

    def _looked(self, names: Sequence[str]) -> bool:
        """Whether the file knows each machine's step of this workload, of this very size, well."""
        from laconic.plan.probing.machine import counted
        from laconic.plan.probing.refine import ENOUGH
        from laconic.plan.site import DIGITS
        from laconic.workloads import load

        known = {} if self.cluster is None or self.cluster.measured is None else self.cluster.measured.machines
        if not self.looking["workload"] or not set(names) <= known.keys():
            return False
        workload, wanted = load(self.looking["workload"], self.looking["options"]), set(self.looking["compressors"])
        work = counted(workload)
        return all(
            known[name].workload == workload.name
            and math.isclose(known[name].operations, work, rel_tol=DIGITS)
            and (step := known[name].step) is not None
            and step.samples >= ENOUGH
            and wanted <= set(known[name].compressors)
            for name in names
        )

    def finish(self, names: Sequence[str], found: Measured, how: str) -> None:
        """Write the file, and say what was found."""
        from laconic.plan.probing.refine import refined
        from laconic.plan.probing.summary import summary
        from laconic.plan.writing import write_cluster

        about = f"measured by laconic probe {found.when}{how and ', '}{how}"
        tables = refined(self.old, self.cluster, found, self.out.stem, about)
        cluster = write_cluster(self.out, tables)
        typer.echo(summary(cluster, found))
        typer.echo(f"cluster file: {self.out}")


def _serve(looking: dict[str, Any]) -> None:
    """This worker's part, where torchrun (Slurm, Kubernetes) started one on each machine."""
    from laconic.plan.probing import talk
    from laconic.plan.probing.worker import greet, joined, look

    with joined(None, MEETING_SECONDS) as link:
        greet(link)
        talk.serve(link, partial(look, looking))


def _lead(plan: Plan, yes: bool) -> None:
    """Worker 0's part there: it writes the file."""
    from laconic.plan.probing.conduct import conduct
    from laconic.plan.probing.worker import joined, look, meet

    with joined(None, MEETING_SECONDS) as link:
        met = meet(link)
        names = [hello["name"] for hello in met]
        work = plan.work(names, "network")
        if not _idle(work):
            _agree(plan, work, yes or not sys.stdin.isatty())
        looking = {**work["looking"], "clocks": [hello["clock"] for hello in met]}
        mine = partial(look, plan.looking)
        found = conduct(link, names, work["planned"], work["limits"], mine, looking, work["on"], typer.echo)
    plan.finish(names, found, "")


def _here(workers: int, link: str, link_of: Sequence[str], cluster: str, on: str) -> tuple[list[str], Network]:
    """Names of workers on this machine, and the network that they are held to."""
    from laconic.launch import PER_CORE
    from laconic.recipe import Recipe

    if on not in ("paced", "testbed", "group"):
        raise ConfigError(f"probe: --on is paced, testbed or group, got {on!r}; a simulated link needs no measuring")
    if on == "group" and (link or cluster or link_of):
        raise ConfigError("probe: --on group measures this machine's loopback as it is; leave the links out")
    cores = os.cpu_count() or 1
    if workers > PER_CORE * cores:
        raise ConfigError(
            f"probe: {workers} workers are too many for this machine's {cores} cores; use at most {PER_CORE * cores}"
        )
    plan = Recipe(
        "shakespeare", workers=workers, link=link, links=tuple(link_of), on=on, cluster=cluster, steps=1
    ).checked()
    return [f"worker{rank}" for rank in range(workers)], plan.network()


def _looking(workload: str, option: list[str] | None, compressors: str) -> dict[str, Any]:
    """What is measured on each machine; refused here if there is no such workload or compressor."""
    from laconic.plan.probing.machine import COMPRESSORS, compressor
    from laconic.recipe import read_settings
    from laconic.workloads import load

    options = read_settings(option or [], "--option")
    load(workload, options)
    chosen = [name.strip() for name in compressors.split(",") if name.strip()] or list(COMPRESSORS)
    for name in chosen:
        compressor(name)
    path = str(Path(workload).absolute()) if workload.endswith(".py") else workload
    return {"workload": path, "options": options, "compressors": chosen}


def _agree(plan: Plan, work: Mapping[str, Any], yes: bool) -> None:
    """Say what will be sent, and ask whether it may be."""
    from laconic.bench import units
    from laconic.plan.probing.schedule import ALONE, TOGETHER, most

    planned: Sequence[Experiment] = work["planned"]
    limits: Limits = work["limits"]
    count = len(work["names"])
    flows = {flow for experiment in planned if experiment.kind in (ALONE, TOGETHER) for flow in experiment.flows}
    if _idle(work):
        typer.echo(f"{plan.out} knows these {count} machines well; --again measures them all the same")
        raise typer.Exit
    known = count * (count - 1) - len(flows)
    typer.echo(
        f"{count} machines, {len(flows)} links to measure{f', {known} known well' if known else ''}: "
        f"sends at most {units.size(most(planned, limits))}, takes about {units.duration(plan.seconds)}"
    )
    if not yes and not typer.confirm("Send that much?"):
        raise typer.Exit(1)


def _idle(work: Mapping[str, Any]) -> bool:
    """Whether there is nothing left to measure."""
    return not work["planned"] and not work["looking"]["workload"]


def _bytes(text: str) -> float:
    """Bytes from text such as ``200MB`` or ``1.5GB``."""
    from laconic.cli.plan import parse_size

    try:
        return parse_size(text)
    except ConfigError:
        raise ConfigError(
            f"probe: --bytes {text!r} is no size; write it with its unit, such as 200MB or 1.5GB"
        ) from None
