"""What a run will take, by its recipe, and afterwards how far that was out: predicted against measured.

A simulated run is predicted from its own recipe alone. What a step of a real one computes has to be measured: a
comparison measures the ideal before it trains; of a single run it is the run's own computing, so that what is predicted
of it is the network's part.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from laconic.drag import factors
from laconic.errors import ConfigError
from laconic.links.network import FRAMES, Connection, Network, of_cluster
from laconic.methods import METHODS, build
from laconic.pace import paces
from laconic.plan import ledger
from laconic.plan.charging import pace_of
from laconic.plan.cluster import read_cluster
from laconic.plan.job import Step, of_workload, threads_of, timed
from laconic.plan.ledger import Miss
from laconic.plan.price import Price, price
from laconic.plan.running import Course
from laconic.recipe import SIMULATED, Recipe, seeded
from laconic.sync.base import Sync
from laconic.workloads import load

# Steps of all workers of a run up to which every one is priced; of a longer run, those that have settled.
STEPS = 1200  # where each exchanges
PERIODIC = 20_000  # where most are spent alone
FROM_IDEAL, FROM_RUN, FROM_RECIPE = "the ideal, measured before", "the run itself", "the recipe"


def forecast(recipe: Recipe, steps: float, seconds: float | None = None, *, ran: bool = False) -> Price:
    """The price of a run of so many steps; ``seconds`` is what a step of a worker computes, of real machines.

    They are the ideal's, whose pace is the mean of its workers' paces; or (``ran``) the run's own, which are the mean
    of its workers' seconds over their steps.

    Law:    of a run's own seconds, ``computing`` of the price is those seconds.
    Raises: ConfigError and others, as :func:`laconic.plan.price.price`.
    """
    workload = load(recipe.workload, recipe.options)
    job = of_workload(workload, recipe.seed)
    settings = seeded(recipe)
    sync = build(recipe.method, settings)
    threads = recipe.threads or threads_of(recipe.workers)
    if recipe.on == SIMULATED:
        works, pace = [Step(*work[:2]) for work in paces(recipe, workload)], 0.0
    else:
        assert seconds is not None, "a real machine's step is measured"
        slow = factors(recipe.slow, recipe.workers)
        paced = sum(1 / factor for factor in slow) / len(slow)
        if ran and sync.rounds is None:  # all took as many steps, each worker in its own seconds
            paced = len(slow) / sum(slow)
        whole = job.split(seconds * paced, timed(workload, threads, recipe.seed))
        works = [whole.times(factor) for factor in slow]
        pace = pace_of(sync.exchange, job, threads, recipe.workers)
        pace *= max(1.0, recipe.workers * threads / (os.cpu_count() or 1))  # they compress at once
    network = payload(recipe)
    if recipe.on not in (SIMULATED, "paced"):
        network = replace(network, gloo=True)
    return price(
        job,
        network,
        works,
        recipe.method,
        settings,
        compressing=pace,
        course=course_of_run(sync, recipe, steps),
    )


def payload(recipe: Recipe) -> Network:
    """The network as messages find it: on the testbed a stated rate is the wire's, frames and all; a cluster's is not.

    Law:    on the testbed, FRAMES times its rates are what the kernel holds links to.
    """
    if recipe.on != "testbed":
        return recipe.network()
    if recipe.cluster:
        return of_cluster(read_cluster(recipe.cluster), recipe.workers)
    wire = recipe.network()

    def carries(end: Connection) -> Connection:
        return replace(end, up=end.up / FRAMES, down=end.down / FRAMES)

    links = tuple((a, b, carries(link)) for a, b, link in wire.links)
    return replace(wire, connections=tuple(map(carries, wire.connections)), links=links)


def course_of_run(sync: Sync, recipe: Recipe, steps: float) -> Course | None:
    """A run from beginning to end, where it is short enough and its workers take equal steps."""
    if sync.rounds is not None or steps < 1:
        return None
    every = (METHODS[recipe.method].defaults if recipe.method in METHODS else {}) | recipe.settings
    periodic = sync.after_step is not None and type(every.get("every")) is int and every["every"] > 1
    if steps * recipe.workers > (PERIODIC if periodic else STEPS):
        return None
    return Course(max(1, round(steps)), 0, 1, whole=True)


def told(found: Price, learnt: float = 1.0, basis: str = "") -> dict[str, Any]:
    """A prediction as a summary keeps it; keys that a report can hold against what was measured."""
    return {
        "step_seconds": found.lead * learnt,
        "tokens_per_second": found.tokens_per_second * found.step_seconds / (found.lead * learnt),
        "bytes_per_step": found.bytes_out,
        "waiting_share": found.waiting / found.lead,
        "seconds_of_a_step_from": basis,
    }


def measured(summary: Mapping[str, Any]) -> dict[str, float]:
    """The same of a run that was."""
    steps, seconds = float(summary["steps"]), float(summary["seconds"])
    return {
        "step_seconds": seconds / steps,
        "tokens_per_second": float(summary["tokens"]) / seconds,
        "bytes_per_step": float(summary["bytes_out"]) / steps,
        "waiting_share": float(summary["seconds_waiting"]) / seconds,
    }


def after_train(folder: Path, recipe: Recipe) -> str:
    """Hold a finished run against its prediction: in its summary, the ledger and a sentence; "" where there is none."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        if not _predictable(recipe, summary):
            return ""
        steps = float(summary["steps"])
        # What compressing adds is charged by the price, so it is no part of the step.
        computed = float(summary["seconds_computing"]) / steps
        basis = FROM_RECIPE if recipe.on == SIMULATED else FROM_RUN
        found = forecast(recipe, steps, computed, ran=True)
        summary["predicted"] = _corrected(folder, recipe, found, basis)
        _rewrite(path, summary)
        said = sentence(recipe.method, summary["predicted"], measured(summary))
    except Exception as error:  # a run that has finished is not lost because its prediction fails
        return f"No prediction: {error}"
    return " ".join(filter(None, [said, _kept(folder, recipe, summary, found, computed)]))


def after_compare(
    folder: Path, recipe: Recipe, comparison: dict[str, Any], tell: Callable[[str], None] = lambda sentence: None
) -> dict[str, Any]:
    """The comparison with each way's prediction from the ideal measured before; written into its folder and runs."""
    ideal = (comparison.get("ideal") or {}).get("measured") or [{}]
    seconds = ideal[0].get("step_seconds")
    for entry in comparison["methods"]:
        one = recipe.replace(method=entry["method"], settings=entry["settings"])
        if seconds is None or not _predictable(one, entry):
            continue
        basis = FROM_RECIPE if recipe.on == SIMULATED else FROM_IDEAL
        try:
            found = forecast(one, float(entry["steps"]), float(seconds))
            entry["predicted"] = _corrected(folder, one, found, basis)
            run = folder / str(entry["runs"][0]["folder"]) / "summary.json"
            if run.exists():
                _rewrite(run, json.loads(run.read_text()) | {"predicted": entry["predicted"]})
        except Exception as error:  # as above
            tell(f"{entry['name']}: no prediction: {error}")
            continue
        if kept := _kept(folder, one, entry, found):
            tell(f"{entry['name']}: {kept}")
    with contextlib.suppress(OSError):  # it stands there already, without predictions
        _rewrite(folder / "comparison.json", comparison)
    return comparison


def sentence(name: str, predicted: Mapping[str, Any], came: Mapping[str, float]) -> str:
    """What was predicted, and what came."""
    from laconic.bench import units

    off = came["step_seconds"] / predicted["step_seconds"] - 1
    much = "as predicted" if abs(off) < 0.005 else f"{abs(off):.0%} {'more' if off > 0 else 'less'} than predicted"
    return (
        f"{name}: a step took {units.duration(came['step_seconds'])}, {much} "
        f"({units.duration(predicted['step_seconds'])}, by {predicted['seconds_of_a_step_from']}); "
        f"{units.size(came['bytes_per_step'])} sent ({units.size(predicted['bytes_per_step'])}), "
        f"{units.share(came['waiting_share'])} waiting ({units.share(predicted['waiting_share'])})."
    )


def _corrected(folder: Path, recipe: Recipe, found: Price, basis: str) -> dict[str, Any]:
    """The prediction as a summary keeps it, with what earlier runs on real machines have shown of it."""
    place = ledger.kept_in(recipe.cluster, folder)
    if recipe.on == SIMULATED or not place.exists():
        return told(found, 1.0, basis)
    exposed = max(0.0, 1 - found.computing / found.lead)
    return told(found, ledger.read([place]).factor(recipe.method, _planned(recipe), recipe.settings, exposed), basis)


def _kept(folder: Path, recipe: Recipe, summary: Mapping[str, Any], found: Price, computing: float = 0.0) -> str:
    """Keep the miss for the next plan; a sentence where it cannot be. ``computing`` are the run's own seconds of it."""
    if recipe.on == SIMULATED:  # of a simulation there is nothing to be learnt about machines and links
        return ""
    kind = ledger.link_class(_planned(recipe)) if recipe.link or recipe.cluster else ledger.UNLIMITED
    came, compress = measured(summary)["step_seconds"], ledger.compress_of(recipe.settings)
    workload = Path(recipe.workload).stem
    miss = Miss(recipe.method, kind, recipe.workers, workload, found.lead, came, compress, computing)
    try:
        ledger.note(ledger.kept_in(recipe.cluster, folder), [miss])
    except ConfigError as error:
        return f"What it was out by is not kept: {error}"
    return ""


def _planned(recipe: Recipe) -> Network:
    """The network as a plan of this recipe has it, which knows of no testbed."""
    return recipe.replace(on="paced").network()


def _rewrite(path: Path, content: Mapping[str, Any]) -> None:
    """Put JSON in a file's place, which stays as it was where there is no room."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(content, indent=1))
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _predictable(recipe: Recipe, summary: Mapping[str, Any]) -> bool:
    """Whether a run has steps, more workers than one, and a network of which something is known."""
    known = bool(recipe.link or recipe.cluster or recipe.links)
    steps = summary.get("steps")
    return known and recipe.workers > 1 and isinstance(steps, int | float) and steps >= 1 and math.isfinite(steps)
