"""Trains one model several ways on equal terms, and says which way pays.

Every way gets the same initial weights, the same data in the same order, the same workers, the same links and the same
budget. The *ideal* is measured too: the same workers at the same time without any exchange, so that what the machine
can compute and what the network costs are told apart.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laconic.bench import units
from laconic.bench.runs import read_lines
from laconic.errors import ConfigError
from laconic.launch import RunFailed, Watch, check_room, launch, prepare
from laconic.methods import REPLACED, build, get
from laconic.recipe import Recipe, read_settings
from laconic.sync.streaming import deal
from laconic.workloads import load

PLAIN = "ddp"
IDEAL_SHARE, IDEAL_LEAST, IDEAL_MOST = 0.2, 4.0, 8.0  # seconds of the ideal, as a share of a method's and bounded
ROUNDS = 24  # synchronisations that a run should have at least
WARM = 20  # a run is this many times longer than its warm-up, at least
KEYS = ("steps", "tokens", "seconds", "loss", "eval_loss", "bytes_out", "messages_out")
SECONDS = ("seconds_computing", "seconds_compressing", "seconds_waiting")

Told = Callable[[str], None]


def ways(methods: str, settings: Sequence[str], recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The methods of a comma-separated list, each with the settings that are meant for it.

    A setting is ``name=value``, for every method that has it, or ``method.name=value``.

    Raises: ConfigError for an unknown method or setting, one that fits none of them, or a method named twice.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("methods: name at least one; `laconic methods` lists them")
    if len(set(names)) != len(names):
        raise ConfigError(f"methods: {methods!r} names one twice")
    chosen: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name in names:
        get(name)
    for pair in settings:
        where, dot, rest = pair.partition(".") if "." in pair.partition("=")[0] else ("", "", pair)
        (key, value), *_ = read_settings([rest]).items()
        takers = [where] if dot else [name for name in names if key in get(name).defaults]
        if dot and where not in names:
            raise ConfigError(f"--set {pair}: {where!r} is not among the methods compared ({', '.join(names)})")
        if not takers:
            raise ConfigError(f"--set {pair}: none of {', '.join(names)} has a setting {key!r}")
        for taker in takers:
            chosen[taker][key] = value
    for name, own in chosen.items():
        build(name, own)
    return chosen


def compare(
    recipe: Recipe,
    methods: dict[str, dict[str, Any]],
    folder: Path,
    watch: Callable[[str], Watch] | None = None,
    tell: Told = lambda sentence: None,
    command: str = "",
) -> dict[str, Any]:
    """Run every way into a sub-folder of ``folder``; return the comparison, which is ``comparison.json`` there too.

    ``watch(name)`` gives what follows one run's metrics; ``tell`` is given sentences worth showing.

    Raises: ConfigError before anything starts; RunFailed when a way fails.
    """
    methods = {name: _divided(recipe, name, settings, tell) for name, settings in methods.items()}
    for name, settings in methods.items():
        parameters = prepare(recipe.replace(method=name, settings=settings), tell)
    check_room(folder, recipe, parameters * len(methods))
    follow = watch or (lambda name: lambda line: None)
    before = _ideal(recipe, folder / "00-ideal", follow("ideal"), command)
    expected = _expected_steps(recipe, before["step_seconds"])
    runs = []
    for number, (name, settings) in enumerate(methods.items(), 1):
        fitted, sentence = fit(name, settings, expected)
        if sentence:
            tell(sentence)
        way = recipe.replace(method=name, settings=fitted)
        run = folder / f"{number:02d}-{name}"
        try:
            launch(way, run, follow(name), command=command)
        except RunFailed as error:
            raise RunFailed(f"{name}: {error}") from error
        runs.append(run)
    # Before and after, since the speed of a machine that others share too drifts within minutes.
    after = _ideal(recipe, folder / "99-ideal", follow("ideal"), command)
    step = (before["step_seconds"] + after["step_seconds"]) / 2
    ideal = {"step_seconds": step, "steps_per_second": 1 / step, "measured": [before, after]}
    comparison = conclude(recipe, folder, runs, ideal)
    (folder / "comparison.json").write_text(json.dumps(comparison, indent=1))
    return comparison


def fit(name: str, settings: dict[str, Any], steps: float) -> tuple[dict[str, Any], str]:
    """Shorten a method's period and warm-up to a run of about ``steps`` steps, where they were not set; and say so.

    Published periods are for runs of many thousand steps: DiLoCo's 500 would not come round once in a short one.
    """
    defaults, fitted, said = get(name).defaults, dict(settings), []
    fragments = fitted.get("fragments", defaults.get("fragments", 1))
    hidden = fitted.get("overlap", defaults.get("overlap", 0))  # steps in which a fragment must come back
    least = max(2, hidden + 1) * fragments
    for key, bound in (("every", max(least, steps / ROUNDS)), ("warmup_steps", steps / WARM)):
        if key in REPLACED and settings.get("compress") is not None:
            continue
        if key in defaults and key not in settings and defaults[key] > bound:
            fitted[key] = max(1, round(bound))
            said.append(f"{key}={fitted[key]} in place of {defaults[key]}")
    if not said:
        return fitted, ""
    return fitted, f"{name}: {' and '.join(said)}, for a run of about {units.count(round(steps))} steps"


def _divided(recipe: Recipe, name: str, settings: dict[str, Any], tell: Told) -> dict[str, Any]:
    """Fewer fragments, where they were not set and the model has not so many blocks; and say so."""
    fragments = get(name).defaults.get("fragments", 1)
    if "fragments" in settings or fragments == 1:
        return settings
    names = [key for key, p in load(recipe.workload, recipe.options).make_model().named_parameters() if p.requires_grad]
    for fewer in range(fragments, 0, -1):
        with contextlib.suppress(ConfigError):
            deal(names, fewer, "strided")
            break
    if fewer == fragments:
        return settings
    tell(f"{name}: fragments={fewer} in place of {fragments}, for a model of so few blocks")
    return settings | {"fragments": fewer}


def conclude(recipe: Recipe, folder: Path, runs: Sequence[Path], ideal: dict[str, Any]) -> dict[str, Any]:
    """The comparison of finished runs."""
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    curves = [_curve(run) for run in runs]
    plain = next((i for i, s in enumerate(summaries) if s["name"] == PLAIN), 0)
    goal = curves[plain][-1][1] if curves[plain] else math.nan
    goal_seconds = summaries[plain]["seconds"]
    methods = []
    for run, summary, curve in zip(runs, summaries, curves, strict=True):
        reached = goal_seconds if run == runs[plain] else first_reach(curve, goal)
        entry: dict[str, Any] = {"name": summary["name"], **{key: summary[key] for key in (*KEYS, *SECONDS)}}
        entry["folder"] = run.name
        entry["wire_bytes"] = _wire(run)
        entry["reached_seconds"] = reached
        entry["speedup"] = None if reached is None else goal_seconds / reached
        methods.append(entry)
    ideal_seconds = summaries[plain]["steps"] * ideal["step_seconds"]
    comparison: dict[str, Any] = {
        "workload": recipe.workload,
        "workers": recipe.workers,
        "link": summaries[0]["link"],
        "measured_on": recipe.on,
        "seconds": recipe.seconds,
        "tokens": recipe.tokens,
        "plain": methods[plain]["name"],
        "goal": goal,
        "ideal": ideal | {"reached_seconds": ideal_seconds},
        "methods": methods,
        "parameters": summaries[0]["parameters"],
        "versions": summaries[0]["versions"],
    }
    comparison["verdict"] = verdict(comparison)
    return comparison


def first_reach(curve: Sequence[tuple[float, float]], goal: float) -> float | None:
    """When a curve of (seconds, loss) first comes down to ``goal``, straight between its points; None if never."""
    before: tuple[float, float] | None = None
    for seconds, loss in curve:
        if loss <= goal:
            if before is None or before[1] == loss:
                return seconds
            share = (before[1] - goal) / (before[1] - loss)
            return before[0] + share * (seconds - before[0])
        before = (seconds, loss)
    return None


def verdict(comparison: dict[str, Any]) -> str:
    """Which way reaches the plain way's final loss first, how much sooner, and how far from the ideal that is."""
    methods, plain = comparison["methods"], comparison["plain"]
    ideal = comparison["ideal"]
    others = [m for m in methods if m["reached_seconds"] is not None]
    first = min(others, key=lambda m: m["reached_seconds"], default=None)
    where = f"{plain}'s final held-out loss"
    if first is None:
        return f"No way reaches {where}."
    rate = first["steps"] / first["seconds"] / ideal["steps_per_second"]
    pace = f"It trains at {units.share(min(rate, 1.0))} of the no-network ideal's steps a second"
    waiting = f"and waits {units.share(first['seconds_waiting'] / first['seconds'])} of its time."
    if len(methods) == 1:
        return f"{plain} is alone here. {pace} {waiting}"
    if first["name"] == plain:
        return f"{plain} itself is the first to reach {where}: on this link no other way pays. {pace} {waiting}"
    seconds = units.duration(first["reached_seconds"])
    sooner = f"{units.factor(first['speedup'])} sooner than {plain} ({units.duration(comparison_seconds(comparison))})"
    return (
        f"{first['name']} pays: it reaches {where} after {seconds}, {sooner}; "
        f"{plain} without a network would take {units.duration(ideal['reached_seconds'])}. {pace} {waiting}"
    )


def comparison_seconds(comparison: dict[str, Any]) -> float:
    """How long the plain way took to its final loss."""
    return float(next(m["seconds"] for m in comparison["methods"] if m["name"] == comparison["plain"]))


def _ideal(recipe: Recipe, run: Path, watch: Watch, command: str) -> dict[str, Any]:
    """Seconds a step without a network: all workers at once, as they will share the machine, none exchanging."""
    budget = recipe.seconds or IDEAL_MOST / IDEAL_SHARE
    seconds = min(IDEAL_MOST, max(IDEAL_LEAST, IDEAL_SHARE * budget))
    alone = recipe.replace(method="alone", settings={}, seconds=seconds, tokens=None, steps=None, link="", links=())
    launch(alone.replace(on="paced"), run, watch, command=command)
    columns = read_lines(run / "metrics.jsonl")
    times = columns["seconds"]
    skip = min(3, len(times) - 1)  # the first steps warm caches up
    counted = len(times) - 1 - skip
    step = (times[-1] - times[skip]) / counted if counted else times[-1] / len(times)
    return {"step_seconds": step, "steps": len(times), "seconds": times[-1]}


def _expected_steps(recipe: Recipe, step_seconds: float) -> float:
    if recipe.steps is not None:
        return recipe.steps
    if recipe.seconds is not None:
        return recipe.seconds / step_seconds
    workload = load(recipe.workload, recipe.options)
    batch = next(iter(workload.batches("train", 0, recipe.workers, recipe.seed)))
    return (recipe.tokens or 0) / (workload.tokens(batch) * recipe.workers)


def _curve(run: Path) -> list[tuple[float, float]]:
    columns = read_lines(run / "evals.jsonl")
    return list(zip(columns["seconds"], columns["eval_loss"], strict=True))


def _wire(run: Path) -> list[int] | None:
    path = run / "wire.json"
    return json.loads(path.read_text())["sent_bytes"] if path.exists() else None
