"""Streaming DiLoCo against plain data-parallel training at 20 Mbit/s: time to loss, waiting, and loss at equal tokens.

First both ways for the same seconds over the slow link; then data-parallel training without a limit for exactly the
tokens that Streaming DiLoCo saw, so that the losses can be compared at equal tokens.

    python benchmarks/slow_link.py [--seconds 40] [--link 20mbit] [--set every=6 …]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import heading

from laconic.bench.compare import compare
from laconic.bench.ways import ways
from laconic.launch import launch
from laconic.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--link", default="20mbit")
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()
    heading(f"shakespeare (micro), 2 workers, {chosen.link}, {chosen.seconds:g} s each")
    plan = Recipe("shakespeare", link=chosen.link, seconds=chosen.seconds, save_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        methods = ways("ddp,streaming-diloco", chosen.set)
        found = compare(plan, methods, Path(folder) / "compare", tell=print)
        plain, ours = found["methods"]
        equal = plan.replace(method="ddp", link="", seconds=None, steps=ours["steps"])
        launch(equal, Path(folder) / "equal")
        at_equal_tokens = json.loads((Path(folder) / "equal" / "summary.json").read_text())["eval_loss"]
    waiting = ours["seconds_waiting"] / ours["seconds"]
    print(found["verdict"])
    print(f"ddp                              {plain['steps']} steps, held-out loss {plain['eval_loss']:.4f}")
    print(f"streaming-diloco                 {ours['steps']} steps, held-out loss {ours['eval_loss']:.4f}")
    print(f"  waiting                        {waiting:.1%} of its time")
    print(f"  reaches ddp's final loss       {ours['speedup']:.1f} times sooner")
    print(f"ddp for the same tokens          held-out loss {at_equal_tokens:.4f}")
    print(f"  streaming-diloco over ddp      {ours['eval_loss'] / at_equal_tokens - 1:+.2%} at equal tokens")


if __name__ == "__main__":
    main()
