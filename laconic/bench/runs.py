"""Reading what training left behind: a run's folder, or a comparison's folder of runs.

A run that was cut short is still a run. Half a last line is dropped, and a summary that was never written is made from
the steps that were. What is there and cannot be understood is an error that names the file and the line.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laconic.bench import units
from laconic.errors import ConfigError

Columns = dict[str, list[float]]

SPENT = ("seconds_computing", "seconds_compressing", "seconds_waiting")
TOTALS = ("tokens", "seconds", "loss", "bytes_out", "messages_out", *SPENT)
RUN_FILES = "metrics.jsonl, summary.json, recipe.toml"


@dataclass(frozen=True)
class Run:
    """One training run: ``steps`` holds each worker's columns by its rank, ``evals`` the held-out losses.

    All columns of one table are equally long; a value that a line lacks, or gives as ``null``, is NaN. A way that was
    trained with several seeds is one run too: ``seeds`` has theirs, ``summary`` their means, the rest is the first's.
    """

    folder: Path
    summary: dict[str, Any]
    recipe: str = ""
    steps: dict[int, Columns] = field(default_factory=dict)
    evals: Columns = field(default_factory=dict)
    seeds: dict[int, Run] = field(default_factory=dict)

    @property
    def every(self) -> list[Run]:
        """The runs of all seeds, or this one."""
        return list(self.seeds.values()) or [self]

    @property
    def name(self) -> str:
        """What the run calls itself, else its folder's name."""
        return str(self.summary.get("name") or self.folder.name)


@dataclass(frozen=True)
class Comparison:
    """Several methods, side by side: ``summary`` is comparison.json, ``runs`` each method's run, in the same order.

    A method whose run is not there has None in ``runs`` and a sentence in ``missing``; its row in the summary stands.
    """

    folder: Path
    summary: dict[str, Any]
    runs: list[Run | None] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read(folder: Path | str) -> Run | Comparison:
    """A comparison when the folder has a comparison.json, otherwise a run.

    Raises: ConfigError as :func:`read_run` and :func:`read_comparison` do.
    """
    return read_comparison(folder) if (Path(folder) / "comparison.json").exists() else read_run(folder)


def read_run(folder: Path | str) -> Run:
    """Read a run's folder, finished or cut short.

    Raises: ConfigError when the folder is no run, saying what is missing, and for a line that is no JSON object.
    """
    folder = _folder(folder)
    if not (folder / "metrics.jsonl").is_file():
        if (folder / "comparison.json").exists():
            raise ConfigError(f"{folder} is a comparison and not one run; its runs are the folders inside it")
        has = sorted(path.name for path in folder.iterdir())
        raise ConfigError(
            f"{folder} is no run: metrics.jsonl is missing (a run's folder has {RUN_FILES}; "
            f"this one has {', '.join(has[:6]) + (', …' if len(has) > 6 else '') if has else 'nothing'})"
        )
    steps = {0: read_lines(folder / "metrics.jsonl")}
    for path in folder.glob("metrics-*.jsonl"):
        if rank := re.fullmatch(r"metrics-(\d+)\.jsonl", path.name):
            steps[int(rank[1])] = read_lines(path)
    steps = dict(sorted(steps.items()))
    evals = read_lines(folder / "evals.jsonl") if (folder / "evals.jsonl").exists() else {}
    recipe = folder / "recipe.toml"
    return Run(
        folder,
        _summary(folder, steps, evals),
        recipe.read_text("utf-8", "replace") if recipe.exists() else "",
        steps,
        evals,
    )


def read_comparison(folder: Path | str) -> Comparison:
    """Read a comparison's folder and the run of each of its methods.

    Raises: ConfigError when comparison.json is missing, is no JSON object, or lists no methods; and when a run that
    is there cannot be understood. A run that is not there is noted in ``missing``.
    """
    folder = _folder(folder)
    path = folder / "comparison.json"
    if not path.is_file():
        raise ConfigError(f"{folder} is no comparison: comparison.json is missing")
    summary = read_object(path)
    methods = summary.get("methods")
    if not isinstance(methods, list) or not all(isinstance(m, dict) and m.get("name") for m in methods):
        raise ConfigError(f'{path}: "methods" must be a list of objects, each with a "name"')
    runs: list[Run | None] = []
    missing: list[str] = []
    for method in methods:
        name = str(method["name"])
        seeds = method.get("runs")
        listed = seeds if isinstance(seeds, list) and all(isinstance(one, dict) for one in seeds) else []
        several = [one for one in listed if "/" in str(one.get("folder"))]
        found: dict[int, Run] = {}
        for one in several or [method]:
            named = str(one.get("folder") or name)
            where = _run_folder(folder, named)
            if where is None:
                missing.append(f"{name}: its run's folder {named!r} is not there")
            else:
                found[int(units.number(one.get("seed", 0)))] = read_run(where)
        runs.append(_together(found, method) if several else next(iter(found.values()), None))
    return Comparison(folder, summary, runs, missing)


def _together(seeds: dict[int, Run], method: dict[str, Any]) -> Run | None:
    """The runs of one way with several seeds, as one; None if there is none."""
    if not seeds:
        return None
    first = next(iter(seeds.values()))
    stopped = [f"seed {seed}: {run.summary['stopped']}" for seed, run in seeds.items() if run.summary.get("stopped")]
    summary = {**first.summary, **{key: method[key] for key in first.summary if key in method}, "seeds": list(seeds)}
    summary["stopped"] = "; ".join(stopped) or None
    return Run(first.folder.parent, summary, first.recipe, first.steps, first.evals, seeds)


def read_lines(path: Path) -> Columns:
    """A file of JSON objects, one a line, as columns of floats.

    A last line without its newline that is no whole object was being written when the run ended; it is dropped.

    Raises: ConfigError with file and line for any other line that is no JSON object of numbers.
    """
    text = path.read_text("utf-8", "replace")
    lines = text.split("\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline follows
                break
            raise ConfigError(f"{path}, line {number}: no JSON object ({error})") from error
        if not isinstance(row, dict):
            if number == len(lines):
                break
            raise ConfigError(f"{path}, line {number}: a JSON object was expected, this is {line.strip()[:40]!r}")
        for key, value in row.items():
            if value is not None and not isinstance(value, int | float):
                raise ConfigError(f"{path}, line {number}: {key!r} must be a number, not {value!r:.40}")
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [math.nan if row.get(key) is None else units.number(row[key]) for row in rows] for key in keys}


def last(columns: Columns, key: str) -> float | None:
    """The last value of a column, None when there is none."""
    values = columns.get(key)
    return values[-1] if values else None


def _summary(folder: Path, steps: dict[int, Columns], evals: Columns) -> dict[str, Any]:
    if (folder / "summary.json").exists():
        return read_object(folder / "summary.json")
    # Worker 0's own totals, as metrics.jsonl counts them; what only the end of a run knows stays unknown.
    first, at = steps[0], last(steps[0], "step")
    stopped = "before its first step was written" if at is None else f"the last step written is {at:.0f}"
    return {
        "name": folder.name,
        "workers": len(steps),
        "steps": None if at is None or math.isnan(at) else int(at),
        **{key: last(first, key) for key in TOTALS},
        "eval_loss": last(evals, "eval_loss"),
        "predicted": None,
        "versions": {},
        "machine": {},
        "stopped": f"stopped early: there is no summary.json, and {stopped}"
        if at is not None
        else f"stopped early: {stopped}",
    }


def read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: no JSON ({error.msg}, column {error.colno})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a JSON object was expected, this is a {type(value).__name__}")
    return value


def _folder(folder: Path | str) -> Path:
    folder = Path(folder)
    if not folder.exists():
        raise ConfigError(f"{folder}: there is no such folder")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give the run's folder, which has {RUN_FILES}")
    return folder


def _run_folder(comparison: Path, named: str) -> Path | None:
    # By its last part too: a comparison that was moved or copied may name where its runs used to be.
    parts = Path(named).parts
    last = [comparison.joinpath(*parts[-depth:]) for depth in (2, 1)]
    return next((path for path in (comparison / named, *last) if path.is_dir()), None)
