"""The command that answers before a run: which way to train here, why, and what would help."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.plan.carbon import Intensity
    from laconic.plan.job import Job
    from laconic.plan.ranking import Ranking, Way
    from laconic.plan.site import Site
    from laconic.recipe import Recipe

STEPS = 1000  # of ddp, whose progress is planned for where no --tokens are given, and
PER_PARAMETER = 20  # tokens a parameter, where a number of parameters is (Hoffmann et al. 2022, arXiv:2203.15556)
SIZES = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0}


def plan(
    workload: Annotated[
        str | None, typer.Argument(metavar="WORKLOAD", help="shakespeare, fashion, adult, or a file of yours")
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", help="in its place: a transformer of so many parameters, such as 7e9")
    ] = None,
    cluster: Annotated[
        str, typer.Option("--cluster", help="machines and links: a shipped name (aws10) or a TOML file")
    ] = "",
    workers: Annotated[
        int | None, typer.Option("--workers", "-n", help="how many (default: 2, or the cluster's)", show_default=False)
    ] = None,
    link: Annotated[
        str, typer.Option("--link", help="each worker's connection: 20mbit,30ms; or DOWN/UP: 50mbit/5mbit")
    ] = "",
    link_of: Annotated[
        list[str] | None, typer.Option("--link-of", help="one that differs: 1:5mbit or 0-1:5mbit")
    ] = None,
    slow: Annotated[list[str] | None, typer.Option("--slow", help="a worker so many times slower: 1:4")] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="what to spend least of: time, bytes, cost or carbon")
    ] = ("time"),
    memory: Annotated[str | None, typer.Option("--memory", help="of each machine, such as 24GB")] = None,
    tokens: Annotated[
        float | None, typer.Option("--tokens", "-T", help="plan for the progress that ddp makes with so many")
    ] = None,
    flops: Annotated[str | None, typer.Option("--flops", help="what a machine reaches in training: 20gflops")] = None,
    step_seconds: Annotated[float | None, typer.Option("--step-seconds", help="or how long a step computes")] = None,
    batch: Annotated[float | None, typer.Option("--batch", help="with --params: tokens of a worker's batch")] = None,
    background: Annotated[
        float, typer.Option("--background", help="share of the links that other traffic takes, such as 0.3")
    ] = 0.0,
    methods: Annotated[str, typer.Option("--methods", "-m", help="only these ways' methods, comma-separated")] = "",
    slack: Annotated[
        float,
        typer.Option(
            "--slack", help="how much longer than the quickest way one of less bytes, cost or carbon may take"
        ),
    ] = 0.1,
    option: Annotated[list[str] | None, typer.Option("--option", "-o", help="an option of the workload")] = None,
    size: Annotated[str | None, typer.Option("--size", help="the same as --option size=…")] = None,
    seed: Annotated[int, typer.Option("--seed", help="of the weights and the order of the data")] = 0,
    hour: Annotated[float, typer.Option("--hour", help="price of a machine's hour, for --objective cost")] = 1.0,
    gigabyte: Annotated[float, typer.Option("--gigabyte", help="price of a gigabyte that leaves a machine")] = 0.09,
    watts: Annotated[float, typer.Option("--watts", help="of a machine that computes, for --objective carbon")] = 300.0,
    intensity: Annotated[
        str,
        typer.Option("--intensity", help="grams of CO2 of a kilowatt hour; or a table by site and hour (.csv, .toml)"),
    ] = "400",
    learn: Annotated[
        list[Path] | None, typer.Option("--learn", help="a run's folder, or a file, whose [[errors]] correct this plan")
    ] = None,
    pilot: Annotated[
        str | None, typer.Option("--pilot", help="measure in short real runs, of so long in all, what ways need: 60s")
    ] = None,
    emit: Annotated[
        Path | None, typer.Option("--emit", help="write the first way as a recipe for laconic train")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """Say which way of training pays on these links, before a run, with the reasons.

    Each way is priced by running it: on tensors without data, over a simulated network, with this machine's own seconds
    (a few seconds of training measure them, unless --flops, --step-seconds or a cluster says them).

    \b
      laconic plan shakespeare --workers 2 --link 20mbit,30ms
      laconic plan mine.py --cluster cluster.toml --memory 24GB --emit recipe.toml
      laconic plan --params 7e9 --cluster aws10 --flops 100tflops --objective cost
      laconic plan shakespeare --link 20mbit --pilot 60s
    """
    from laconic.cli.plan_page import show
    from laconic.plan import ledger, reasons
    from laconic.plan.ranking import Goal, rank, ways_for

    if (workload is None) == (params is None):
        raise ConfigError(
            "plan: name a workload (shakespeare, fashion, adult, or a file), or --params 7e9, and not both"
        )
    if workload is None and (pilot or emit):
        raise ConfigError(f"plan: {'--pilot' if pilot else '--emit'} trains a workload, and --params names none")
    if workload is None and (option or size):
        raise ConfigError(f"plan: {'--option' if option else '--size'} is of a workload, and --params names none")
    seconds = None if pilot is None else parse_seconds(pilot)
    say: Callable[[str], None] = (lambda sentence: None) if as_json else typer.echo
    recipe = _recipe(workload, cluster, workers, link, link_of, slow, option, size, seed)
    job = _job(recipe, params, batch)
    grid = _grid(intensity, recipe)
    goal = Goal(1.0 if tokens is None else float(tokens), objective, hour, gigabyte, watts, grid.mean, slack).checked()
    site = _site(recipe, job, flops, step_seconds, None if memory is None else parse_size(memory), say)
    site = site.shared(background)
    usual = STEPS * job.tokens * site.workers if params is None else PER_PARAMETER * job.parameters
    goal = goal if tokens is not None else replace(goal, tokens=float(usual))
    ways = _only(ways_for(job, site, goal.tokens / (job.tokens * site.workers)), methods)
    sources = [*(learn or []), *([Path(recipe.cluster)] if recipe.cluster.endswith(".toml") else [])]
    known = ledger.read(sources)
    priors = None
    with _telling() as tell:
        ranking = rank(job, site, goal, ways, learnt=known, tell=tell)
    if seconds is not None:
        from laconic.plan import pilot as short_runs

        order = [one.way for one in ranking.ranked if one.way.method != "alone"]
        priors = short_runs.run(recipe, order, seconds, say)
        ranking = rank(job, site, goal, ways, learnt=known, priors=priors, paces=ranking.paces)
    with _telling() as tell:
        found = reasons.changes(ranking, known, priors, tell) if ranking.ranked else []
    green = _green(grid, ranking)
    if as_json:
        typer.echo(json.dumps(reasons.as_json(ranking, found) | green, indent=1))
    else:
        show(ranking, found, say)
    for sentence in _green_told(green, intensity):
        say(sentence)
    if emit is not None:
        _emit(emit, recipe, ranking, flops, step_seconds)
        say(f"recipe: {emit}; run it by: laconic train --recipe {emit}")
        for left in _left_out(recipe, ranking, flops, step_seconds, background):
            say(f"Not in the recipe: {left}.")


def parse_size(text: str) -> float:
    """Bytes from text such as ``24GB`` or ``512MiB``.

    Raises: ConfigError with what would be right.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"memory {text!r} is no size; write it with its unit, such as 24GB or 512MiB")
    return float(match[1]) * SIZES[match[2]]


def parse_seconds(text: str) -> float:
    """Seconds from text such as ``60s``, ``5min`` or ``1h``.

    Raises: ConfigError with what would be right.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h)", text.strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"time {text!r} is none; write it with its unit, such as 60s or 5min")
    return float(match[1]) * TIMES[match[2]]


def _recipe(
    workload: str | None,
    cluster: str,
    workers: int | None,
    link: str,
    link_of: list[str] | None,
    slow: list[str] | None,
    option: list[str] | None,
    size: str | None,
    seed: int,
) -> Recipe:
    from laconic.plan.cluster import read_cluster
    from laconic.recipe import Recipe, read_settings

    if workers is not None and workers < 1:
        raise ConfigError(f"plan: --workers must be at least 1, got {workers}")
    if not cluster and not link:
        raise ConfigError("plan: say what the links are: --link 20mbit,30ms, or --cluster cluster.toml")
    if cluster:
        place = read_cluster(cluster)
        workers = workers or len(place.workers) or len(place.machines)
        cluster = str(Path(cluster).absolute()) if cluster.endswith(".toml") or "/" in cluster else cluster
    options = read_settings(option or [], "--option") | ({"size": size} if size else {})
    made = Recipe(
        workload or "shakespeare",
        options=options,
        workers=2 if workers is None else workers,
        link=link,
        links=tuple(link_of or ()),
        slow=tuple(slow or ()),
        cluster=cluster,
        seed=seed,
        steps=1,
    )
    return made.checked()


def _job(recipe: Recipe, params: float | None, batch: float | None) -> Job:
    from laconic.plan.job import BATCH_TOKENS, of_parameters, of_workload
    from laconic.workloads import load

    if params is not None:
        if batch is not None and not 1 <= batch <= 1e9:
            raise ConfigError(f"plan: --batch is tokens of a worker's batch, from 1 to 1e9, got {batch:g}")
        return of_parameters(params, int(batch or BATCH_TOKENS))
    if batch is not None:
        raise ConfigError("plan: --batch is for --params; a workload has its own: --option batch_size=32")
    loaded = load(recipe.workload, recipe.options)
    loaded.check(0, recipe.workers, recipe.seed)
    return of_workload(loaded, recipe.seed)


def _site(
    recipe: Recipe,
    job: Job,
    flops: str | None,
    step_seconds: float | None,
    memory: float | None,
    say: Callable[[str], None],
) -> Site:
    from laconic.drag import factors
    from laconic.plan import site as sites
    from laconic.plan.cluster import parse_flops, read_cluster

    if flops is not None and step_seconds is not None:
        raise ConfigError("plan: --flops and --step-seconds both say what computing takes; give one of them")
    slow = factors(recipe.slow, recipe.workers)
    where = recipe.link or recipe.cluster
    if recipe.cluster and flops is None and step_seconds is None:
        if not job.forward:
            raise ConfigError(f"plan: no operations are counted in a step of {job.name}; say --step-seconds 0.1")
        made = sites.of_cluster_file(read_cluster(recipe.cluster), recipe.workers, job, memory, where)
        return replace(made, steps=tuple(s.times(f) for s, f in zip(made.steps, slow, strict=True)))
    if step_seconds is not None:
        step, told = job.split(step_seconds), "as --step-seconds says"
    elif flops is not None:
        step, told = job.at(parse_flops(flops)), f"at {flops}"
    elif job.name != Path(recipe.workload).stem:
        raise ConfigError("plan: say what a machine reaches: --flops 100tflops, or --step-seconds 2, or a --cluster")
    else:
        step, told = _measured(recipe, job, say)
    limits = None if memory is not None or not recipe.cluster else recipe.cluster
    made = sites.of(recipe.network(), [step.times(f) for f in slow], memory, where, told)
    if limits is not None:
        placed = read_cluster(limits).shares(recipe.workers)
        made = replace(made, memory=tuple(machine.memory for machine in placed))
    return made


def _measured(recipe: Recipe, job: Job, say: Callable[[str], None]) -> tuple[Any, str]:
    from laconic.plan.here import step_here
    from laconic.plan.job import threads_of, timed
    from laconic.workloads import load

    say(f"measuring a step of {recipe.workload} with {recipe.workers} workers here …")
    parts = timed(load(recipe.workload, recipe.options), threads_of(recipe.workers), recipe.seed)
    return job.split(step_here(recipe.replace(slow=())), parts), "measured here"


class _Grid(NamedTuple):
    """What electricity emits: on average of all workers and hours, and by site and hour if there is a table."""

    mean: float
    table: Intensity | None = None
    places: tuple[str, ...] = ()


def _grid(text: str, recipe: Recipe) -> _Grid:
    """Of a number, or of a table: each worker's machine by its name or its group's, all by the table's only site."""
    from laconic.errors import unknown
    from laconic.plan.carbon import read_intensity
    from laconic.plan.cluster import read_cluster

    if not text.endswith((".csv", ".toml")):
        try:
            return _Grid(float(text))
        except ValueError:
            raise ConfigError(f"plan: --intensity is grams, or a table's file (.csv, .toml), got {text!r}") from None
    table = read_intensity(text)
    if len(table.sites) == 1:
        places = tuple(table.sites) * recipe.workers
    elif not recipe.cluster:
        raise ConfigError(f"plan: {text} has several sites, and only a --cluster says which machine is at which")
    else:
        machines = read_cluster(recipe.cluster).placed(recipe.workers)
        places = tuple(machine.name if machine.name in table.sites else machine.group for machine in machines)
    for place in places:
        if place not in table.sites:
            raise unknown(f"site in {text}:", place, table.sites)
    means = [sum(table.sites[place]) / len(table.sites[place]) for place in places]
    return _Grid(sum(means) / len(means), table, places)


def _green(grid: _Grid, ranking: Ranking) -> dict[str, Any]:
    """When the first way had best begin, and at which site alone; nothing without a table."""
    from laconic.plan.carbon_place import greenest_site

    if grid.table is None or not ranking.ranked:
        return {}
    place = greenest_site(ranking, grid.table, grid.places)
    return {"begin": _begin(grid, ranking), "place": None if place is None else place._asdict()}


def _green_told(green: dict[str, Any], table: str) -> Iterator[str]:
    from laconic.bench import units

    if begin := green.get("begin"):
        yield f"Begun at hour {begin['hour']:.3g} of {table} it emits {begin['saved']:.1%} less than at hour 0."
    if place := green.get("place"):
        yield (
            f"At {place['site']} alone ({place['workers']} worker{'s' * (place['workers'] > 1)}) it takes "
            f"{units.duration(place['seconds'])} and emits {place['saved']:.1%} less than at all sites."
        )


def _begin(grid: _Grid, ranking: Ranking) -> dict[str, float] | None:
    """The hour at which the first way had best begin, and the share of carbon it saves; None beyond the table."""
    from laconic.plan.carbon import DAY, HOUR, Offer, best_start

    assert grid.table is not None, "a table"
    first, hours = ranking.first, len(next(iter(grid.table.sites.values())))
    places = grid.places[:1] if first.way.method == "alone" else grid.places
    offer = Offer(first.way.name, first.seconds, {place: float(places.count(place)) for place in places})
    deadline = first.seconds + DAY * HOUR if hours == DAY else hours * HOUR
    if deadline < first.seconds:
        return None
    start, now = best_start(offer, grid.table, 0.0, deadline), offer.grams(grid.table)
    return {"hour": start / HOUR, "saved": 1 - offer.grams(grid.table, start) / now if now else 0.0}


def _only(ways: list[Way], methods: str) -> list[Way]:
    from laconic.methods import get
    from laconic.plan.prior import UNRANKED

    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        get(name)
        if name in UNRANKED:
            raise ConfigError(
                f"plan: {name} is not ranked, since nothing says how many tokens it needs: {UNRANKED[name]}; "
                "laconic compare trains it"
            )
    chosen = [way for way in ways if not names or way.method in names]
    if not chosen:
        raise ConfigError(f"plan: no way of {methods} makes sense for a run this short on these workers")
    return chosen


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """What is being priced, in a line of a terminal that is gone when all is."""
    from rich.console import Console

    with Console(stderr=True).status("pricing") as line:
        yield lambda name: line.update(f"pricing {name} …")


def _emit(path: Path, recipe: Recipe, ranking: Ranking, flops: str | None, step_seconds: float | None) -> None:
    from laconic.plan.cluster import parse_flops

    if not ranking.ranked:
        raise ConfigError("plan: no way fits, so there is no recipe to write; the table says what would fit")
    first = ranking.first
    alone = first.way.method == "alone"
    changes: dict[str, Any] = {"method": first.way.method, "settings": first.way.settings, "steps": None}
    changes["tokens"] = max(1, round(first.tokens))
    if recipe.cluster:
        pace = {"step_seconds": step_seconds} if flops is None else {"flops": parse_flops(flops)}
        changes |= {"on": "simulated"} | pace
    if alone:
        changes |= {"workers": 1, "slow": (), "link": "", "links": (), "cluster": ""}
    if alone and recipe.cluster:  # one of its machines, and not this one
        changes |= {"step_seconds": ranking.site.alone().steps[0].seconds, "flops": None}
    try:
        path.write_text(recipe.replace(**changes).checked().to_toml())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def _left_out(
    recipe: Recipe, ranking: Ranking, flops: str | None, step_seconds: float | None, background: float
) -> list[str]:
    """What a plan was told that a recipe has no word for."""
    left = []
    if background and ranking.first.way.method != "alone":
        left.append(f"--background {background:g}; its links are all its own")
    if not recipe.cluster and (flops is not None or step_seconds is not None):
        given = f"--flops {flops}" if flops is not None else f"--step-seconds {step_seconds:g}"
        left.append(f"{given}; it computes as fast as this machine does")
    return left
