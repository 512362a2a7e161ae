"""A report: one HTML file that shows what runs cost and what they reached, readable without a network.

``write_report`` reads the folders (:mod:`laconic.bench.runs`), gives each run a label and a colour
(:mod:`laconic.bench.report_charts`), and writes the page (:mod:`laconic.bench.report_page`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.bench import report_charts, report_page, table, units
from laconic.bench.curves import thinned
from laconic.bench.report_charts import Line
from laconic.bench.runs import Comparison, Run, read
from laconic.errors import ConfigError

FORMAT = 1  # of the JSON in the page


def write_report(folders: Sequence[Path | str], out: Path | str | None = None) -> Path:
    """Write one page about all ``folders``, each a run's or a comparison's, and return its path.

    Without ``out``, the page of one folder is its ``report.html``, that of several the current folder's.

    Raises: ConfigError when a folder is neither, when a file in it cannot be understood, and without plotly.
    """
    plotly_js = _plotly_js()
    comparisons, alone = found(folders)
    single = len(comparisons) + len(alone) == 1
    drawn, owners = label(comparisons, alone)
    tables: list[tuple[Mapping[str, Any], Sequence[Line | None]]] = [
        (_headed(c, not single), places) for c, places in zip(comparisons, owners, strict=False)
    ]
    if alone:
        # Only the totals: a run by itself has no plain run beside it to be sooner or later than.
        rows = [{**run.summary, "name": run.name, "reached_seconds": None, "speedup": None} for run in alone]
        tables.append(({"methods": rows, "heading": "Single runs" if comparisons else None}, owners[-1]))
    page = report_page.page(
        title=title(comparisons, alone),
        facts=facts(comparisons, alone),
        verdicts=[table.text(c.summary["verdict"]) for c in comparisons if c.summary.get("verdict")]
        or ([_sentence(alone[0])] if single and alone else []),
        warnings=[
            *(f"{line.label}: {table.text(line.run.summary['stopped'])}" for line in drawn if _stopped(line.run)),
            *(sentence for line in drawn if (sentence := _not_a_number(line))),
            *(sentence for c in comparisons for sentence in c.missing),
        ],
        tables=tables,
        drawn=drawn,
        charts=report_charts.loss_charts(drawn, goal(comparisons)),
        split=report_charts.seconds_chart(drawn),
        data=_data(comparisons, drawn),
        plotly_js=plotly_js,
    )
    home = (comparisons[0] if comparisons else alone[0]).folder if single else Path()
    path = Path(out) if out is not None else home / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, "utf-8", newline="\n")
    return path


def found(folders: Sequence[Path | str]) -> tuple[list[Comparison], list[Run]]:
    """The comparisons and the single runs in some folders.

    Raises: ConfigError when a folder is neither, when a file in it cannot be understood, and without any folder.
    """
    if not folders:
        raise ConfigError("report: give at least one run's folder, such as runs/shakespeare-diloco")
    read_ones = [read(folder) for folder in dict.fromkeys(Path(folder) for folder in folders)]
    comparisons = [one for one in read_ones if isinstance(one, Comparison)]
    return comparisons, [one for one in read_ones if isinstance(one, Run)]


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("report: needs plotly for its charts; install it with: pip install 'plotly>=5.24'") from error
    return str(get_plotlyjs())


def label(comparisons: Sequence[Comparison], alone: Sequence[Run]) -> tuple[list[Line], list[list[Line | None]]]:
    """One label a run, unlike all others: its name, or its name and folder where two share one; and each table's."""
    groups = [c.runs for c in comparisons] + ([list[Run | None](alone)] if alone else [])
    names = {id(run): run.name for run in alone}
    for c in comparisons:
        names |= {id(run): str(method["name"]) for method, run in zip(c.summary["methods"], c.runs, strict=True)}
    runs = [run for group in groups for run in group if run is not None]
    taken = Counter(names[id(run)] for run in runs)
    labels: list[str] = []
    for run in runs:
        name = names[id(run)]
        label = name if taken[name] == 1 else f"{name} ({run.folder.parent.name}/{run.folder.name})"
        labels.append(label if label not in labels else f"{label} {len(labels) + 1}")
    drawn = report_charts.lines(list(zip(labels, runs, strict=True)))
    by_run = {id(line.run): line for line in drawn}
    return drawn, [[by_run[id(run)] if run is not None else None for run in group] for group in groups]


def _headed(comparison: Comparison, among_others: bool) -> Mapping[str, Any]:
    heading = f"{comparison.folder.name}: {table.subtitle(comparison.summary)}" if among_others else None
    return {**comparison.summary, "heading": heading}


def title(comparisons: Sequence[Comparison], alone: Sequence[Run]) -> str:
    if len(comparisons) == 1 and not alone:
        summary = comparisons[0].summary
        on = f" on {table.workload(summary)}" if summary.get("workload") else ""
        ways = len(summary["methods"])
        return f"{ways} way{'s' * (ways != 1)} to train{on}"
    if len(alone) == 1 and not comparisons:
        on = f" on {table.workload(alone[0].summary)}" if alone[0].summary.get("workload") else ""
        return f"{alone[0].name}{on}"
    runs = len(alone) + sum(run is not None for c in comparisons for run in c.runs)
    return f"{runs} runs side by side"


def facts(comparisons: Sequence[Comparison], alone: Sequence[Run]) -> str:
    if len(comparisons) + len(alone) == 1:
        summary = comparisons[0].summary if comparisons else {**alone[0].summary, "seconds": None, "tokens": None}
        return table.subtitle({**summary, "workload": None})
    # What all of them share; that they differ in the rest is for the tables to say.
    summaries = [c.summary for c in comparisons] + [r.summary for r in alone]
    keys = ("workload", "workers", "link", "measured_on")
    same = {k: summaries[0].get(k) for k in keys if len({table.text(s.get(k)) for s in summaries}) == 1}
    return table.subtitle(same)


def _sentence(run: Run) -> str:
    summary = run.summary
    loss = (
        f", to a held-out loss of {units.loss(summary['eval_loss'])}"
        if summary.get("eval_loss") is not None
        else f", to a training loss of {units.loss(summary['loss'])}"
        if summary.get("loss") is not None
        else ""
    )
    waiting = table.ratio(summary.get("seconds_waiting"), summary.get("seconds"))
    waited = f", {units.share(waiting)} of it waiting" if not math.isnan(waiting) else ""
    return (
        f"{units.count(summary.get('steps'))} steps in {units.duration(summary.get('seconds'))}{waited}{loss}; "
        f"{units.size(summary.get('bytes_out'))} sent."
    )


def _not_a_number(line: Line) -> str:
    found = []
    for seed, run in (line.run.seeds or {-1: line.run}).items():
        steps = run.steps.get(0, {})
        bad = [i for i, loss in enumerate(steps.get("loss", [])) if not math.isfinite(loss)]
        if bad:
            at = steps["step"][bad[0]] if "step" in steps else bad[0] + 1
            of = f" of seed {seed}" if seed >= 0 else ""
            found.append(f"not a finite number in {units.count(len(bad))} steps{of}, first in step {at:.0f}")
    return f"{line.label}: its loss is {', and '.join(found)}" if found else ""


def _stopped(run: Run) -> bool:
    return bool(run.summary.get("stopped"))


def goal(comparisons: Sequence[Comparison]) -> tuple[str, float] | None:
    plain = table.plain_method(comparisons[0].summary) if len(comparisons) == 1 else None
    if plain is None:
        return None
    # Of the curves' own batches, which may be fewer than those of the table's loss.
    goal = units.number(comparisons[0].summary.get("goal"))
    return str(plain["name"]), units.number(plain.get("eval_loss")) if math.isnan(goal) else goal


def _data(comparisons: Sequence[Comparison], drawn: Sequence[Line]) -> dict[str, Any]:
    runs = []
    for line, seed, run in [(one, seed, run) for one in drawn for seed, run in _seeds(one)]:
        steps = run.steps.get(0, {})
        loss = steps.get("loss", [])
        places = [int(i) for i in thinned(range(len(loss)), loss)[0]]
        runs.append(
            {
                "label": line.label,
                **({"seed": seed} if seed is not None else {}),
                "folder": run.folder.name if seed is None else f"{run.folder.parent.name}/{run.folder.name}",
                "summary": run.summary,
                "recipe": run.recipe,
                "steps": {
                    key: [column[i] for i in places] for key, column in steps.items() if len(column) == len(loss)
                },
                "evals": run.evals,
            }
        )
    return {"laconic_report": FORMAT, "comparisons": [c.summary for c in comparisons], "runs": runs}


def _seeds(line: Line) -> list[tuple[int | None, Run]]:
    return list(line.run.seeds.items()) or [(None, line.run)]
