"""How far plans are out: predicted against measured seconds a step, and whether the way that is chosen is the best.

    python benchmarks/plan_error.py [--on testbed] [--seconds 10] [--workers 2,4] [--links 20mbit,10ms;100mbit,5ms]
        [--models shakespeare:nano,shakespeare:micro,fashion]

For each model, link and number of workers the step without a network is measured once (all workers at once, none
exchanging); from it and nothing else each way is priced, and then trained. Nothing is fitted: no run corrects another.
The way chosen is that of the least predicted seconds for the same progress, and it is held against the measured best;
what ways need beside ddp's tokens is the same on both sides. Wanted: a median error of at most 10 %, the worst at most
25 %, and the choice within 5 % of the best in 11 of 12.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from common import heading

from laconic.launch import launch, prepare
from laconic.plan.forecast import forecast, measured
from laconic.plan.here import step_here
from laconic.plan.prior import progress
from laconic.plan.ranking import Way
from laconic.recipe import Recipe

WAYS = [
    Way("ddp", "ddp", {}),
    Way("int8", "ddp", {"compress": "int8"}),
    Way("powersgd", "powersgd", {}),
    Way("diloco", "diloco", {"every": 10}),
    Way("streaming-diloco", "streaming-diloco", {"every": 20, "overlap": 1, "fragments": 2}),
]
GOAL = 2000.0  # steps of ddp whose progress is wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="testbed", help="testbed (needs root) or paced")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--workers", default="2,4")
    parser.add_argument("--links", default="20mbit,10ms;100mbit,5ms")
    parser.add_argument("--models", default="shakespeare:nano,shakespeare:micro,fashion")
    parser.add_argument("--ways", default=",".join(way.name for way in WAYS))
    given = parser.parse_args()
    heading(f"Predicted and measured seconds a step: {given.on}, {given.seconds:g} s each")
    chosen = [way for way in WAYS if way.name in given.ways.split(",")]
    errors: list[float] = []
    right = cells = 0
    print(f"{'model':<18}{'link':<15}{'n':>2}  {'way':<17}{'predicted':>10}{'measured':>10}{'off by':>8}", end="")
    print(f"{'waiting: predicted':>20}{'measured':>10}{'bytes a step':>14}{'measured':>12}")
    for model in given.models.split(","):
        for link in given.links.split(";"):
            for workers in map(int, given.workers.split(",")):
                name, _, size = model.partition(":")
                options = {"size": size} if size else {}
                recipe = Recipe(name, options=options, workers=workers, link=link, on=given.on, seconds=given.seconds)
                scores = cell(recipe, model, chosen, errors)
                if scores:
                    best = min(scores, key=lambda way: scores[way][1])
                    took = min(scores, key=lambda way: scores[way][0])
                    lost = scores[took][1] / scores[best][1] - 1
                    cells, right = cells + 1, right + (lost <= 0.05)
                    print(f"{'':37}chosen {took}, best {best}: {lost:.1%} lost\n", flush=True)
    if errors:
        print(f"{len(errors)} runs: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}")
        print(f"the way chosen is the best, or within 5 % of it, in {right} of {cells}")


def cell(recipe: Recipe, model: str, ways: list[Way], errors: list[float]) -> dict[str, tuple[float, float]]:
    """Price and train the ways; each one's predicted and measured seconds for the goal."""
    step = step_here(recipe)
    found = {}
    for way in ways:
        plan = recipe.replace(method=way.method, settings=way.settings)
        prepare(plan)
        with tempfile.TemporaryDirectory() as place:
            expected = forecast(plan, 0, step)  # before the run: as it is once it has settled
            launch(plan, Path(place) / "run")
            came = measured(json.loads((Path(place) / "run" / "summary.json").read_text()))
        off = came["step_seconds"] / expected.step_seconds - 1
        errors.append(abs(off))
        needs = progress(way.method, way.settings, GOAL)
        factor = 1.0 if needs is None else needs.factor
        found[way.name] = factor * expected.step_seconds, factor * came["step_seconds"]
        print(
            f"{model:<18}{recipe.link:<15}{recipe.workers:>2}  {way.name:<17}{expected.step_seconds:>10.4f}"
            f"{came['step_seconds']:>10.4f}{off:>8.1%}{expected.waiting_share:>20.1%}{came['waiting_share']:>10.1%}"
            f"{expected.bytes_out:>14,.0f}{came['bytes_per_step']:>12,.0f}",
            flush=True,
        )
    return found


if __name__ == "__main__":
    main()
