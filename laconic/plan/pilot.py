"""A pilot: short real runs, to measure how many tokens each way needs in the place of a prior.

Loss by tokens does not depend on the links, so a pilot trains on links without limits: all ways learn from the same
data in the same order, and what counts is at how many tokens each has come down to a loss that it and ddp have reached.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from laconic.bench import compare
from laconic.bench.runs import read_lines
from laconic.bench.ways import Way as Trained
from laconic.errors import ConfigError
from laconic.plan.prior import Prior, every, fitted
from laconic.plan.ranking import Way
from laconic.recipe import Recipe

LEAST = 5.0  # seconds of training in which a way shows anything
PLAIN = Way("ddp", "ddp", {})

Curve = list[tuple[float, float]]  # tokens and held-out loss


def most(seconds: float, ways: Sequence[Way]) -> list[Way]:
    """The ways for which a pilot of so many seconds has time, and ddp, against which they are held.

    Raises: ConfigError where there is time for none.
    """
    others = [way for way in ways if way != PLAIN]
    room = int(seconds / LEAST) - 1
    if room < 1:
        raise ConfigError(f"--pilot {seconds:g}s: ddp and one other way need {2 * LEAST:g} s; give at least that")
    return [PLAIN, *others[:room]]


def run(
    recipe: Recipe, ways: Sequence[Way], seconds: float, tell: Callable[[str], None] = lambda sentence: None
) -> dict[str, Prior]:
    """Train the ways for so many seconds in all, and say what each needs; by their names, without those that failed, or
    did not come to a synchronisation, or to a loss below where ddp began. Starting them comes on top.

    Raises: ConfigError where ddp itself could not be trained; as :func:`laconic.bench.compare.compare`.
    """
    chosen = most(seconds, ways)
    short = recipe.replace(
        on="paced", link="", links=(), cluster="", flops=None, step_seconds=None, steps=None, tokens=None,
        seconds=seconds / len(chosen), save_every=1_000_000,
    )  # fmt: skip
    trained = [Trained(way.name, way.method, way.settings, {}) for way in chosen]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pilot"
        comparison = compare.compare(short, trained, folder, tell=tell, command="laconic plan --pilot")
        entries = {entry["name"]: entry for entry in comparison["methods"]}
        curves = {name: curve(folder / entry["runs"][0]["folder"]) for name, entry in entries.items()}
    if PLAIN.name not in entries:
        why = "; ".join(comparison.get("failed", [])) or "its run did not finish"
        raise ConfigError(f"--pilot: ddp, against which the others are held, could not be trained: {why}")
    # A period that is too long for so short a run was made shorter.
    ran = [way._replace(settings=entries[way.name]["settings"]) for way in chosen if way.name in entries]
    return learnt(ran, curves, {name: float(entry["steps"]) for name, entry in entries.items()})


def learnt(ways: Sequence[Way], curves: dict[str, Curve], steps: dict[str, float]) -> dict[str, Prior]:
    """What the curves of a pilot say of each way but ddp."""
    plain, found = curves[PLAIN.name], {}
    for way in ways:
        if way == PLAIN or way.name not in curves or steps[way.name] < every(way.method, way.settings):
            continue
        factor = factor_of(curves[way.name], plain)
        if factor is not None:
            found[way.name] = fitted(way.method, way.settings, factor, steps[way.name])
    return found


def factor_of(ours: Curve, plain: Curve) -> float | None:
    """How many times ``plain``'s tokens a curve takes to the lowest loss that both reach; None if there is none."""
    if len(ours) < 2 or len(plain) < 2:
        return None
    goal = max(min(loss for _, loss in ours), min(loss for _, loss in plain))
    a, b = first(ours, goal), first(plain, goal)
    return a / b if a and b else None


def first(points: Curve, goal: float) -> float | None:
    """At how many tokens a curve first comes down to a loss, straight between its points; None if it began there."""
    for (x, above), (y, below) in pairwise(points):
        if below <= goal < above:
            return x + (above - goal) / (above - below) * (y - x)
    return None


def curve(run: Path) -> Curve:
    """A run's held-out losses by tokens."""
    columns = read_lines(run / "evals.jsonl") if (run / "evals.jsonl").exists() else {}
    return list(zip(columns.get("tokens", []), columns.get("eval_loss", []), strict=True))
