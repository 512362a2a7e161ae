"""What finished runs say about learning: parameters, tokens and held-out loss of each, from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laconic.bench.runs import Comparison, Run, read
from laconic.bench.units import number
from laconic.errors import ConfigError
from laconic.plan.laws import Point


@dataclass(frozen=True)
class Finished:
    """Points of one workload trained one way, and a sentence for each run that is none."""

    workload: str
    method: str
    points: tuple[Point, ...]
    left_out: tuple[str, ...] = ()


def points_of(folders: Sequence[Path], method: str = "") -> Finished:
    """The points of runs and of comparisons' runs; with ``method`` only of those it trained.

    Only ends count: a run that was stopped early, or was not evaluated, is left out and named.

    Raises: ConfigError for a folder that is no run, and where runs of several workloads or methods would be mixed.
    """
    runs = [(folder, run) for folder in folders for run in _runs(folder)]
    chosen = [(folder, run) for folder, run in runs if not method or run.summary.get("name") == method]
    if not chosen:
        names = sorted({str(run.summary.get("name")) for _, run in runs})
        raise ConfigError(f"no run by {method!r} among these; they are by {', '.join(names) or 'nothing'}")
    points, left_out, kinds = [], [], set()
    for _, run in chosen:
        why = _unfit(run.summary)
        if why:
            left_out.append(f"{run.folder}: {why}")
            continue
        told = run.summary
        kinds.add((str(told.get("workload") or "?"), str(told.get("name") or "?")))
        points.append(Point(number(told["parameters"]), number(told["tokens"]), number(told["eval_loss"])))
    if not kinds:
        raise ConfigError("none of these runs has come to an end with a held-out loss: " + "; ".join(left_out[:3]))
    if len(kinds) > 1:
        mixed = ", ".join(f"{workload} by {name}" for workload, name in sorted(kinds))
        raise ConfigError(f"a law is of one workload trained one way, and these are {mixed}; choose by --method")
    workload, name = kinds.pop()
    return Finished(workload, name, tuple(sorted(points)), tuple(left_out))


def _runs(folder: Path) -> list[Run]:
    found = read(folder)
    if isinstance(found, Comparison):
        return [seed for run in found.runs if run is not None for seed in run.every]
    return [found]


def _unfit(told: dict[str, Any]) -> str:
    """Why a run says nothing about the end of training; empty if it does."""
    if told.get("stopped"):
        return str(told["stopped"])
    missing = [key for key in ("parameters", "tokens", "eval_loss") if not number(told.get(key)) > 0]
    return f"its summary has no {' and no '.join(missing)}" if missing else ""
