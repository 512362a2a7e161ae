"""Trains one model several ways on equal terms, and says which way pays.

Every way gets the same initial weights, the same data in the same order, the same workers, the same links and the same
budget. The *ideal* is measured too: the same workers at the same time without any exchange, so that what the machine
can compute and what the network costs are told apart.

A comparison's folder is written so that it can be read, and gone on with, whatever ends it: ``plan.json`` says what was
to be run, ``comparison.json`` is written anew after every run.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from laconic.bench import units
from laconic.bench.choosing import following, promising
from laconic.bench.runs import read_lines, read_object
from laconic.bench.verdict import Result, conclude, plain
from laconic.bench.ways import Told, Way, about, divided, fit
from laconic.errors import ConfigError, RunFailed, TestbedError
from laconic.fault.checkpoint import newest
from laconic.launch import Watch, check_room, launch, prepare
from laconic.recipe import SIMULATED, Recipe, read_recipe
from laconic.schedule import CONSTANT
from laconic.workloads import load

IDEAL_SHARE, IDEAL_LEAST, IDEAL_MOST = 0.2, 4.0, 8.0  # seconds of the ideal, as a share of a method's and bounded
IDEAL_STEPS = 5  # of a simulated one
OPENING = 7.0  # seconds that a run takes beside its training: workers start, and its losses are measured
PLAN, BUDGET = "plan.json", "budget.toml"
NOT_CHOSEN = "not chosen yet"  # in a run's place, where ways are chosen one by one


class Plan(NamedTuple):
    """What a comparison runs: each way with each seed, into folders of its own."""

    recipe: Recipe  # all but the method and its settings
    ways: list[Way]
    seeds: list[int]
    folder: Path
    most: int | None = None  # so many of the ways at most, each chosen by what those before it have shown

    def place(self, number: int, name: str, seed: int) -> Path:
        """The folder of one run."""
        way = self.folder / f"{number:02d}-{re.sub(r'[^A-Za-z0-9._=+-]+', '-', name)[:60].strip('-')}"
        return way / f"seed-{seed}" if len(self.seeds) > 1 else way

    @property
    def number(self) -> int:
        """How many ways are run."""
        return len(self.ways) if self.most is None else min(self.most, len(self.ways))

    def of(self, way: Way) -> list[tuple[Way, int, Path]]:
        """The runs of one way."""
        number = self.ways.index(way) + 1
        return [(way, seed, self.place(number, way.name, seed)) for seed in self.seeds]

    def runs(self) -> list[tuple[Way, int, Path]]:
        """All of them, seed after seed: what changes about the machine meanwhile hits all ways alike."""
        return [
            (way, seed, self.place(number, way.name, seed))
            for seed in self.seeds
            for number, way in enumerate(self.ways, 1)
        ]


def compare(
    recipe: Recipe,
    ways: Sequence[Way],
    folder: Path,
    watch: Callable[[str], Watch] | None = None,
    tell: Told = lambda sentence: None,
    command: str = "",
    seeds: int = 1,
    most: int | None = None,
) -> dict[str, Any]:
    """Run every way into a sub-folder of ``folder``; return the comparison, which is ``comparison.json`` there too.

    ``watch(name)`` gives what follows one run's metrics; ``tell`` is given sentences worth showing. With several
    ``seeds`` each way is run with the recipe's seed and those that follow it. With ``most`` only so many of the ways
    are run: the plain one, and then each time the one that a proxy learnt from those before it finds most promising
    (:mod:`laconic.plan.proposer`).

    Raises: ConfigError before anything starts; RunFailed when a way fails, after all others have been run;
            KeyboardInterrupt after an interruption, with what had finished in ``comparison.json``.
    """
    if most is not None and most < 2:
        raise ConfigError(f"most must be at least 2 ways, the plain one and another, got {most}")
    ways = [divided(recipe, way, tell) for way in ways]
    plan = Plan(recipe, ways, list(range(recipe.seed, recipe.seed + seeds)), folder, most)
    first = ways if plan.number == len(ways) else {way.method: way for way in reversed(ways)}.values()
    for way in first:  # of many ways one a method; the others are tried when they are chosen
        parameters = prepare(way.of(recipe), tell)
    check_room(folder, recipe, parameters * plan.number * seeds)
    if (folder / PLAN).exists():
        raise ConfigError(f"{folder} holds a comparison already; choose another folder, or go on by --resume")
    tell(cost(plan))
    follow = watch or (lambda name: lambda line: None)
    step = ideal_run(recipe, folder / "00-ideal", follow("ideal"), command)["step_seconds"]
    expected = _expected_steps(recipe, step)
    fitted = []
    for way in ways:
        settings, sentence = fit(way.method, way.settings, expected, way.name)
        fitted.append(way._replace(settings=settings))
        if sentence:
            tell(sentence)
    if recipe.seconds is None and recipe.on != SIMULATED:
        tell(f"without a network it would be {about(plan.number * seeds * (expected * step + OPENING))}")
    plan = plan._replace(ways=fitted)
    _save(plan)
    return _run(plan, follow, tell, command)


def resume(
    plan: Plan,
    watch: Callable[[str], Watch] | None = None,
    tell: Told = lambda sentence: None,
    command: str = "",
) -> dict[str, Any]:
    """Go on with a comparison that was begun: runs that have finished are kept, the others are run.

    Raises: as :func:`compare`.
    """
    done = sum(_finished(run) for _, _, run in plan.runs())
    tell(f"{done} of {plan.number * len(plan.seeds)} runs have finished")
    return _run(plan, watch or (lambda name: lambda line: None), tell, command)


def left(plan: Plan) -> list[Path]:
    """The runs of a plan, and the measurements of its ideal, that have not finished."""
    ideals = [plan.place(99, "ideal", seed) for seed in plan.seeds]
    runs = [run for _, _, run in plan.runs()]
    spare = len(runs) - plan.number * len(plan.seeds)
    return [run for run in runs if not _finished(run)][spare:] + [run for run in ideals if not _finished(run)]


def planned(folder: Path) -> Plan:
    """The plan of the comparison in a folder.

    Raises: ConfigError where there is none, or none that can be understood.
    """
    if not (folder / PLAN).is_file():
        raise ConfigError(
            f"--resume {folder}: there is no {PLAN} in it, so no comparison had measured its ideal and begun there; "
            "start it anew, in another folder"
        )
    raw = read_object(folder / PLAN)
    try:
        ways = [Way(**way) for way in raw["ways"]]
        return Plan(read_recipe(folder / BUDGET), ways, [int(seed) for seed in raw["seeds"]], folder, raw.get("most"))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / PLAN}: it is no plan of this version ({error})") from None


def cost(plan: Plan) -> str:
    """What a comparison will take, before it starts: ``12 ways x 3 seeds x 30 s: about 23 min``."""
    recipe, runs = plan.recipe, plan.number * len(plan.seeds)
    each = f"{recipe.seconds:g} s" if recipe.seconds is not None else f"{recipe.tokens or recipe.steps:,} "
    each += "" if recipe.seconds is not None else "tokens" if recipe.tokens else "steps"
    ways = f"{plan.number} way{'s' * (plan.number > 1)}" + f" of {len(plan.ways)}" * (plan.number < len(plan.ways))
    seeds = f" x {len(plan.seeds)} seeds" * (len(plan.seeds) > 1)
    if recipe.on == SIMULATED:
        from laconic.pace import pace_of

        return f"{ways}{seeds} x {each}{' of virtual time' * (recipe.seconds is not None)}; {pace_of(recipe)}"
    if recipe.seconds is None:
        return f"{ways}{seeds} x {each}; how long that takes is the network's to say"
    ideals = (len(plan.seeds) + 1) * (ideal_seconds(recipe) + OPENING)
    return f"{ways}{seeds} x {each}: {about(runs * (recipe.seconds + OPENING) + ideals)}"


def ideal_seconds(recipe: Recipe) -> float:
    """How long one measurement of the ideal trains."""
    budget = recipe.seconds or IDEAL_MOST / IDEAL_SHARE
    return min(IDEAL_MOST, max(IDEAL_LEAST, IDEAL_SHARE * budget))


def _run(plan: Plan, follow: Callable[[str], Watch], tell: Told, command: str) -> dict[str, Any]:
    """Run what of a plan has not finished yet, write ``comparison.json`` after each, and conclude."""
    failed: dict[str, str] = {}
    several = len(plan.seeds) > 1
    try:
        for way, seed, run, last in _turns(plan, failed, tell):
            if not _finished(run):
                recipe = way.of(plan.recipe).replace(seed=seed)
                name = f"{way.name} seed {seed}" if several else way.name
                try:
                    launch(recipe, run, follow(name), command=command, resume=_begun(run, recipe, tell))
                except (RunFailed, TestbedError) as error:
                    failed[str(run.relative_to(plan.folder))] = f"{name}: {error}"
                    tell(f"{name} failed; the others go on")
                _write(plan, failed)
            if last:
                # Before and after, since the speed of a machine that others share too drifts within minutes.
                ideal = plan.place(99, "ideal", seed)
                if not _finished(ideal):
                    _begun(ideal, plan.recipe.replace(method="alone"), tell, keep=False)
                    ideal_run(plan.recipe.replace(seed=seed), ideal, follow("ideal"), command)
    finally:
        comparison = _write(plan, failed)
    if comparison is None:
        raise RunFailed(next(iter(failed.values())))
    return comparison


def _turns(plan: Plan, failed: Mapping[str, str], tell: Told) -> Iterator[tuple[Way, int, Path, bool]]:
    """The runs in order, and whether one is the last of its seed; a way is chosen once those before it have run."""
    if plan.number == len(plan.ways):
        for way, seed, run in plan.runs():
            yield way, seed, run, way is plan.ways[-1]
        return
    losses: dict[str, float | None] = {}
    while len(losses) < plan.number:
        way = following(plan.ways, losses, plan.seeds[0]) if losses else plan.ways[plain(plan.ways)]
        if losses:
            tell(f"next, by what {len(losses)} have shown: {way.name}")
        for _, seed, run in plan.of(way):
            yield way, seed, run, len(losses) + 1 == plan.number
        losses[way.name] = _loss(plan, way, failed)


def _loss(plan: Plan, way: Way, failed: Mapping[str, str]) -> float | None:
    """A way's final held-out loss, the mean over its seeds; None if it failed with one of them."""
    runs = [run for _, _, run in plan.of(way)]
    if any(str(run.relative_to(plan.folder)) in failed or not _finished(run) for run in runs):
        return None
    losses = [float(read_object(run / "summary.json").get("eval_loss") or math.nan) for run in runs]
    mean = sum(losses) / len(losses)
    return mean if mean > 0 else None


def _write(plan: Plan, failed: dict[str, str]) -> dict[str, Any] | None:
    """The comparison of what has finished, into its file; None, and no file, where nothing has."""
    found: dict[str, Result] = {}
    unfinished = []
    for way, seed, run in plan.runs():
        if _finished(run):
            found.setdefault(way.name, Result(way, {})).runs[seed] = run
        elif str(run.relative_to(plan.folder)) not in failed:
            unfinished.append(str(run.relative_to(plan.folder)))
    if plan.number < len(plan.ways):
        done = sum(len(result.runs) for result in found.values()) + len(failed)
        unfinished = [NOT_CHOSEN] * (plan.number * len(plan.seeds) - done)
    if not found:
        return None
    order = {way.name: i for i, way in enumerate(plan.ways)}
    results = sorted(found.values(), key=lambda result: order[result.way.name])
    ideals = [plan.folder / "00-ideal", *(plan.place(99, "ideal", seed) for seed in plan.seeds)]
    comparison = conclude(plan.recipe, results, measured([_paces(run) for run in ideals if _finished(run)]))
    wanted = plan.ways[plain(plan.ways)].name
    if not unfinished and wanted != comparison["plain"]:
        instead = f"did not finish; {comparison['plain']} stands in."
        comparison["verdict"] = f"{wanted}, which the others were to be held against, {instead} {comparison['verdict']}"
    if plan.number < len(plan.ways):
        comparison |= _chosen(plan, comparison, failed)
    comparison |= {"unfinished": unfinished, "failed": list(failed.values())}
    path = plan.folder / "comparison.json"
    path.with_suffix(".part").write_text(json.dumps(units.strict(comparison), indent=1, allow_nan=False))
    path.with_suffix(".part").rename(path)
    return comparison


def _chosen(plan: Plan, comparison: Mapping[str, Any], failed: Mapping[str, str]) -> dict[str, Any]:
    """How many of the ways were run, which of the others promises most, and both in words behind the verdict."""

    def ran_once(way: Way) -> bool:
        return any(_finished(run) or str(run.relative_to(plan.folder)) in failed for _, _, run in plan.of(way))

    ran = [way for way in plan.ways if ran_once(way)]
    told = f"{len(ran)} of {len(plan.ways)} ways were run, each chosen by what those before it had shown."
    best = promising(plan.ways, {way.name: _loss(plan, way, failed) for way in ran})
    if best is not None:
        told += f" Of the others {best.way.name} promises most: a final loss of about {units.loss(best.loss)}."
    promise = None if best is None else {"name": best.way.name, "eval_loss": best.loss}
    return {"ways": len(plan.ways), "promising": promise, "verdict": f"{comparison['verdict']} {told}"}


def measured(ideals: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The ideal, of its measurements."""
    step = sum(one["step_seconds"] for one in ideals) / len(ideals)
    return {"step_seconds": step, "steps_per_second": 1 / step, "measured": list(ideals)}


def _save(plan: Plan) -> None:
    (plan.folder / BUDGET).write_text(plan.recipe.to_toml())
    made = {"ways": [way._asdict() for way in plan.ways], "seeds": plan.seeds, "most": plan.most}
    (plan.folder / PLAN).write_text(json.dumps(made, indent=1))


def _finished(run: Path) -> bool:
    return (run / "summary.json").exists() and not read_object(run / "summary.json").get("stopped")


def _begun(run: Path, recipe: Recipe, tell: Told, keep: bool = True) -> bool:
    """Whether a run goes on from its checkpoint; what began and cannot go on is taken away, to be run again."""
    if not run.exists():
        return False
    if keep and newest(run, recipe.workers) is not None:
        return True
    tell(f"{run.parent.name}/{run.name} was cut short before a checkpoint, and is run again")
    shutil.rmtree(run)
    return False


def ideal_run(recipe: Recipe, run: Path, watch: Watch, command: str) -> dict[str, Any]:
    """Seconds a step without a network: all workers at once, as they will share the machine, none exchanging."""
    changes: dict[str, Any] = {"seconds": ideal_seconds(recipe), "tokens": None, "steps": None}
    changes |= {"schedule": CONSTANT, "warmup": 0}
    changes |= {"on": "paced", "link": "", "links": (), "cluster": ""}
    if recipe.on == SIMULATED:  # by its virtual clock a few steps are as good as many, and its machines are a cluster's
        changes = {"seconds": None, "tokens": None, "steps": IDEAL_STEPS}
    alone = recipe.replace(method="alone", settings={}, **changes)
    launch(alone, run, watch, command=command)
    return _paces(run)


def _paces(run: Path) -> dict[str, Any]:
    """What was measured of the ideal; its pace is the mean of all workers' steps a second, which may differ."""
    paths = [run / "metrics.jsonl", *sorted(run.glob("metrics-*.jsonl"))]
    columns = [read_lines(path)["seconds"] for path in paths]
    step = len(columns) / sum(1 / _pace(times) for times in columns)
    return {"step_seconds": step, "steps": len(columns[0]), "seconds": columns[0][-1]}


def _pace(times: list[float]) -> float:
    skip = min(3, len(times) - 1)  # the first steps warm caches up
    counted = len(times) - 1 - skip
    return (times[-1] - times[skip]) / counted if counted else times[-1] / len(times)


def _expected_steps(recipe: Recipe, step_seconds: float) -> float:
    if recipe.steps is not None:
        return recipe.steps
    if recipe.seconds is not None:
        return recipe.seconds / step_seconds
    workload = load(recipe.workload, recipe.options)
    batch = next(iter(workload.batches("train", 0, recipe.workers, recipe.seed)))
    return (recipe.tokens or 0) / (workload.tokens(batch) * recipe.workers)
