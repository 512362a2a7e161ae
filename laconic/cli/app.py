"""The commands, as typer reads them from these functions."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from laconic.cli.bounds import bounds
from laconic.cli.clusters import clusters
from laconic.cli.collectives import collectives
from laconic.cli.laws import laws
from laconic.cli.plan import plan as plan_command
from laconic.cli.probe import probe
from laconic.cli.shapes import shapes
from laconic.errors import ConfigError, RunFailed

if TYPE_CHECKING:
    from laconic.recipe import Recipe

DEFAULT_SECONDS = 30.0
MOST_PRICED = 2048  # workers, each a thread: as many as are simulated
HELP = """Train neural networks over links that are slow, uneven or failing, and see which way of communicating pays.

\b
  laconic compare shakespeare --methods ddp,dgc,streaming-diloco --link 20mbit
  laconic train shakespeare --method streaming-diloco --link 20mbit --seconds 60
  laconic methods streaming-diloco

Each command has more examples: laconic COMMAND --help
"""
app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from laconic import __version__

        print(f"laconic {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say which version this is")
    ] = False,
) -> None:
    pass


Workload = Annotated[
    str, typer.Argument(metavar="WORKLOAD", help="shakespeare, fashion, adult, or a file of yours with three functions")
]
Workers = Annotated[int, typer.Option("--workers", "-n", help="how many worker processes", show_default=True)]
LinkText = Annotated[
    str,
    typer.Option(
        "--link",
        help="each worker's connection: RATE[,LATENCY], such as 20mbit,30ms; or DOWN/UP[,LATENCY]: 50mbit/5mbit",
    ),
]
Links = Annotated[
    list[str] | None,
    typer.Option(
        "--link-of",
        help="one that differs: WORKER:CONNECTION (1:5mbit), or one way of a pair, FROM-TO:CONNECTION (0-1:5mbit)",
    ),
]
Slow = Annotated[
    list[str] | None,
    typer.Option("--slow", help="a worker to hold back, so many times slower: WORKER:FACTOR (1:4)"),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        help="what holds the links to their rates: paced (in user space), testbed (in the kernel; needs root), or "
        "group (torch's process group, on the network as it is); or simulated (as --simulate)",
    ),
]
Simulate = Annotated[
    bool,
    typer.Option(
        "--simulate", help="train all workers in one process under a virtual clock, hundreds of them; as --on simulated"
    ),
]
ClusterName = Annotated[
    str,
    typer.Option(
        "--cluster",
        help="in --link's place: machines and the links between them, a shipped name (aws10) or a TOML file",
    ),
]
Flops = Annotated[
    str | None,
    typer.Option(
        "--flops", help="what a simulated machine reaches in training (default: the cluster file's, else 20gflops)"
    ),
]
StepSeconds = Annotated[
    float | None, typer.Option("--step-seconds", help="or how long a step computes on a simulated machine")
]
Seconds = Annotated[float | None, typer.Option("--seconds", "-S", help="train for so many seconds (default: 30)")]
Tokens = Annotated[int | None, typer.Option("--tokens", "-T", help="or for so many tokens (examples) of all workers")]
Steps = Annotated[int | None, typer.Option("--steps", help="or for so many steps (uneven workers: on average)")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", help="an option of the workload, such as batch_size=32"),
]
Size = Annotated[str | None, typer.Option("--size", help="the same as --option size=…")]
Seed = Annotated[int, typer.Option("--seed", help="of the weights and the order of the data")]
Rate = Annotated[float | None, typer.Option("--lr", help="learning rate (default: the workload's)")]
Schedule = Annotated[
    str, typer.Option("--schedule", help="how the learning rate falls over --steps: constant, linear or cosine")
]
Warmup = Annotated[int, typer.Option("--warmup", help="steps over which the learning rate rises at first")]
Clip = Annotated[float | None, typer.Option("--clip", help="bound on the gradient's norm (default: none)")]
Timeout = Annotated[float, typer.Option("--timeout", help="seconds of silence after which a peer is given up")]
Out = Annotated[Path | None, typer.Option("--out", help="the run folder (default: a new one in runs/)")]


@app.command(short_help="Train a workload one way.")
def train(
    context: typer.Context,
    workload: Annotated[
        str | None,
        typer.Argument(metavar="WORKLOAD", help="shakespeare, fashion, adult, or a file of yours with three functions"),
    ] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="a named method, or a nesting")] = "ddp",
    workers: Workers = 2,
    link: LinkText = "",
    link_of: Links = None,
    slow: Slow = None,
    on: On = "paced",
    simulate: Simulate = False,
    cluster: ClusterName = "",
    flops: Flops = None,
    step_seconds: StepSeconds = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="a setting of the method, such as every=50")] = None,
    seconds: Seconds = None,
    tokens: Tokens = None,
    steps: Steps = None,
    option: Options = None,
    size: Size = None,
    seed: Seed = 0,
    lr: Rate = None,
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    clip: Clip = None,
    timeout: Timeout = 120.0,
    save_every: Annotated[int, typer.Option("--save-every", help="steps between checkpoints")] = 500,
    port: Annotated[int, typer.Option("--port", help="for torchrun's rendezvous (default: a free one)")] = 0,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="read everything from this TOML file first")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="go on with the run in this folder")] = None,
    out: Out = None,
) -> None:
    """Train a workload with several worker processes on this machine, over links held to a rate.

    What is given beside --recipe takes the place of what the file says. With --resume only the end may be another:
    --seconds, --tokens and --steps count from the run's first beginning.

    \b
      laconic train shakespeare --method diloco --workers 2 --link 20mbit,30ms --set every=50
      laconic train mine.py --method "every_step(everyone(error_feedback(topk(0.01))))"
      laconic train --resume runs/shakespeare-diloco-1 --seconds 60
      laconic train shakespeare --method noloco --workers 64 --simulate --cluster aws10

    Ctrl-C ends all workers after the same step (uneven ones: the same round) and keeps a checkpoint; --resume goes on
    from it, bit for bit.
    On a cluster, put laconic.attach into your own script and start that with torchrun, Slurm or Kubernetes.
    """
    from laconic.cli.remarks import interrupted, remarks
    from laconic.launch import check_room, launch, prepare, usable
    from laconic.plan.forecast import after_train
    from laconic.recipe import Recipe, read_recipe, read_settings

    fields: dict[str, Any] = {
        "workload": workload,
        "method": method,
        "workers": workers,
        "link": link,
        "links": tuple(link_of or ()),
        "slow": tuple(slow or ()),
        "on": _place(context, on, simulate),
        "cluster": cluster,
        "flops": _flops(flops),
        "step_seconds": step_seconds,
        "seed": seed,
        "lr": lr,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "timeout": timeout,
        "save_every": save_every,
    }
    given = {name: value for name, value in fields.items() if _is_given(context, name)}
    if simulate:
        given["on"] = fields["on"]
    ends = {"seconds": seconds, "tokens": tokens, "steps": steps}
    settings, options = read_settings(set_ or []), _options(option, size)
    if resume is not None:
        other = [*given, *settings, *options, *(["recipe"] if recipe else []), *(["out"] if out else [])]
        if other:
            raise ConfigError(
                f"--resume goes on with the run as it was, so {other[0]} cannot be given; "
                "only its end may change: --seconds, --tokens or --steps"
            )
        plan, folder = _resumed(resume, ends), resume
    else:
        if recipe is not None:
            plan = read_recipe(recipe).replace(**given)
            if "method" not in given:
                settings = plan.settings | settings
            plan = plan.replace(settings=settings, options=plan.options | options)
        elif workload is None:
            raise ConfigError(
                "train: name a workload (shakespeare, fashion, adult, or a file), a --recipe or a --resume"
            )
        else:
            plan = Recipe(**fields, settings=settings, options=options)
        if any(value is not None for value in ends.values()):
            plan = plan.replace(**ends)
        elif plan.seconds is None and plan.tokens is None and plan.steps is None:
            plan = plan.replace(seconds=DEFAULT_SECONDS)
        folder = out or _new_folder(f"{Path(plan.workload).stem}-{plan.method.split('(')[0]}")
    parameters = prepare(plan, _say)
    port = usable(port)
    _say_pace(plan)
    check_room(folder, plan, parameters, resume=resume is not None)
    from laconic.cli.progress import following

    _say(f"{plan.workload}: {parameters:,} parameters, {plan.workers} workers, {plan.method}, into {folder}")
    try:
        with following(plan) as watch:
            whole = _anywhere(plan)
            launch(whole, folder, watch(plan.method), port=port, command=_command(), resume=resume is not None)
    except KeyboardInterrupt:
        _say(interrupted(folder, plan.workers))
        raise typer.Exit(130) from None
    for sentence in filter(None, [*remarks(folder, plan), after_train(folder, plan)]):
        _say(sentence)
    _finish(folder)


@app.command(short_help="Train it several ways, and say which pays.")
def compare(
    context: typer.Context,
    workload: Annotated[
        str | None,
        typer.Argument(metavar="WORKLOAD", help="shakespeare, fashion, adult, or a file of yours with three functions"),
    ] = None,
    methods: Annotated[str, typer.Option("--methods", "-m", help="comma-separated")] = "ddp,powersgd,streaming-diloco",
    workers: Workers = 2,
    link: LinkText = "20mbit",
    link_of: Links = None,
    slow: Slow = None,
    on: On = "paced",
    simulate: Simulate = False,
    cluster: ClusterName = "",
    flops: Flops = None,
    step_seconds: StepSeconds = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting: every=50 where it exists, diloco.every=50 for one")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help="the same with several values, each a way of its own: every=10,50,250, or inner_lr=0.003,0.006",
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option("--most", help="run only so many of the ways, each chosen by what those before it have shown"),
    ] = None,
    seconds: Seconds = None,
    tokens: Tokens = None,
    steps: Steps = None,
    option: Options = None,
    size: Size = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", help="train each way so many times, from --seed on")] = 1,
    lr: Rate = None,
    schedule: Schedule = "constant",
    warmup: Warmup = 0,
    clip: Clip = None,
    timeout: Timeout = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="go on with the comparison in this folder")] = None,
    out: Out = None,
) -> None:
    """Train a workload several ways on equal terms, measure, and say which way pays.

    Each way has the same weights to start from, the same data, the same links and the same budget of seconds, tokens or
    steps. Several --sweep make a way of each combination; --most runs some of them, the most promising. With --seeds
    the numbers are means, and their range is told.

    \b
      laconic compare shakespeare --methods ddp,dgc,diloco --workers 2 --link 20mbit --seconds 30
      laconic compare fashion --methods ddp,powersgd --workers 4 --link 100mbit,5ms --tokens 200000
      laconic compare mine.py --methods ddp,streaming-diloco --set streaming-diloco.every=50 --on testbed
      laconic compare shakespeare --methods ddp,diloco --sweep every=10,50,250 --seeds 3
      laconic compare fashion --methods diloco --sweep every=5,10,20,50 --sweep lr=0.4,0.7,1 --most 6
      laconic compare shakespeare --workers 64 --simulate --link 100mbit,50ms --tokens 2000000
      laconic compare --resume runs/compare-shakespeare-1

    Ctrl-C keeps what has finished; --resume goes on with the rest.
    """
    from laconic.bench.compare import compare as run_comparison
    from laconic.bench.compare import left, planned
    from laconic.bench.compare import resume as go_on
    from laconic.bench.ways import ways
    from laconic.cli.progress import following
    from laconic.plan.forecast import after_compare
    from laconic.recipe import Recipe

    say = (lambda sentence: None) if as_json else _say
    if resume is not None:
        other = [name for name in context.params if name not in ("resume", "as_json") and _is_given(context, name)]
        if other:
            raise ConfigError(f"--resume goes on with the comparison as it was, so {other[0]} cannot be given")
        begun, folder = planned(resume), resume
        to_do = left(begun)
        try:
            with following(begun.recipe, as_json, len(to_do)) as watch:
                comparison = go_on(begun, watch, say, _command())
        except KeyboardInterrupt:
            _interrupted(folder)
        _show(after_compare(folder, begun.recipe, comparison, say), folder, as_json)
        return
    if workload is None:
        raise ConfigError("compare: name a workload (shakespeare, fashion, adult, or a file), or a --resume")
    plan = Recipe(
        workload,
        options=_options(option, size),
        workers=workers,
        link="" if (on == "group" or cluster) and not _is_given(context, "link") else link,
        links=tuple(link_of or ()),
        slow=tuple(slow or ()),
        on=_place(context, on, simulate),
        cluster=cluster,
        flops=_flops(flops),
        step_seconds=step_seconds,
        seconds=DEFAULT_SECONDS if seconds is None and tokens is None and steps is None else seconds,
        tokens=tokens,
        steps=steps,
        seed=seed,
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        clip=clip,
        timeout=timeout,
        save_every=1_000_000,
    )
    chosen = ways(methods, set_ or [], sweep or [], seeds=seeds, seconds=plan.seconds, most=most, tell=say)
    folder = out or _new_folder(f"compare-{Path(workload).stem}")
    try:
        # The ideal is measured before all ways, and again after each seed's.
        with following(plan, as_json, min(len(chosen), most or len(chosen)) * seeds + seeds + 1) as watch:
            comparison = run_comparison(_anywhere(plan), chosen, folder, watch, say, _command(), seeds, most)
    except KeyboardInterrupt:
        _interrupted(folder)
    _show(after_compare(folder, plan, comparison, say), folder, as_json)


def _interrupted(folder: Path) -> NoReturn:
    """Say what is left of a comparison after Ctrl-C, and how to go on."""
    from laconic.bench.compare import PLAN

    found = "what has finished is kept" if (folder / "comparison.json").exists() else "no way had finished"
    if (folder / PLAN).exists():
        found += f". Go on with: laconic compare --resume {folder}"
    if (folder / "comparison.json").exists():
        found += f"\nAs far as it came:  laconic report {folder}"
    typer.echo(f"Interrupted; {found}", err=True)
    raise typer.Exit(130)


def _show(comparison: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print a comparison; ways that failed are told last, with exit status 2."""
    if as_json:
        from laconic.bench import units
        from laconic.bench.report import write_report

        write_report([folder])
        typer.echo(json.dumps(units.strict(comparison), indent=1, allow_nan=False))
    else:
        from rich.console import Console

        from laconic.bench.table import comparison_table

        console = Console()
        console.print(comparison_table(comparison))
        console.print(comparison["verdict"], highlight=False)
        _finish(folder)
    if comparison["failed"]:
        raise RunFailed("; ".join(comparison["failed"]))


@app.command(short_help="List the ways, or show one in full.")
def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one method, in full")] = None,
    parameters: Annotated[float, typer.Option("--params", help="price the wire for a model of this size")] = 1e7,
    workers: Workers = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="with this setting, such as graph=torus")] = None,
) -> None:
    """List the named methods, or show one: its six choices, settings with defaults, wire cost and source.

    The wire cost is found by running the method itself on tensors without data. Where a graph says who talks to whom,
    its messages and spectral gap among so many workers are told too.

    \b
      laconic methods
      laconic methods powersgd --params 1e8 --workers 8
      laconic methods d-psgd --set graph=torus --workers 16
    """
    from laconic.cli.describe import describe, listing
    from laconic.recipe import read_settings

    if name is None and set_:
        raise ConfigError(f"methods: --set {set_[0]} is a setting of one method; name it")
    if not 1 <= workers <= MOST_PRICED:
        raise ConfigError(f"methods: --workers must be from 1 to {MOST_PRICED}, got {workers}")
    if not 1 <= parameters <= 1e18:
        raise ConfigError(f"methods: --params is a number of parameters, from 1 to 1e18, got {parameters:g}")
    _say(listing() if name is None else describe(name, int(parameters), workers, read_settings(set_ or [])))


@app.command(short_help="List the parts that methods are made of, or show one in full.")
def parts(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="one part, in full")] = None,
) -> None:
    """List the compressors, exchanges, rules and syncs that methods are made of, or show one in full.

    They nest, and a nesting is a method: --method "every_step(everyone(error_feedback(topk(0.01))))". A compressor
    alone can take the place of a method's own: --set compress=int8.

    \b
      laconic parts
      laconic parts topk
    """
    from laconic.cli.describe import describe_part
    from laconic.cli.describe import parts as listing

    _say(listing() if name is None else describe_part(name))


@app.command(short_help="Write a page about runs.")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders, or the folder of a comparison")],
    out: Annotated[Path | None, typer.Option("--out", help="the page (default: report.html in the folder)")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="write this .svg instead: the three charts of the loss, for a page")
    ] = None,
) -> None:
    """Write one self-contained report.html: loss over time, tokens and bytes; where the seconds went; the recipes.

    \b
      laconic report runs/compare-shakespeare-1
      laconic report runs/shakespeare-ddp-1 runs/shakespeare-dgc-1 --out both.html
      laconic report runs/compare-shakespeare-1 --picture loss.svg
    """
    from laconic.bench.report import write_report

    if picture is not None:
        from laconic.bench.picture import write_picture

        if out is not None:
            raise ConfigError("report: --out is the page and --picture the picture; give one of them")
        _say(f"picture: {write_picture(runs, picture)}")
        return
    _say(f"report: {write_report(runs, out)}")


@app.command(
    short_help="Make hosts with shaped links, and run a command on each.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def testbed(
    context: typer.Context,
    workers: Workers = 2,
    link: LinkText = "100mbit",
    link_of: Links = None,
    clean: Annotated[bool, typer.Option("--clean", help="end what a killed testbed left behind")] = False,
) -> None:
    """Make N hosts on this machine, joined by links that the kernel shapes, and run a command on each. Needs root.

    \b
      laconic testbed --workers 3 --link 50mbit,20ms --link-of 2:5mbit -- python train.py
      laconic testbed --workers 2                        shows the hosts, and waits for Ctrl-C

    The command finds RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, as under torchrun. Nothing
    outside the hosts' own network namespaces is touched, and nothing is left when it ends, whatever ends it.
    """
    from laconic.bench import testbed as beds
    from laconic.links.network import parse

    if clean:
        gone = beds.clean()
        _say("\n".join(gone) if gone else "nothing was left behind")
        return
    reason = beds.available()
    if reason is not None:
        raise ConfigError(reason)
    argv = [part for part in context.args if part != "--"] if context.args[:1] == ["--"] else list(context.args)
    if argv and shutil.which(argv[0]) is None:
        raise ConfigError(f"testbed: there is no command {argv[0]!r}")
    status = 0
    with beds.Testbed(parse(link, workers, link_of or ())) as bed:
        _say(beds.hosts_report(bed))
        try:
            if argv:
                statuses = beds.run_everywhere(bed, argv)
                # A command's own failure before the signal that ended the others for it.
                status = max(statuses) if max(statuses) > 0 else abs(min(statuses))
                for counter in bed.counters():
                    sent, received = counter.sent_bytes, counter.received_bytes
                    _say(f"worker {counter.worker}: {sent:,} bytes sent, {received:,} received")
            else:
                _say("Ctrl-C ends it.")
                while True:
                    time.sleep(3600)
        except KeyboardInterrupt:
            status = 130 if argv else 0
    raise typer.Exit(status)


app.command(short_help="Measure machines and the links between them.")(probe)
app.command(short_help="List clusters, show one, or make one of a topology.")(clusters)
app.command(short_help="Price an all-reduce by every plan.")(collectives)
app.command("plan", short_help="Say which way pays here, before a run, and why.")(plan_command)
app.command(short_help="Say how to cut a large transformer on a cluster.")(shapes)
app.command(short_help="Say what a computation must move between memories, and how long that takes.")(bounds)
app.command(short_help="Predict the loss of sizes and token budgets from runs.")(laws)


def _place(context: typer.Context, on: str, simulate: bool) -> str:
    """Where to train."""
    if simulate and _is_given(context, "on") and on != "simulated":
        raise ConfigError(f"--simulate trains on simulated links, and --on {on} on others; give one of them")
    return "simulated" if simulate else on


def _anywhere(plan: Recipe) -> Recipe:
    """A plan that names its files by their whole paths, so that its run can be resumed from elsewhere."""
    return plan.replace(workload=_whole(plan.workload, ".py"), cluster=_whole(plan.cluster, ".toml"))


def _whole(name: str, ending: str) -> str:
    """The whole path of a file; the name of what is built in as it is."""
    return str(Path(name).expanduser().absolute()) if name.endswith(ending) or "/" in name else name


def _flops(text: str | None) -> float | None:
    from laconic.plan.cluster import parse_flops

    return None if text is None else parse_flops(text)


def _say_pace(plan: Recipe) -> None:
    """Say what a simulation takes a step to be."""
    if plan.on == "simulated":
        from laconic.pace import pace_of

        _say(pace_of(plan))


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, and is not only its default."""
    source = context.get_parameter_source("link_of" if name == "links" else name)
    return source is not None and source.name == "COMMANDLINE"


def _resumed(folder: Path, ends: dict[str, Any]) -> Recipe:
    """The recipe with which the run in ``folder`` goes on; ``ends`` may set another end.

    Raises: ConfigError for a folder without a run or a checkpoint, and for a run that has reached that end.
    """
    from laconic.fault.checkpoint import newest, progress
    from laconic.recipe import read_recipe

    if not (folder / "recipe.toml").is_file():
        raise ConfigError(f"--resume {folder}: there is no recipe.toml in it, so it is no run folder")
    plan = read_recipe(folder / "recipe.toml")
    if any(value is not None for value in ends.values()):
        plan = plan.replace(**ends)
    step = newest(folder, plan.workers)
    if step is None:
        raise ConfigError(f"--resume {folder}: it holds no checkpoint of all {plan.workers} workers")
    come = progress(folder, step) | {"steps": step}
    for name in ends:
        end = getattr(plan, name)
        if end is not None and come[name] >= end and (folder / "summary.json").exists():
            raise ConfigError(
                f"--resume {folder}: the run has reached its end ({come[name]:,.6g} of {end:,.6g} {name}); "
                f"to go on, say a later one with --{name}"
            )
    return plan


def _options(pairs: list[str] | None, size: str | None) -> dict[str, Any]:
    from laconic.recipe import read_settings

    return read_settings(pairs or [], "--option") | ({"size": size} if size else {})


def _new_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


def _finish(folder: Path) -> None:
    from laconic.bench.report import write_report

    _say(f"run folder: {folder}\nreport:     {write_report([folder])}")


def _say(text: str) -> None:
    typer.echo(text)


def _command() -> str:
    return shlex.join(["laconic", *sys.argv[1:]])
