"""The charts of a report, as plotly figures in plain dicts: losses over time, tokens and bytes; where seconds went.

Plotly reads a little HTML in its texts, so a name that comes from a file is escaped here as on the page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from laconic.bench import units
from laconic.bench.curves import held_out, pair, thinned, training
from laconic.bench.runs import Run
from laconic.bench.spread import Band

# Apart from each other for the colour-blind too, and readable on white and on near-black.
COLOURS = ("#3d7fc9", "#e07b1a", "#2a9d73", "#c8498f", "#8266d4", "#a88a00", "#2aa3b8", "#b0553f")
DASHES = ("solid", "dash", "dot", "dashdot")  # from the ninth method on, colours come again in the next dash
SECONDS = (
    ("seconds_computing", "computing", "#4577a9"),
    ("seconds_compressing", "compressing", "#c98a1b"),
    ("seconds_waiting", "waiting", "#c0504a"),
    ("other", "other", "#8b9097"),
)


class Axis(NamedTuple):
    """What a loss is drawn against: a column of the metrics, and how it is named and read."""

    column: str
    key: str
    title: str
    label: str
    hover: str
    say: Callable[[object], str]


AXES = (
    Axis("seconds", "seconds", "over time", "seconds since training began", "%{x:,.1f} s", units.duration),
    Axis("tokens", "tokens", "over tokens", "tokens, all workers together", "%{x:.4s} tokens", units.count),
    Axis("bytes_out", "bytes", "over bytes sent", "bytes sent by one worker", "%{x:.4s}B sent", units.size),
)


class Line(NamedTuple):
    """A run as it appears on the page: its label, unlike any other's, and how its curves are drawn."""

    label: str
    run: Run
    colour: str
    dash: str


class Chart(NamedTuple):
    """A figure with what is said about it: ``views`` and ``owners`` tell each trace's view and its line's place."""

    key: str
    title: str
    figure: dict[str, Any]
    views: list[str]
    owners: list[int]
    summary: str


def lines(labelled: Sequence[tuple[str, Run]]) -> list[Line]:
    """Each run with its colour, in order."""
    n = len(COLOURS)
    return [Line(label, run, COLOURS[i % n], DASHES[i // n % len(DASHES)]) for i, (label, run) in enumerate(labelled)]


def loss_charts(drawn: Sequence[Line], goal: tuple[str, float] | None = None) -> list[Chart]:
    """The loss against seconds, tokens and bytes.

    Each chart has two views. "held-out" is a run's held-out losses where it has some, else its smoothed training
    loss, dotted; "training" is every run's training loss, smoothed, with the raw one faint behind it. ``goal`` is a
    method and its final held-out loss, drawn as the level that the others are to reach.
    """
    return [_loss_chart(drawn, goal, axis) for axis in AXES]


def seconds_chart(drawn: Sequence[Line]) -> Chart:
    """Stacked bars: each run's seconds computing, compressing, waiting, and the rest."""
    split = [seconds_split(line.run.summary) for line in drawn]
    scale, unit = time_unit(max((sum(parts.values()) for parts in split), default=0.0))
    labels = [html.escape(line.label) for line in drawn]
    traces: list[dict[str, Any]] = []
    for key, name, colour in SECONDS:
        values = [parts.get(key, 0.0) for parts in split]
        if not any(values):
            continue
        shares = [v / sum(parts.values()) if v else 0.0 for v, parts in zip(values, split, strict=True)]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": [value / scale for value in values],
                "y": list(range(len(labels))),  # places, not labels: two that begin alike must not be one bar
                "text": [units.share(s) if s >= 0.04 else "" for s in shares],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "constraintext": "none",
                "textfont": {"color": "#ffffff", "size": 12},
                "marker": {"color": colour, "line": {"width": 0}},
                "customdata": [
                    [label, units.duration(v), units.share(s)]
                    for label, v, s in zip(labels, values, shares, strict=True)
                ],
                "hovertemplate": "%{customdata[0]}<br>%{fullData.name}: %{customdata[1]}, %{customdata[2]}"
                "<extra></extra>",
            }
        )
    layout = {
        "barmode": "stack",
        "height": 74 + 38 * len(drawn),
        "bargap": 0.28,
        "xaxis": {"title": {"text": unit}, "zeroline": False, "fixedrange": True},
        "yaxis": {
            "tickvals": list(range(len(labels))),
            "ticktext": labels,
            "range": [len(labels) - 0.5, -0.5],
            "automargin": True,
            "fixedrange": True,
        },
        "margin": {"l": 8, "r": 14, "t": 4, "b": 44},
        "showlegend": False,
        "meta": {"short": [html.escape(shortened(line.label)) for line in drawn]},  # for a narrow screen
    }
    summary = "; ".join(
        f"{line.label}: "
        + (", ".join(f"{name} {units.share(p[k] / sum(p.values()))}" for k, name, _ in SECONDS if k in p) or "unknown")
        for line, p in zip(drawn, split, strict=True)
    )
    return Chart("split", "Where the seconds went", {"data": traces, "layout": layout}, [], [], summary)


def seconds_split(summary: Mapping[str, Any]) -> dict[str, float]:
    """A run's seconds by what they were spent on; what is not accounted for is ``other``; unknown ones are left out."""
    parts = {key: units.number(summary.get(key)) for key, _, _ in SECONDS[:3]}
    parts = {key: value for key, value in parts.items() if math.isfinite(value) and value >= 0}
    rest = units.number(summary.get("seconds")) - sum(parts.values())
    if parts and math.isfinite(rest) and rest > 0.001 * sum(parts.values()):
        parts["other"] = rest
    return parts if sum(parts.values()) > 0 else {}


def tint(colour: str) -> str:
    """A line's colour as that of the band around it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def time_unit(longest: float) -> tuple[float, str]:
    """The seconds in, and the name of, the unit in which a time axis this long has readable numbers."""
    return (1.0, "seconds") if longest < 600 else (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


def shortened(label: str, letters: int = 16) -> str:
    """The label's beginning, where there is no room for all of it."""
    return label if len(label) <= letters else label[: letters - 1] + "…"


def _loss_chart(drawn: Sequence[Line], goal: tuple[str, float] | None, axis: Axis) -> Chart:
    traces: list[dict[str, Any]] = []
    views: list[str] = []
    owners: list[int] = []

    def draw(view: str, owner: int, curve: Band, what: str, **style: Any) -> None:
        if curve.low != curve.high:
            edge = [*curve.x, *reversed(curve.x)], [*curve.high, *reversed(curve.low)]
            fill: dict[str, Any] = {"fill": "toself", "fillcolor": tint(drawn[owner].colour), "mode": "lines"}
            add(view, owner, *edge, what="", line={"width": 0}, hoverinfo="skip", **fill)
        add(view, owner, curve.x, curve.mean, what, **style)

    def add(view: str, owner: int, x: Sequence[float], y: Sequence[float], what: str, **style: Any) -> None:
        few = len(y) <= 40
        label = html.escape(drawn[owner].label)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if few and "opacity" not in style else "lines",
                "name": label,
                "x": _drawable([value / scale for value in x]),
                "y": _drawable(y),
                "marker": {"size": 5},
                "hovertemplate": f"%{{fullData.name}}<br>{what} %{{y:.4~g}}<br>{axis.hover}<extra></extra>",
                **style,
            }
        )
        views.append(view)
        owners.append(owner)

    every = [one for line in drawn for one in line.run.every]
    longest = max((x for one in every for x in pair(one.steps.get(0, {}), axis.column, "loss")[0]), default=0.0)
    scale, unit = time_unit(longest) if axis.key == "seconds" else (1.0, "")
    if unit:
        axis = axis._replace(label=f"{unit} since training began", hover=f"%{{x:,.4~g}} {unit}")
    some_held_out = any(one.evals.get("eval_loss") for one in every)
    ends = []
    for i, line in enumerate(drawn):
        full = {"color": line.colour, "width": 2, "dash": line.dash}
        held, smooth = held_out(line.run, axis.column), training(line.run, axis.column)
        raw = [thinned(*pair(one.steps.get(0, {}), axis.column, "loss")) for one in line.run.every]
        faint: dict[str, Any] = {"line": {**full, "width": 1, "dash": "solid"}, "hoverinfo": "skip"}
        faint["opacity"] = 0.28 / math.sqrt(len(raw))
        if held.mean:
            draw("held-out", i, held, what="held-out loss", line=full)
        else:
            for curve in raw:
                add("held-out", i, *curve, what="", **faint)
            dotted = {**full, "dash": "dot" if some_held_out else line.dash}
            draw("held-out", i, smooth, what="training loss, smoothed", line=dotted)
        for curve in raw:
            add("training", i, *curve, what="", **faint)
        draw("training", i, smooth, what="training loss, smoothed", line=full)
        shown = held if held.mean else smooth
        if shown.mean:
            ends.append((i, line.label, shown.x[-1], shown.mean[-1]))
    for trace in traces:
        if trace.get("hoverinfo") == "skip":
            del trace["hovertemplate"]
    summary = "; ".join(f"{label} ends at {units.loss(y)} after {axis.say(x)}" for _, label, x, y in ends)
    steep = _wide([v for t in traces for v in t["y"] if v is not None], 30)
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": axis.label},
            "type": "log" if _wide([x for *_, x, _ in ends], 10) and axis.key == "bytes" else "linear",
            "zeroline": False,
            "exponentformat": "SI",
            **({"ticksuffix": "B", "minexponent": 2} if axis.key == "bytes" else {}),
        },
        "yaxis": {
            "title": {"text": "loss"},
            "type": "log" if steep else "linear",
            "zeroline": False,
            "automargin": True,
            **({"dtick": "D2"} if steep else {}),  # 1, 2, 5, 10 and not every digit
        },
        "margin": {"l": 52, "r": 12, "t": 8, "b": 46},
        "showlegend": False,
        "hovermode": "closest",
    }
    if goal is not None and math.isfinite(goal[1]):
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": goal[1],
                "y1": goal[1],
                "line": {"width": 1, "dash": "dot"},
                "label": {
                    "text": f"where {html.escape(goal[0])} ended",
                    # Where the curves are not: plain's own ends at the right of the first, the last is log.
                    "textposition": "start" if axis.key == "bytes" else "end",
                    "yanchor": "top" if axis.key == "seconds" else "bottom",
                    "font": {"size": 11},
                },
            }
        ]
    return Chart(axis.key, axis.title, {"data": traces, "layout": layout}, views, owners, summary)


def _drawable(values: Sequence[float]) -> list[float | None]:
    # JSON has neither NaN nor infinity; plotly leaves a gap where there is nothing.
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in values]


def _wide(values: Sequence[float], times: float) -> bool:
    return bool(values) and min(values) > 0 and max(values) > times * min(values)
