"""The table of a comparison: one row a method, the same cells in a terminal and on a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from laconic.bench import units

if TYPE_CHECKING:
    from rich.table import Table

Method = Mapping[str, Any]
OVER = 1.005  # of the ideal: from here on it is shown as more than 100 %


class Column(NamedTuple):
    """One column: its heading on a page, its short heading in a terminal, and a method's cell."""

    title: str
    short: str
    cell: Callable[[Method], str]
    value: Callable[[Method], float]
    best: Callable[[list[float]], float] | None = None  # which of the values to set off, if any
    spread: Callable[[Method], str] = lambda method: ""  # over several seeds: a second line of the cell
    wide: bool = False  # for a page; a terminal has no room, and its note says it in words


def columns(comparison: Mapping[str, Any]) -> list[Column]:
    """The columns, without those that no method has a value for."""
    methods = comparison.get("methods") or []
    held_out = any(_there(m, "eval_loss") for m in methods)
    ideal = ideal_steps_per_second(comparison)

    def waiting(m: Method) -> float:
        return ratio(m.get("seconds_waiting"), m.get("seconds"))

    def of_ideal(m: Method) -> float:
        return ratio(ratio(m.get("steps"), m.get("seconds")), ideal)

    def reach(m: Method) -> str:
        if not _there(m, "reached_seconds"):
            return "not reached" if not m.get("reached_runs") else f"{m['reached_runs']} of {len(m['runs'])} seeds"
        sooner = f", {units.factor(m['speedup'])}" if _there(m, "speedup") else ""
        return units.duration(m["reached_seconds"]) + sooner

    made = [
        Column(
            "Held-out loss" if held_out else "Training loss",
            "held-out\nloss" if held_out else "training\nloss",
            lambda m: shown_loss(m, held_out),
            lambda m: units.number(m.get("eval_loss" if held_out else "loss")),
            min if held_out else None,  # one step's training loss is mostly its batch's luck
            _ranged("eval_loss" if held_out else "loss", units.loss),
        ),
        Column(
            "Workers’ own loss, and their mean’s",
            "own >\nmerged",
            apart,
            lambda m: units.number(m.get("merged_loss")),
            wide=True,
        ),
        _plain("tokens", "Tokens", "tokens", units.count),
        _plain("steps", "Steps", "steps", units.count)._replace(wide=any(math.isfinite(_off_plan(m)) for m in methods)),
        _plain("seconds", "Time", "time", units.duration),
        _plain("bytes_out", "Sent", "sent", units.size),
        Column("Waiting", "wait-\ning", lambda m: _share(waiting(m)), waiting),
        Column("Of the ideal’s steps/s", "of\nideal", lambda m: _share(of_ideal(m)), of_ideal),
        Column("A step’s time, beside what was predicted", "off\nplan", lambda m: _signed(_off_plan(m)), _off_plan),
        Column(
            "Reaches the plain loss after, ×\u00a0sooner",
            "plain's loss\nafter",
            reach,
            lambda m: units.number(m.get("reached_seconds")),
            spread=_ranged("reached_seconds", units.duration),
        ),
    ]
    return [c for c in made if c is made[0] or any(not math.isnan(c.value(m)) for m in methods)]


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """The comparison as a table for the terminal: fits in 100 columns, and folds method names to fit in 80.

    The best held-out loss is bold. A loss marked † is a training loss, in a column of held-out ones.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    methods = comparison.get("methods") or []
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title=Text(subtitle(comparison)) if subtitle(comparison) else None,
        title_justify="left",
        title_style="bold",
        caption=Text(note(comparison)) if note(comparison) else None,
        caption_justify="left",
    )
    table.add_column("method", overflow="fold", min_width=8)
    chosen = [column for column in columns(comparison) if not column.wide]
    for column in chosen:
        table.add_column(column.short, justify="right", no_wrap=True, vertical="top")
    winners = [winner(column, methods) for column in chosen]
    for row, method in enumerate(methods):
        cells = [
            Text(column.cell(method), style="bold" if winners[i] == row else "").append(
                _second(column.spread(method)), style="not bold dim"
            )
            for i, column in enumerate(chosen)
        ]
        table.add_row(Text(str(method.get("name", units.NOTHING))), *cells)
    return table


def subtitle(comparison: Mapping[str, Any]) -> str:
    """What was compared, in a line: workload, workers, link, budget, where it was measured."""
    workers = comparison.get("workers")
    parts = [
        workload(comparison),
        f"{workers} worker{'' if workers == 1 else 's'}" if workers else "",
        text(comparison.get("link")),
        f"{units.duration(comparison['seconds'])} each" if _there(comparison, "seconds") else "",
        f"{units.count(comparison['tokens'])} tokens each" if _there(comparison, "tokens") else "",
        f"{units.count(comparison['steps'])} steps each" if _there(comparison, "steps") else "",
        _where(comparison),
    ]
    return ", ".join(part for part in parts if part)


def _where(comparison: Mapping[str, Any]) -> str:
    where = comparison.get("measured_on")
    if where != "simulated":
        return f"measured on {text(where)}" if where else ""
    step = (comparison.get("ideal") or {}).get("step_seconds")
    return f"simulated, a step computing for {units.duration(step)}"


def note(comparison: Mapping[str, Any]) -> str:
    """What the table's marks mean."""
    methods = comparison.get("methods") or []
    parts = []
    if ideal := ideal_steps_per_second(comparison):
        parts.append(f"ideal: no network at all, {units.rate(ideal, 'steps')}{_measured(comparison)}")
        if any(ratio(ratio(m.get("steps"), m.get("seconds")), ideal) >= OVER for m in methods):
            parts.append("over 100%: the machine was quicker then than while the ideal was measured")
    if any(math.isfinite(_off_plan(m)) for m in methods):
        parts.append("off plan: how much longer a step took than was predicted")
    if _of_fewer_batches(methods):
        parts.append("plain's loss is asked of the curves, on fewer held-out batches than the loss column")
    seeds = comparison.get("seeds") or []
    if len(seeds) > 1:
        below = "below them the lowest and the highest where they differ"
        parts.append(f"means of {len(seeds)} seeds ({text(seeds)}), {below}")
        few = [f"{m['name']} of {len(m['runs'])}" for m in methods if 0 < len(m.get("runs") or []) < len(seeds)]
        parts += [f"fewer: {text(few)}"] if few else []
    held_out = any(_there(m, "eval_loss") for m in methods)
    if held_out and any(shown_loss(m, held_out).endswith("†") for m in methods):
        parts.append("†: training loss, none was held out")
    differ = [f"{m['name']} {apart(m)}" for m in methods if _there(m, "merged_loss")]
    parts += [f"loss of the workers' own weights > of their mean: {', '.join(differ)}"] if differ else []
    if unfinished := comparison.get("unfinished"):
        parts.append(
            f"not finished: {len(unfinished)} run{'s' * (len(unfinished) > 1)}; go on with laconic compare --resume"
        )
    parts += [f"failed: {text(one)}" for one in comparison.get("failed") or []]
    return "; ".join(parts)


def _measured(comparison: Mapping[str, Any]) -> str:
    """The slowest and quickest pace of an ideal that was measured several times."""
    measured = comparison["ideal"].get("measured")
    steps = [ratio(1, m.get("step_seconds")) for m in measured or [] if isinstance(m, Mapping)]
    if len(steps) < 2 or not all(map(math.isfinite, steps)):
        return ""
    low, high = (units.rate(end).removesuffix("/s") for end in (min(steps), max(steps)))
    return f" ({low} to {high} in {len(steps)} measurements)" if low != high else ""


def _of_fewer_batches(methods: Sequence[Method]) -> bool:
    """Whether the curves' last points differ from the held-out losses, which are of all batches."""
    both = [(m["curve_loss"], m["eval_loss"]) for m in methods if _there(m, "curve_loss") and _there(m, "eval_loss")]
    return any(curve != whole for curve, whole in both)


def _ranged(key: str, show: Callable[[object], str]) -> Callable[[Method], str]:
    def spread(method: Method) -> str:
        between = (method.get("spread") or {}).get(key)
        low, high = (show(end) for end in between or ("", ""))
        return f"{low}–{high}" if low != high else ""

    return spread


def _second(line: str) -> str:
    return f"\n{line}" if line else ""


def winner(column: Column, methods: list[Method]) -> int | None:
    """The row to set off in a column, None when nothing is to be told apart."""
    values = [column.value(m) for m in methods]
    finite = [v for v in values if math.isfinite(v)]
    if column.best is None or len(values) < 2 or not finite:
        return None
    return values.index(column.best(finite))


def shown_loss(method: Method, held_out: bool) -> str:
    """A method's loss, marked † where a held-out one is wanted and only the training loss is known."""
    if not held_out:
        return units.loss(method.get("loss"))
    if _there(method, "eval_loss") or not _there(method, "loss"):
        return units.loss(method.get("eval_loss"))
    return units.loss(method["loss"]) + "†"


def apart(method: Method) -> str:
    """What workers' own weights reach on average, and what their mean does; nothing where they are the same."""
    own, merged = units.loss(method.get("local_loss")), units.loss(method.get("merged_loss"))
    return f"{own} > {merged}" if _there(method, "merged_loss") else units.NOTHING


def plain_method(comparison: Mapping[str, Any]) -> Method | None:
    """The method the others are held against: the one named so, else the only one that is 1× as fast as itself."""
    methods = comparison.get("methods") or []
    named = [m for m in methods if m.get("name") == comparison.get("plain")]
    once = [m for m in methods if m.get("speedup") == 1 and _there(m, "reached_seconds")]
    found = named or once
    return found[0] if len(found) == 1 else None


def ideal_steps_per_second(comparison: Mapping[str, Any]) -> float | None:
    """Steps a second if the network took no time, None when nobody measured it."""
    ideal = comparison.get("ideal")
    if not isinstance(ideal, Mapping):
        return None
    value = units.number(ideal.get("steps_per_second"))
    if math.isnan(value):
        value = ratio(1, ideal.get("step_seconds"))
    return value if value > 0 else None


def ratio(a: object, b: object) -> float:
    """``a / b``, NaN where either is no number or ``b`` is nothing."""
    x, y = units.number(a), units.number(b)
    return x / y if y and not math.isnan(y) else math.nan


def workload(summary: Mapping[str, Any]) -> str:
    """The workload's name; of a file, without the folder that it lies in."""
    return text(summary.get("workload")).rpartition("/")[2]


def text(value: object) -> str:
    """A value from a summary as text: a list's items joined, an object's as ``key value``; nothing as nothing."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    return str(value)


def _plain(key: str, title: str, short: str, show: Callable[[object], str]) -> Column:
    return Column(title, short, lambda m: show(m.get(key)), lambda m: units.number(m.get(key)))


def _there(mapping: Mapping[str, Any], key: str) -> bool:
    return isinstance(mapping.get(key), int | float) and not isinstance(mapping.get(key), bool)


def _off_plan(method: Method) -> float:
    predicted = method.get("predicted")
    seconds = predicted.get("step_seconds") if isinstance(predicted, Mapping) else None
    return ratio(ratio(method.get("seconds"), method.get("steps")), seconds) - 1


def _signed(value: float) -> str:
    return units.NOTHING if math.isnan(value) else f"{value:+.0%}"


def _share(value: float) -> str:
    return units.NOTHING if math.isnan(value) else units.share(value)
