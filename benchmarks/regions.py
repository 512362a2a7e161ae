"""Sixteen workers over the links between cloud regions, simulated: how long each method takes to a loss, and how far.

Real training under a virtual clock (real losses and bytes, reckoned seconds), so that it may run beside other work.
All methods train on the same tokens; the loss to reach is the one that ddp has after two thirds of them. For each
method: when its curve comes down to that loss, how much sooner than ddp, its loss after two thirds against ddp's, its
share of time waiting, and bytes.

    python benchmarks/regions.py [--workers 16] [--cluster aws10] [--steps 450] [--step-seconds 1] [--only noloco,sgp]
                               [--batch-size 4] [--optimizer sgd] [--schedule cosine --warmup 100]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from common import heading

from laconic.bench import units
from laconic.bench.compare import compare
from laconic.bench.picture import write_picture
from laconic.bench.runs import read_lines
from laconic.bench.verdict import first_reach
from laconic.bench.ways import Way
from laconic.recipe import Recipe

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp-half": {},
    "powersgd": {},
    "topk": {},
    "dgc": {"warmup_steps": 50},
    "local-sgd": {"every": 8},
    "post-local-sgd": {"start": 50, "every": 8},
    "slowmo": {"every": 8},
    "diloco": {"every": 8},
    "co2": {"every": 8},
    "streaming-diloco": {"every": 12, "fragments": 2, "overlap": 5},
    "noloco": {"every": 8},
    "d-psgd": {},
    "sgp": {},
    "single-merge": {"every": 8},
    "srrw": {"every": 4},
    "modest": {"every": 8},
}
SHARE = 2 / 3  # of the tokens, after which ddp's loss is the one to reach


def at(curve: dict[str, list[float]], column: str, where: float) -> float:
    """The held-out loss of a curve where ``column`` is ``where``, straight between its points."""
    xs, ys = curve[column], curve["eval_loss"]
    for (a, loss), (b, after) in zip(zip(xs, ys, strict=True), zip(xs[1:], ys[1:], strict=True), strict=False):
        if a <= where <= b:
            return loss if a == b else loss + (after - loss) * (where - a) / (b - a)
    return ys[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--cluster", default="aws10")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--step-seconds", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--optimizer", default="adamw", help="adamw, or sgd with momentum, clipped at 1")
    parser.add_argument("--schedule", default="constant", help="of the inner learning rate: constant, linear, cosine")
    parser.add_argument("--warmup", type=int, default=0, help="steps over which it rises")
    parser.add_argument("--only", default="", help="methods, beside ddp")
    parser.add_argument("--picture", type=Path, help="an .svg of the losses")
    chosen = parser.parse_args()
    about = f"shakespeare (nano), {chosen.workers} simulated workers over {chosen.cluster}"
    heading(f"{about}, {chosen.steps} steps of {chosen.step_seconds:g} s")
    options = {"size": "nano", "batch_size": chosen.batch_size, "optimizer": chosen.optimizer}
    plan = Recipe("shakespeare", options=options, workers=chosen.workers, on="simulated", cluster=chosen.cluster)
    plan = plan.replace(step_seconds=chosen.step_seconds, steps=chosen.steps, save_every=10**9)
    clip = 1.0 if chosen.optimizer == "sgd" else None
    plan = plan.replace(schedule=chosen.schedule, warmup=chosen.warmup, clip=clip)
    wanted = [name for name in WAYS if not chosen.only or name == "ddp" or name in chosen.only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "compare"
        found = compare(plan, [Way(name, name, WAYS[name], {}) for name in wanted], out, tell=print)
        curves = {m["name"]: read_lines(out / m["folder"] / "evals.jsonl") for m in found["methods"]}
        plain = found["methods"][0]
        tokens, spent = SHARE * plain["tokens"], SHARE * plain["seconds"]
        goal = at(curves["ddp"], "tokens", tokens)
        print(f"\nto reach: ddp's loss after {SHARE:.0%} of the tokens, {goal:.4f}, in {units.duration(spent)}\n")
        head = f"{'reached':>10}{'sooner':>8}{'equal tokens':>14}{'waiting':>9}{'sent':>10}{'at the end':>20}"
        print(f"{'method':<18}{head}")
        for method in found["methods"]:
            curve = curves[method["name"]]
            reached = first_reach(list(zip(curve["seconds"], curve["eval_loss"], strict=True)), goal)
            when, sooner = (units.duration(reached), f"{spent / reached:.1f}") if reached else ("–", "–")
            over = at(curve, "tokens", tokens) / goal - 1
            waiting = method["seconds_waiting"] / method["seconds"]
            ended = f"{method['eval_loss']:.4f} ({method['eval_loss'] / plain['eval_loss'] - 1:+.1%})"
            last = f"{units.size(method['bytes_out']):>10}{ended:>20}"
            print(f"{method['name']:<18}{when:>10}{sooner:>8}{over:>+14.1%}{waiting:>9.1%}{last}", flush=True)
        for told in found["failed"]:
            print(told)
        if chosen.picture is not None:
            write_picture([out], chosen.picture)


if __name__ == "__main__":
    main()
