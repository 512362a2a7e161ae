"""Does a simulation take as long as the run that it stands for? The same run on paced links, in real processes.

    python benchmarks/simulated_agrees.py [--workers 2] [--link 20mbit,10ms] [--seconds 20] [--methods ddp,diloco,…]

The step of this machine is taken from the paced run itself (what its workers computed and compressed, in the mean of a
step): a simulation knows nothing of the machine. What is compared is what the network makes of it: seconds a step,
seconds waited, and bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import heading

from laconic.launch import launch, prepare
from laconic.recipe import Recipe

SETTINGS: dict[str, dict[str, Any]] = {
    "diloco": {"every": 10},
    "streaming-diloco": {"every": 20, "overlap": 3},
    "powersgd": {},
    "ddp": {},
}


def summary(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Run a recipe, and what it says of itself."""
    prepare(recipe)
    launch(recipe, folder)
    return dict(json.loads((folder / "summary.json").read_text()))


def main() -> None:
    """Print both, side by side."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--workload", default="shakespeare")
    arguments.add_argument("--link", default="20mbit,10ms")
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--methods", default="ddp,diloco,powersgd,streaming-diloco")
    given = arguments.parse_args()
    heading(f"{given.workload}, {given.workers} workers on {given.link}: paced for {given.seconds:g} s, and simulated")
    print(f"{'':20}{'steps':>6}{'s a step: paced':>17}{'simulated':>11}{'off by':>9}", end="")
    print(f"{'waiting: paced':>16}{'simulated':>11}{'bytes: paced':>15}{'simulated':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for method in given.methods.split(","):
            plan = Recipe(
                given.workload,
                method,
                settings=SETTINGS.get(method, {}),
                workers=given.workers,
                link=given.link,
                seconds=given.seconds,
                threads=1,
            )
            paced = summary(plan, Path(folder) / f"{method}-paced")
            steps = int(paced["steps"])
            computed = (paced["seconds_computing"] + paced["seconds_compressing"]) / steps
            there = plan.replace(on="simulated", seconds=None, steps=steps, step_seconds=computed)
            virtual = summary(there, Path(folder) / f"{method}-simulated")
            off = virtual["seconds"] / paced["seconds"] - 1
            print(
                f"{method:20}{steps:>6}{paced['seconds'] / steps:>17.4f}{virtual['seconds'] / steps:>11.4f}{off:>9.1%}"
                f"{paced['seconds_waiting'] / paced['seconds']:>16.1%}"
                f"{virtual['seconds_waiting'] / virtual['seconds']:>11.1%}"
                f"{paced['bytes_out']:>15,}{virtual['bytes_out']:>13,}",
                flush=True,
            )


if __name__ == "__main__":
    main()
