"""The report as one HTML page: text, tables, and places for the charts, with all it needs inside.

Everything from a run's files goes through :func:`escaped` or, inside a script block, :func:`embedded`. The page's own
content security policy allows no request at all and no script but the two it names by their hashes: what a hostile
file smuggled in would not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from laconic.bench import table, units
from laconic.bench.report_charts import SECONDS, Chart, Line, seconds_split
from laconic.bench.runs import last

HOW_TO_READ = (
    "Each line is one way to train; those of one comparison start from the same model "
    "and see the same data. <b>Over time</b> is what you wait for: the lowest "
    "curve at a given second is the best use of this network. <b>Over tokens</b> takes the network away: it shows "
    "what a method’s shortcuts cost in learning. <b>Over bytes sent</b> is what a metered or shared link pays. "
    "<b>Waiting</b> is the share of the time in which a worker could do nothing but wait for others; <b>of the "
    "ideal</b> is its pace against the same training with no network between the workers. A difference in loss smaller "
    "than what another seed would make is no difference."
)
ALONE = (
    "<b>Over time</b> is what you wait for, <b>over tokens</b> how well it learns from what it sees, <b>over bytes "
    "sent</b> what the link pays. <b>Waiting</b> is the share of the time in which the worker could do nothing but "
    "wait for others: what a better method, or a better link, could win back."
)


def page(
    *,
    title: str,
    facts: str,
    verdicts: Sequence[str],
    warnings: Sequence[str],
    tables: Sequence[tuple[Mapping[str, Any], Sequence[Line | None]]],
    drawn: Sequence[Line],
    charts: Sequence[Chart],
    split: Chart,
    data: Any,
    plotly_js: str,
) -> str:
    """The whole page; ``tables`` has each table's methods, as in a comparison, and the line of each."""
    script = files("laconic.bench").joinpath("report.js").read_text("utf-8")
    style = files("laconic.bench").joinpath("report.css").read_text("utf-8")
    plotly_js = plotly_js.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it, or the hash would differ
    policy = (
        f"default-src 'none'; script-src {_hash(plotly_js)} {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    specs = [
        {"key": c.key, "figure": c.figure, "views": c.views, "owners": c.owners}
        for c in (*charts, split)
        if c.figure["data"]
    ]
    body = "\n".join(
        [
            f"<header><h1>{escaped(title)}</h1>",
            f'<p class="facts">{escaped(facts)}</p>' if facts else "",
            *(f'<p class="verdict">{escaped(verdict)}</p>' for verdict in verdicts),
            *(f'<p class="stopped">{escaped(warning)}</p>' for warning in warnings),
            "</header>",
            '<section><h2 id="results">Results</h2>',
            *(_results(summary, owners) for summary, owners in tables),
            "</section>",
            _loss_section(drawn, charts),
            _split_section(drawn, split),
            _predictions(drawn),
            f'<section><h2>How to read this</h2><p class="reading">{HOW_TO_READ if len(drawn) > 1 else ALONE}</p>'
            "</section>",
            _makings(drawn),
            "<footer>Written by <code>laconic report</code>. The page holds all it shows: nothing is loaded from "
            "anywhere, and the numbers are in it as JSON, in the script element <code>laconic-data</code>.</footer>",
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="laconic">
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="laconic-data">{embedded(data)}</script>
<script type="application/json" id="laconic-charts">{embedded(specs)}</script>
<script>{plotly_js}</script>
<script>{script}</script>
</body>
</html>
"""


def escaped(value: object) -> str:
    """Text for the page, whatever is in it."""
    return html.escape(str(value), quote=True)


def embedded(value: Any) -> str:
    """JSON for a script element, which no text inside it can end; NaN and infinities as ``"NaN"``, ``"Infinity"``."""
    text = json.dumps(_strict(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _results(summary: Mapping[str, Any], owners: Sequence[Line | None]) -> str:
    methods = summary.get("methods") or []
    columns = table.columns(summary)
    winners = [table.winner(column, methods) for column in columns]
    head = ["Method", *(column.title for column in columns)]
    rows = []
    for i, (method, line) in enumerate(zip(methods, owners, strict=True)):
        name = escaped(line.label if line else method.get("name", units.NOTHING))
        cells = "".join(_cell(c, method, w == i) for c, w in zip(columns, winners, strict=True))
        rows.append(f'<tr><th scope="row">{_swatch(line) if line else ""}{name}</th>{cells}</tr>')
    about = table.note(summary)
    heading = summary.get("heading")
    return (
        (f"<h3>{escaped(heading)}</h3>" if heading else "")
        + _table(head, rows, "numbers", "Results of each method")
        + (f'<p class="note">{escaped(about[0].upper() + about[1:])}. </p>' if about else "")
    )


def _cell(column: table.Column, method: table.Method, best: bool) -> str:
    spread = column.spread(method)
    below = f'<span class="spread">{escaped(spread)}</span>' if spread else ""
    opening = '<td class="best">' if best else "<td>"
    return f"{opening}{escaped(column.cell(method))}{below}</td>"


def _loss_section(drawn: Sequence[Line], charts: Sequence[Chart]) -> str:
    with_evals = [line for line in drawn if line.run.evals.get("eval_loss")]
    kind = "Held-out loss" if with_evals else "Training loss"
    legend = "".join(
        f'<button type="button" class="method" data-owner="{i}" aria-pressed="true">{_swatch(line)}'
        f"{escaped(line.label)}</button>"
        for i, line in enumerate(drawn)
    )
    views = (
        '<div class="views" role="group" aria-label="Which loss">'
        '<button type="button" data-view="held-out" aria-pressed="true">held-out loss</button>'
        '<button type="button" data-view="training" aria-pressed="false">training loss</button></div>'
    )
    figures = "".join(
        f'<figure aria-labelledby="title-{c.key}" aria-describedby="says-{c.key}"><div class="head">'
        f'<h3 id="title-{c.key}">Loss {escaped(c.title)}</h3>'
        f'<button type="button" class="log" data-chart="{c.key}" aria-pressed="false">log scale</button></div>'
        f'<div class="plot" id="plot-{c.key}"></div>'
        f'<figcaption class="unseen" id="says-{c.key}">{escaped(c.summary)}</figcaption></figure>'
        for c in charts
    )
    without = [line.label for line in drawn if line not in with_evals]
    notes = []
    if with_evals and without:
        notes.append(f"No held-out loss for {', '.join(without)}: dotted is the training loss, smoothed.")
    if not with_evals:
        notes.append("Smoothed; the loss of each step is faint behind it.")
    if several := sorted({len(line.run.seeds) for line in drawn if len(line.run.seeds) > 1}):
        notes.append(
            f"A line is the mean of {several[-1]} seeds, its band goes from the lowest of them to the highest."
        )
    hint = '<span class="note hint">Press a method to hide it; drag in a chart to zoom, double-click to return.</span>'
    return (
        f'<section><h2 id="loss">{kind}</h2><div class="controls">{views if with_evals else ""}'
        f'{legend if len(drawn) > 1 else ""}<span class="gap"></span>{hint if len(drawn) > 1 else ""}</div>'
        f"<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>"
        f'<div class="charts">{figures}</div>'
        + "".join(f'<p class="note">{escaped(note)}</p>' for note in notes)
        + "</section>"
    )


def _split_section(drawn: Sequence[Line], split: Chart) -> str:
    parts = [seconds_split(line.run.summary) for line in drawn]
    used = [(key, name, colour) for key, name, colour in SECONDS if any(p.get(key) for p in parts)]
    if not used:
        return ""
    key = "".join(
        f'<li><span class="swatch box" style="background:{colour}"></span>{name}</li>' for _, name, colour in used
    )
    rows = [
        f'<tr><th scope="row">{escaped(line.label)}</th>'
        + "".join(f"<td>{_part(p, key)}</td>" for key, _, _ in used)
        + f"<td>{units.duration(sum(p.values()))}</td></tr>"
        for line, p in zip(drawn, parts, strict=True)
        if p
    ]
    other = (
        '<p class="note">Other: held-out evaluations, reading data, writing files.</p>'
        if any(k == "other" for k, _, _ in used)
        else ""
    )
    return (
        f'<section><h2 id="seconds">{split.title}</h2><ul class="key">{key}</ul>'
        f'<figure aria-labelledby="seconds" aria-describedby="says-split">'
        f'<div class="plot" id="plot-split" style="height:{split.figure["layout"]["height"]}px"></div>'
        f'<figcaption class="unseen" id="says-split">{escaped(split.summary)}</figcaption></figure>{other}'
        "<details><summary>These numbers as a table</summary>"
        + _table(["Method", *(name.capitalize() for _, name, _ in used), "All"], rows, "numbers", "Seconds spent")
        + "</details></section>"
    )


def _part(parts: Mapping[str, float], key: str) -> str:
    if key not in parts:
        return units.NOTHING
    return f"{units.duration(parts[key])} ({units.share(parts[key] / sum(parts.values()))})"


def _predictions(drawn: Sequence[Line]) -> str:
    rows = []
    for line in drawn:
        predicted = line.run.summary.get("predicted")
        if not isinstance(predicted, Mapping):
            continue
        values = {key: value for key, value in predicted.items() if not math.isnan(units.number(value))}
        heading = f'<th scope="rowgroup" rowspan="{len(values)}">{escaped(line.label)}</th>'
        for key, value in values.items():
            measured = _measured(line.run.summary, str(key))
            off = table.ratio(measured, value) - 1
            rows.append(
                f"<tr>{heading}<td>{escaped(str(key).replace('_', ' '))}</td>"
                f"<td>{escaped(_shown(str(key), value))}</td><td>{escaped(_shown(str(key), measured))}</td>"
                f"<td>{units.NOTHING if math.isnan(off) else _signed(off)}</td></tr>"
            )
            heading = ""
    if not rows:
        return ""
    head = ["Method", "What", "Predicted", "Measured", "Measured is"]
    return (
        '<section><h2 id="predicted">Predicted and measured</h2>'
        '<p class="note">What the plan said before training, and what came.</p>'
        + _table(head, rows, "numbers predicted", "Predicted against measured")
        + "</section>"
    )


def _measured(summary: Mapping[str, Any], key: str) -> float:
    steps, seconds = summary.get("steps"), summary.get("seconds")
    derived = {
        "step_seconds": table.ratio(seconds, steps),
        "seconds_per_step": table.ratio(seconds, steps),
        "steps_per_second": table.ratio(steps, seconds),
        "tokens_per_second": table.ratio(summary.get("tokens"), seconds),
        "bytes_per_step": table.ratio(summary.get("bytes_out"), steps),
        "waiting_share": table.ratio(summary.get("seconds_waiting"), seconds),
    }
    value = units.number(summary.get(key))
    return derived.get(key, math.nan) if math.isnan(value) else value


def _shown(key: str, value: object) -> str:
    if math.isnan(units.number(value)):
        return units.NOTHING
    for part, show in (
        ("per_second", units.rate),
        ("bytes", units.size),
        ("seconds", units.duration),
        ("share", units.share),
        ("loss", units.loss),
    ):
        if part in key:
            return show(value)
    return units.count(value)


def _signed(off: float) -> str:
    return "as predicted" if abs(off) < 0.005 else f"{abs(off):.0%} {'more' if off > 0 else 'less'}"


def _makings(drawn: Sequence[Line]) -> str:
    facts = [_facts(line) for line in drawn]
    keys = list(dict.fromkeys(key for one in facts for key in one))
    shared = [key for key in keys if len({one.get(key) for one in facts}) == 1] if len(drawn) > 1 else []
    out = ['<section><h2 id="made">What made these numbers</h2>']
    if shared:
        out.append(_pairs({key: facts[0][key] for key in shared}))
    for line, one in zip(drawn, facts, strict=True):
        out.append(
            f"<details{' open' if len(drawn) == 1 else ''}><summary>{_swatch(line)}{escaped(line.label)}: "
            f"recipe and run</summary>{_pairs({k: v for k, v in one.items() if k not in shared})}"
            + (
                f"<pre>{escaped(line.run.recipe.strip())}</pre>"
                if line.run.recipe.strip()
                else "<p>No recipe.toml.</p>"
            )
            + _workers(line)
            + "</details>"
        )
    return "".join([*out, "</section>"])


def _facts(line: Line) -> dict[str, str]:
    summary = line.run.summary
    facts = {"command": table.text(summary.get("command")), "folder": line.run.folder.name}
    for key in ("workload", "workers", "link", "measured_on", "seeds", "versions", "machine"):
        facts[key.replace("_", " ")] = table.text(summary.get(key))
    facts["stopped"] = table.text(summary.get("stopped"))
    return {key: value for key, value in facts.items() if value}


def _pairs(facts: Mapping[str, str]) -> str:
    rows = [
        f'<tr><th scope="row">{escaped(key)}</th><td>'
        + (f"<code>{escaped(value)}</code>" if key == "command" else escaped(value))
        + "</td></tr>"
        for key, value in facts.items()
    ]
    return f'<table class="text"><tbody>{"".join(rows)}</tbody></table>' if rows else ""


def _workers(line: Line) -> str:
    if len(line.run.steps) < 2:
        return ""
    shown = (
        ("Steps", "step", units.count),
        ("Sent", "bytes_out", units.size),
        ("Computing", "seconds_computing", units.duration),
        ("Compressing", "seconds_compressing", units.duration),
        ("Waiting", "seconds_waiting", units.duration),
    )
    rows = [
        f'<tr><th scope="row">worker {rank}</th>'
        + "".join(f"<td>{escaped(show(last(columns, key)))}</td>" for _, key, show in shown)
        + "</tr>"
        for rank, columns in line.run.steps.items()
    ]
    return _table(["Worker", *(title for title, _, _ in shown)], rows, "numbers", "Each worker")


def _table(head: Iterable[str], rows: Iterable[str], kind: str, label: str) -> str:
    cells = "".join(f'<th scope="col">{escaped(title)}</th>' for title in head)
    return (
        f'<div class="wide" role="region" aria-label="{escaped(label)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _swatch(line: Line) -> str:
    style = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "double"}[line.dash]
    return f'<span class="swatch" style="border-top:3px {style} {line.colour}" aria-hidden="true"></span>'
