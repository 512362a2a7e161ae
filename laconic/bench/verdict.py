"""What came of a comparison: the means of each way over its seeds, and in words which way, and which value, pays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from laconic.bench import spread, units
from laconic.bench.runs import read_lines
from laconic.bench.table import OVER
from laconic.bench.ways import Way
from laconic.recipe import Recipe

PLAIN = "ddp"
KEYS = ("steps", "tokens", "seconds", "loss", "eval_loss", "bytes_out", "messages_out")
SECONDS = ("seconds_computing", "seconds_compressing", "seconds_waiting")
RANGED = (*KEYS, *SECONDS, "reached_seconds", "speedup")
APART = ("local_loss", "merged_loss", "consensus", "weight_std")  # of methods whose workers differ


class Result(NamedTuple):
    """A way and the folders of its finished runs, by their seeds."""

    way: Way
    runs: dict[int, Path]


def conclude(recipe: Recipe, results: Sequence[Result], ideal: dict[str, Any]) -> dict[str, Any]:
    """The comparison of finished runs. A way's numbers are means over its seeds; ``runs`` has each seed's own.

    When a run reaches the plain way's final loss is asked of the runs of one seed, which saw the same data; the curves
    are of the same held-out batches in all runs, and so is that loss.
    """
    first = plain([result.way for result in results])
    goals = {seed: _final(run) for seed, run in results[first].runs.items()}
    methods = [_entry(result, goals, index == first) for index, result in enumerate(results)]
    ours = methods[first]
    some = next(iter(results[first].runs.values()))
    summary = json.loads((some / "summary.json").read_text())
    reached = [goal for goal, _ in goals.values()]
    comparison: dict[str, Any] = {
        "workload": recipe.workload,
        "workers": recipe.workers,
        "link": summary["link"],
        "measured_on": recipe.on,
        "seconds": recipe.seconds,
        "tokens": recipe.tokens,
        "steps": recipe.steps,
        "seeds": sorted({seed for result in results for seed in result.runs}),
        "plain": ours["name"],
        "goal": spread.mean(reached),
        "ideal": ideal | {"reached_seconds": ours["steps"] * ideal["step_seconds"]},
        "methods": methods,
        "parameters": summary["parameters"],
        "versions": summary["versions"],
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


def verdict(comparison: Mapping[str, Any]) -> str:
    """Which way reaches the plain way's final loss first, how much sooner, how far from the ideal, and by which value.

    Of several seeds it speaks of means, and says what lies within their range.
    """
    return " ".join([_first(comparison), *values(comparison)])


def values(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each swept method: which of its values is best, and which cannot be told from it."""
    swept: dict[str, list[Mapping[str, Any]]] = {}
    for method in comparison["methods"]:
        if method.get("swept"):
            swept.setdefault(str(method["method"]), []).append(method)
    return [_value(name, ways) for name, ways in swept.items() if len(ways) > 1]


def within(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    """Whether two ways' ranges over several seeds meet in a key: then another seed might turn them round."""
    ranges = [way.get("spread", {}).get(key) for way in (a, b)]
    return all(ranges) and spread.overlap(*ranges)


def plain_seconds(comparison: Mapping[str, Any]) -> float:
    """How long the plain way took to its final loss."""
    return float(next(m["seconds"] for m in comparison["methods"] if m["name"] == comparison["plain"]))


def _first(comparison: Mapping[str, Any]) -> str:
    methods, plain, ideal = comparison["methods"], comparison["plain"], comparison["ideal"]
    others = [m for m in methods if m["reached_seconds"] is not None]
    first = min(others, key=lambda m: m["reached_seconds"], default=None)
    where = f"{plain}'s final held-out loss"
    if first is None:
        return f"No way reaches {where}."
    seeds = len(first.get("runs", (None,)))
    rate = first["steps"] / first["seconds"] / ideal["steps_per_second"]
    drifted = " (over 100%: the machine was quicker then than while the ideal was measured)" if rate >= OVER else ""
    pace = f"It trains at {units.share(rate)} of the no-network ideal's steps a second{drifted}"
    waiting = f"and waits {units.share(first['seconds_waiting'] / first['seconds'])} of its time."
    if len(methods) == 1:
        return f"{first['name']} is alone here. {pace} {waiting}"
    if first["name"] == plain:
        close = _close(first, others, seeds)
        return f"{plain} itself is the first to reach {where}: on this link no other way pays.{close} {pace} {waiting}"
    sooner = f"{units.factor(first['speedup'])} sooner than {plain} ({units.duration(plain_seconds(comparison))})"
    after = units.duration(first["reached_seconds"])
    if seeds > 1:
        after += f" in the mean of {seeds} seeds ({_range(first, 'reached_seconds', units.duration)})"
    without = f"{plain} without a network would take {units.duration(ideal['reached_seconds'])}."
    close = _close(first, others, seeds)
    return f"{first['name']} pays: it reaches {where} after {after}, {sooner}; {without}{close} {pace} {waiting}"


def _close(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Which other ways lie within the seeds' range of the first; "" for one seed, which has none."""
    near = [m for m in others if m is not first and within(first, m, "reached_seconds")]
    if not near:
        return ""
    told = ", ".join(f"{m['name']} ({units.duration(m['reached_seconds'])})" for m in near)
    return f" Within the spread of {seeds} seeds, so not told apart from it: {told}."


def _value(name: str, ways: Sequence[Mapping[str, Any]]) -> str:
    reaching = [way for way in ways if way["reached_seconds"] is not None]
    key, show = ("reached_seconds", units.duration) if reaching else ("eval_loss", units.loss)
    ranked = sorted((way for way in ways if way.get(key) is not None), key=lambda way: float(way[key]))
    if not ranked:
        return f"None of {name}'s {len(ways)} values was evaluated."
    best, *rest = ranked
    label = _label(best)
    others = [f"{_label(way)} {show(way[key])}{' (within the spread)' * within(best, way, key)}" for way in rest[:3]]
    others += [f"{len(rest) - 3} more"] * (len(rest) > 3)
    never = [_label(way) for way in ways if reaching and way["reached_seconds"] is None]
    told = f" ({', '.join(others)})" if others else ""
    told += f"; not reached with {', '.join(never)}" if never else ""
    reason = "reaches it first" if reaching else "ends lowest"
    return f"Of {name}'s {len(ways)} values {label} {reason}: {show(best[key])}{told}."


def _label(way: Mapping[str, Any]) -> str:
    return str(way["name"]).removeprefix(f"{way['method']} ")


def _range(way: Mapping[str, Any], key: str, show: Any) -> str:
    low, high = way["spread"][key]
    return f"{show(low)} to {show(high)}"


def plain(ways: Sequence[Way]) -> int:
    """The way that the others are held against: ddp, else the first."""
    return next((i for i, way in enumerate(ways) if way.method == PLAIN), 0)


def _entry(result: Result, goals: Mapping[int, tuple[float, float]], first: bool) -> dict[str, Any]:
    """One way of the comparison: the means over its seeds, their ranges, and each seed's run."""
    way, runs = result.way, [_run(seed, run, goals.get(seed), first) for seed, run in result.runs.items()]
    folder = next(iter(result.runs.values()))
    several = folder.name.startswith("seed-")
    entry = {"name": way.name, **{key: spread.mean([run[key] for run in runs]) for key in (*KEYS, *SECONDS)}}
    entry |= {key: spread.mean([run[key] for run in runs]) for key in APART if all(key in run for run in runs)}
    reached = [run["reached_seconds"] for run in runs]
    wire = [run["wire_bytes"] for run in runs]
    entry["folder"] = folder.parent.name if several else folder.name
    entry["wire_bytes"] = None if None in wire else [spread.mean(sent) for sent in zip(*wire, strict=True)]
    entry["reached_seconds"] = None if None in reached else spread.mean(reached)
    entry["speedup"] = None
    if entry["reached_seconds"]:
        entry["speedup"] = sum(goals[run["seed"]][1] for run in runs) / sum(reached)
    entry["curve_loss"] = spread.mean([run["curve_loss"] for run in runs])
    entry |= {"method": way.method, "settings": way.settings, "swept": way.swept, "inner_lr": way.rate}
    entry["reached_runs"] = sum(at is not None for at in reached)
    entry["spread"] = spread.ranges(runs, RANGED) if len(runs) > 1 else {}
    entry["runs"] = runs
    return entry


def _run(seed: int, folder: Path, goal: tuple[float, float] | None, first: bool) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    curve = _curve(folder)
    where = folder.relative_to(folder.parent.parent) if folder.name.startswith("seed-") else Path(folder.name)
    run: dict[str, Any] = {"seed": seed, **{key: summary[key] for key in (*KEYS, *SECONDS)}, "folder": str(where)}
    run |= {key: summary[key] for key in APART if key in summary}
    run["wire_bytes"] = _wire(folder)
    run["curve_loss"] = curve[-1][1] if curve else None
    run["reached_seconds"] = run["speedup"] = None
    if goal is not None:  # the plain way has a run of this seed
        run["reached_seconds"] = goal[1] if first else first_reach(curve, goal[0])
        run["speedup"] = goal[1] / run["reached_seconds"] if run["reached_seconds"] else None
    return run


def _final(run: Path) -> tuple[float, float]:
    """The held-out loss in which the plain way's run ended, on its curve's batches, and its seconds."""
    curve = _curve(run)
    return (
        curve[-1][1] if curve else math.nan,
        float(json.loads((run / "summary.json").read_text())["seconds"]),
    )


def _curve(run: Path) -> list[tuple[float, float]]:
    if not (run / "evals.jsonl").exists():
        return []
    columns = read_lines(run / "evals.jsonl")
    return list(zip(columns.get("seconds", []), columns.get("eval_loss", []), strict=True))


def _wire(run: Path) -> list[int] | None:
    path = run / "wire.json"
    return json.loads(path.read_text())["sent_bytes"] if path.exists() else None
