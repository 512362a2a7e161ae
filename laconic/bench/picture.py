"""The loss against seconds, tokens and bytes as one static picture: SVG, for a page that runs no program.

Written by hand, since three panels of lines need no library. Colours and dashes are the report's.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from laconic.bench import units
from laconic.bench.curves import held_out, training
from laconic.bench.report import facts, found, goal, label, title
from laconic.bench.report_charts import AXES, Line, time_unit
from laconic.bench.runs import Run
from laconic.bench.spread import Band
from laconic.errors import ConfigError

PANEL, HEIGHT, TOP, LEFT, GAP = 262.0, 270.0, 78.0, 58.0, 52.0
NAMES = 212.0  # beside the first panel, where all lines end at about the same second: their names
LEADING = 14.0  # between two names
LETTER = 6.3  # the width of a letter, about
WIDTH = LEFT + 3 * PANEL + NAMES + GAP + 24
INK, FAINT, GRID = "#1c2430", "#5b6675", "#e6eaef"
STROKES = {"solid": "", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"}
MANY = 10.0  # times: bytes that differ by so much are drawn on a log axis
STEEP = 30.0  # and losses


class Scale(NamedTuple):
    """From values to places along an axis."""

    low: float
    high: float
    log: bool
    begin: float
    end: float

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.begin + (self.end - self.begin) * ((at - low) / (high - low) if high > low else 0.5)


def write_picture(folders: Sequence[Path | str], out: Path | str) -> Path:
    """Draw all runs of ``folders``, each a run's or a comparison's, into one SVG file, and return its path.

    Raises: ConfigError for another kind of file, for folders that are no runs, and where nothing was measured.
    """
    out = Path(out)
    if out.suffix.lower() != ".svg":
        raise ConfigError(f"--picture {out}: only .svg is written; a browser or inkscape makes other kinds of it")
    comparisons, alone = found(folders)
    drawn, _ = label(comparisons, alone)
    text = picture(drawn, goal(comparisons), title(comparisons, alone), facts(comparisons, alone))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8", newline="\n")
    return out


def picture(drawn: Sequence[Line], target: tuple[str, float] | None, heading: str, about: str) -> str:
    """Three panels with one legend; ``target`` is a method and the loss that the others are to reach.

    Raises: ConfigError where no run has a loss.
    """
    panels = [[_curve(line.run, axis.column) for line in drawn] for axis in AXES]
    losses = [y for curves in panels for curve in curves for y in (*curve.low, *curve.high) if math.isfinite(y)]
    if not losses:
        raise ConfigError("picture: none of these runs has a loss to draw")
    if target is not None and math.isfinite(target[1]):
        losses.append(target[1])
    steep = min(losses) > 0 and max(losses) > STEEP * min(losses)
    room = 0.0 if steep else 0.04 * (max(losses) - min(losses))
    loss = Scale(min(losses) - room, max(losses) + room, steep, TOP + HEIGHT, TOP)
    parts = [_text(LEFT - 34, 26, heading, size=17, weight=600), _text(LEFT - 34, 46, about, colour=FAINT)]
    left = LEFT
    for axis, curves in zip(AXES, panels, strict=True):
        first = axis is AXES[0]
        parts += _panel(drawn, curves, axis.key, loss, left, target)
        parts.append(_text(left, TOP - 12, f"Loss {axis.title}", weight=600))
        if first:
            parts += _names(drawn, curves, loss, left + PANEL)
        left += PANEL + (NAMES if first else GAP)
    legend, height = _legend(drawn, TOP + HEIGHT + 62)
    parts += legend
    if several := max(len(line.run.seeds) for line in drawn):
        told = f"Lines are means of {several} seeds; bands go from the lowest to the highest."
        parts.append(_text(LEFT - 34, height, told, colour=FAINT))
        height += 20
    said = html.escape(f"{heading}. {about}. " + "; ".join(_said(line) for line in drawn))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" '
        f'height="{height:g}" role="img" font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, \'DejaVu Sans\', '
        f'sans-serif" font-size="12">\n<title>{html.escape(heading)}</title>\n<desc>{said}</desc>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def ticks(scale: Scale, wanted: int = 5) -> list[float]:
    """Round values along an axis, about so many: 1, 2 or 5 times a power of ten."""
    if scale.log:
        decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        steps = (1,) if len(decades) > 3 else (1, 2, 5)
        return [s * 10.0**d for d in decades for s in steps if scale.low <= s * 10.0**d <= scale.high]
    span = scale.high - scale.low
    if not span > 0:
        return [scale.low]
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    return [n * step for n in range(math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9) + 1)]


def apart(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places moved as little as keeps them ``least`` apart and between two bounds, where there is room; else evenly.

    Law: their order stays.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    least = min(least, (high - low) / max(1, len(places) - 1))
    moved = list(places)
    at = low
    for i in order:
        moved[i] = at = max(at, moved[i])
        at += least
    at = high
    for i in reversed(order):
        moved[i] = at = min(at, moved[i])
        at -= least
    return moved


def _curve(run: Run, column: str) -> Band:
    curve = held_out(run, column)
    return curve if curve.mean else training(run, column)


def _panel(
    drawn: Sequence[Line],
    curves: Sequence[Band],
    key: str,
    loss: Scale,
    left: float,
    target: tuple[str, float] | None,
) -> list[str]:
    ends = [curve.x[-1] for curve in curves if curve.x]
    shown = [x for curve in curves for x in curve.x]
    log = key == "bytes" and min(ends) > 0 and max(ends) > MANY * min(ends)
    low = min(x for x in shown if x > 0) if log else 0.0
    across = Scale(low, max(shown) or 1.0, log, left, left + PANEL)
    unit, name = time_unit(max(shown)) if key == "seconds" else (1.0, "")
    say: Callable[[float], str] = _bytes if key == "bytes" else _count if key == "tokens" else _plain
    below = {"seconds": name, "tokens": "tokens, all workers together", "bytes": "bytes sent by one worker"}[key]
    parts = []
    for value in ticks(loss):
        y = loss.place(value)
        parts.append(f'<path d="M{left:.1f} {y:.1f}h{PANEL:g}" stroke="{GRID}"/>')
        parts.append(_text(left - 6, y + 4, _plain(value), anchor="end", colour=FAINT, size=11))
    for value in ticks(across._replace(low=across.low / unit, high=across.high / unit), 4):
        x = across.place(value * unit)
        parts.append(f'<path d="M{x:.1f} {TOP:g}v{HEIGHT:g}" stroke="{GRID}"/>')
        parts.append(_text(x, TOP + HEIGHT + 16, say(value), anchor="middle", colour=FAINT, size=11))
    parts.append(_text(left + PANEL / 2, TOP + HEIGHT + 34, below, anchor="middle", colour=FAINT))
    for line, curve in zip(drawn, curves, strict=True):
        parts += _drawn(line, curve, across, loss)
    if target is not None and math.isfinite(target[1]):
        y = loss.place(target[1])
        parts.append(f'<path d="M{left:.1f} {y:.1f}h{PANEL:g}" stroke="{FAINT}" stroke-dasharray="2 3"/>')
        if key == "tokens":  # once is enough, and here the lines leave room at the end
            told = f"where {target[0]} ended"
            parts.append(_text(left + PANEL, y - 5, told, anchor="end", colour=FAINT, size=11))
    return parts


def _drawn(line: Line, curve: Band, across: Scale, loss: Scale) -> list[str]:
    """One line, broken where its loss is no number, over its band."""
    pieces: list[list[tuple[float, float, float, float]]] = [[]]
    for x, mean, low, high in zip(*curve, strict=True):
        if across.log and x <= 0:
            continue
        if not math.isfinite(mean) or (loss.log and low <= 0):
            pieces.append([])
            continue
        pieces[-1].append((across.place(x), loss.place(mean), loss.place(low), loss.place(high)))
    parts = []
    for piece in filter(None, pieces):
        if any(low != high for _, _, low, high in piece):
            edge = [(x, high) for x, _, _, high in piece] + [(x, low) for x, _, low, _ in reversed(piece)]
            parts.append(f'<path d="{_path(edge)}Z" fill="{line.colour}" fill-opacity="0.16"/>')
    for piece in filter(None, pieces):
        dashes = f' stroke-dasharray="{STROKES[line.dash]}"' if STROKES[line.dash] else ""
        at = _path([(x, mean) for x, mean, _, _ in piece])
        parts.append(
            f'<path d="{at}" fill="none" stroke="{line.colour}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>'
        )
    return parts


def _names(drawn: Sequence[Line], curves: Sequence[Band], loss: Scale, left: float) -> list[str]:
    """Each line's name and last loss beside its end; moved apart where ends lie close."""
    ended = [(line, curve) for line, curve in zip(drawn, curves, strict=True) if curve.mean]
    ended = [(line, curve) for line, curve in ended if math.isfinite(curve.mean[-1])]
    ends = [loss.place(curve.mean[-1]) for _, curve in ended]
    parts = []
    for (line, curve), end, y in zip(ended, ends, apart(ends, LEADING, TOP, TOP + HEIGHT), strict=True):
        name = _fitted(line.label, units.loss(curve.mean[-1]), int((NAMES - GAP) / LETTER))
        parts.append(
            f'<path d="M{left + 2:.1f} {end:.1f}L{left + 10:.1f} {y:.1f}" stroke="{line.colour}" fill="none"/>'
        )
        parts.append(_text(left + 13, y + 4, name, colour=line.colour, size=11))
    return parts


def _fitted(name: str, loss: str, letters: int) -> str:
    """A name with its loss, or the name alone, or its end, where a sweep's value stands."""
    if len(name) + len(loss) < letters:
        return f"{name} {loss}"
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _legend(drawn: Sequence[Line], top: float) -> tuple[list[str], float]:
    parts, x = [], LEFT - 34
    for line in drawn:
        wide = 34 + LETTER * len(line.label) + 16
        if x + wide > WIDTH and x > LEFT:
            x, top = LEFT - 34, top + 20
        dashes = f' stroke-dasharray="{STROKES[line.dash]}"' if STROKES[line.dash] else ""
        parts.append(f'<path d="M{x:.1f} {top - 4:.1f}h24" stroke="{line.colour}" stroke-width="2.4"{dashes}/>')
        parts.append(_text(x + 30, top, line.label))
        x += wide
    return parts, top + 24


def _said(line: Line) -> str:
    curve = _curve(line.run, "seconds")
    if not curve.mean:
        return f"{line.label} has no loss"
    return f"{line.label} ends at {units.loss(curve.mean[-1])} after {units.duration(curve.x[-1])}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", colour: str = INK, size: float = 12, weight: int = 400
) -> str:
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size:g}"{bold} '
        f'paint-order="stroke" stroke="#ffffff" stroke-width="3">'
        f"{html.escape(text)}</text>"
    )


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _bytes(value: float) -> str:
    return re.sub(r"\.0+(?= )", "", units.size(value))


def _count(value: float) -> str:
    return re.sub(r"\.0+(?=\D|$)", "", units.count(value))
