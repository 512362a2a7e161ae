"""What does a slow worker cost? Samples a second of each method, as a share of what the workers do by themselves.

Real processes on paced links, the last worker held back to a fraction of its speed (it idles for so many times what it
has computed). First and last all train alone at once: the sum of their own speeds is the whole. Then each method trains
for as long; all rows that all workers used are counted, and all seconds, waiting included. One worker a core, or they
slow one another down.

    python benchmarks/uneven.py [--workers 2] [--slower 4] [--seconds 60] [--every 32] [--link 100mbit] [--size nano]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from common import heading

from laconic.bench import units
from laconic.bench.runs import read_lines
from laconic.launch import launch, prepare
from laconic.recipe import Recipe


def ways(every: int) -> dict[str, dict[str, Any]]:
    """Each method with its settings; those of equal steps or batches before those of uneven ones."""
    return {
        "ddp": {},
        "uneven-ddp": {},
        "local-sgd": {"every": every},
        f"uneven_steps(local_steps(every=1), every={every})": {},
        "diloco": {"every": every},
        "uneven-diloco": {"every": every},
        "hcef": {"most_steps": 2 * every},
    }


def own_speeds(recipe: Recipe, folder: Path) -> list[float]:
    """Each worker's tokens a second by itself, while all are at it."""
    launch(recipe.replace(method="alone", settings={}), folder)
    files = [folder / "metrics.jsonl", *(folder / f"metrics-{w}.jsonl" for w in range(1, recipe.workers))]
    columns = [read_lines(path) for path in files]
    until = min(c["seconds"][-1] for c in columns)  # the slow go on until they have as many steps as the fast
    speeds = []
    for c in columns:
        within = [i for i, s in enumerate(c["seconds"]) if s <= until]
        first, last = within[min(3, len(within) - 2)], within[-1]
        steps = (last - first) / (c["seconds"][last] - c["seconds"][first])
        speeds.append(steps * c["tokens"][0] / recipe.workers)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slower", type=float, default=4.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=int, default=32)
    parser.add_argument("--link", default="100mbit")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--workload", default="shakespeare")
    chosen = parser.parse_args()
    heading(
        f"A worker {chosen.slower:g} times slower among {chosen.workers}: {chosen.workload}, {chosen.link}, "
        f"{chosen.seconds:g} s a way"
    )
    if chosen.workers > (os.cpu_count() or 1):
        print("more workers than cores: they slow one another down, and shares of their own speeds mean little\n")
    recipe = Recipe(
        chosen.workload,
        options={"size": chosen.size} if chosen.workload == "shakespeare" else {},
        workers=chosen.workers,
        link=chosen.link,
        slow=(f"{chosen.workers - 1}:{chosen.slower:g}",),
        seconds=chosen.seconds,
        threads=1,
        save_every=10**9,
    )
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        before = own_speeds(recipe, place / "before")
        found = {}
        for number, (method, settings) in enumerate(ways(chosen.every).items()):
            way = recipe.replace(method=method, settings=settings)
            prepare(way)
            launch(way, place / str(number))
            found[method] = json.loads((place / str(number) / "summary.json").read_text())
            found[method]["each"] = [
                json.loads((place / str(number) / f"worker-{w}.json").read_text())["tokens"]
                for w in range(chosen.workers)
            ]
        after = own_speeds(recipe, place / "after")
    whole = (sum(before) + sum(after)) / 2
    for when, speeds in (("before", before), ("after", after)):
        each = ", ".join(units.rate(s, "tokens") for s in speeds)
        print(f"alone, {when}: {each}; in all {units.rate(sum(speeds), 'tokens')}")
    print(f"\n{'method':<46}{'tokens/s':>10}{'of own':>8}{'waiting':>9}{'slow one':>10}{'loss':>8}")
    for method, s in found.items():
        rate, waits = s["tokens"] / s["seconds"], s["seconds_waiting"] / s["seconds"]
        part = s["each"][-1] / s["tokens"]
        print(
            f"{method:<46}{units.count(rate):>10}{units.share(rate / whole):>8}{units.share(waits):>9}"
            f"{units.share(part):>10}{s['eval_loss']:>8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
