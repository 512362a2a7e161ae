"""When compression pays: time to data-parallel training's loss on fast and slow links, for every kind of compressor.

Each way trains the character GPT for the same seconds on 2 workers over the same paced link. ``sooner`` is how many
times sooner it comes down to the held-out loss that plain ddp has at its end; under 1, or never, it does not pay.

    python benchmarks/when_it_pays.py [--seconds 40] [--links 1gbit,100mbit,20mbit,5mbit] [--size micro] [--only topk]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import heading

from laconic.bench.runs import read_lines
from laconic.bench.units import size
from laconic.bench.verdict import first_reach as reached
from laconic.bench.ways import fit
from laconic.launch import launch
from laconic.recipe import Recipe

Way = tuple[str, str, dict[str, Any]]
WAYS: list[Way] = [
    ("ddp", "ddp", {}),
    ("half", "ddp-half", {}),
    ("int8", "ddp", {"compress": "int8(stochastic=false)"}),
    ("int4", "ddp", {"compress": "int4(stochastic=false)"}),
    ("sign", "ddp", {"compress": "sign"}),
    ("topk 1 %", "topk", {}),
    ("topk 1 %, int8", "topk", {"compress": ["topk(0.01)", "int8"]}),
    ("topk 0.1 %", "topk", {"density": 0.001}),
    ("random_k 1 %", "topk", {"compress": "random_k(0.01)"}),
    ("dgc 0.1 %", "dgc", {}),
    ("powersgd rank 4", "powersgd", {}),
    ("powersgd rank 1", "powersgd", {"rank": 1}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--links", default="1gbit,100mbit,20mbit,5mbit")
    parser.add_argument("--size", default="micro")
    parser.add_argument("--only", default="", help="ways whose names contain one of these, and ddp")
    chosen = parser.parse_args()
    wanted = [word for word in chosen.only.split(",") if word]
    ways = [way for way in WAYS if not wanted or way[0] == "ddp" or any(word in way[0] for word in wanted)]
    heading(f"shakespeare ({chosen.size}), 2 workers, paced, {chosen.seconds:g} s a way")
    for link in chosen.links.split(","):
        print(
            f"{link}\n  {'way':<18}{'steps':>7}{'sent a step':>13}{'compressing':>13}{'waiting':>9}{'held-out':>10}",
            end="",
        )
        print(f"{'sooner':>9}", flush=True)
        goal, whole = 0.0, 0.0
        for label, method, settings in ways:
            plan = Recipe(
                "shakespeare", options={"size": chosen.size}, link=link, seconds=chosen.seconds, save_every=10**9
            )
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "run"
                fitted, _ = fit(method, settings, 8 * chosen.seconds)
                launch(plan.replace(method=method, settings=fitted), folder)
                found = json.loads((folder / "summary.json").read_text())
                evals = read_lines(folder / "evals.jsonl")
            curve = list(zip(evals["seconds"], evals["eval_loss"], strict=True))
            if label == "ddp":
                goal, whole = curve[-1][1], found["seconds"]
            at = whole if label == "ddp" else reached(curve, goal)
            print(
                f"  {label:<18}{found['steps']:>7}{size(found['bytes_out'] / found['steps']):>13}"
                f"{found['seconds_compressing'] / found['seconds']:>13.1%}"
                f"{found['seconds_waiting'] / found['seconds']:>9.1%}{found['eval_loss']:>10.4f}"
                f"{'never' if at is None else f'{whole / at:.2f}':>9}",
                flush=True,
            )


if __name__ == "__main__":
    main()
