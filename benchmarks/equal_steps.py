"""Which compressors reach the dense run's loss at equal steps? Runs long enough to settle, with the rate falling to 0.

Two workers as threads on memory links: losses and bytes are those of any link, seconds are not measured. Fashion with
SGD and momentum, Shakespeare (nano) with AdamW; for dgc, which carries the momentum itself, SGD on both sides, and
gradients clipped at 1 (the worker's own before it is sent, or the mean). The rate rises over a twentieth of the steps.

    python benchmarks/equal_steps.py [--steps 2000] [--seeds 2] [--only fashion] [--ways dense,dgc]
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
from typing import Any

import torch
from common import heading

from laconic.attached import Attached
from laconic.bench import units
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import build
from laconic.workloads import load

WORKERS = 2
Way = tuple[str, str, dict[str, Any], bool]  # label, method, settings, by SGD rather than by the workload's optimizer
WAYS: list[Way] = [
    ("dense", "ddp", {}, False),
    ("powersgd rank 4", "powersgd", {"rank": 4}, False),
    ("int4, feedback", "ddp", {"compress": "int4(stochastic=false)"}, False),
    ("sign, feedback", "ddp", {"compress": "sign"}, False),
    ("sign by blocks of 128, feedback", "ddp", {"compress": "sign(block=128)"}, False),
    ("topk 1 %, feedback", "topk", {}, False),
    ("dense, SGD", "ddp", {}, True),
    ("dgc 0.1 %", "dgc", {"warmup_steps": 300}, True),
    ("topk 0.1 %, feedback, SGD", "topk", {"density": 0.001}, True),
]
OPTIONS: dict[str, dict[str, Any]] = {"fashion": {}, "shakespeare": {"size": "nano"}}
RATES = {"fashion": 0.05, "shakespeare": 0.1}  # of SGD with momentum 0.9


def trained(name: str, way: Way, steps: int, seed: int) -> tuple[float, float]:
    """Held-out loss after ``steps`` steps, and bytes a step out of worker 0."""
    workload = load(name, OPTIONS[name])
    drawing = threading.Lock()

    def work(link: Link) -> tuple[float, float]:
        with drawing:  # the weights are drawn from torch's one generator
            torch.manual_seed(seed)
            model = workload.make_model()
        sync = build(way[1], way[2])
        if way[3]:
            momentum = 0.0 if sync.momentum else 0.9
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), RATES[name], momentum)
        else:
            optimizer = workload.make_optimizer(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: min(1.0, 20 * (t + 1) / steps) * 0.5 * (1 + math.cos(math.pi * t / steps))
        )
        attached = Attached(model, optimizer, sync, link, clip=1.0 if way[3] and not sync.momentum else None)
        before = link.meter.bytes_out
        batches = workload.batches("train", link.rank, link.size, seed)
        for _ in range(steps):
            attached.zero_grad()
            workload.loss(model, next(batches)).backward()
            attached.step()
            schedule.step()
        attached.drain()
        sent = (link.meter.bytes_out - before) / steps
        if link.rank:
            return math.nan, sent
        model.eval()
        with torch.no_grad():
            held_out = [(workload.tokens(b), float(workload.loss(model, b))) for b in workload.batches("eval", 0, 1, 0)]
        return sum(n * value for n, value in held_out) / sum(n for n, _ in held_out), sent

    return memory.run(WORKERS, work, timeout=900.0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=sorted(OPTIONS))
    parser.add_argument("--ways", default="")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    heading(f"Held-out loss after {chosen.steps} steps, {WORKERS} workers, mean of {chosen.seeds} seeds")
    wanted = [word for word in chosen.ways.split(",") if word]
    for name in OPTIONS:
        if chosen.only not in (None, name):
            continue
        print(f"{name}\n  {'way':<34}{'held-out':>10}{'over dense':>12}{'spread':>9}{'sent a step':>14}")
        dense = {False: math.nan, True: math.nan}
        for way in WAYS:
            if wanted and not any(word in way[0] for word in wanted):
                continue
            runs = [trained(name, way, chosen.steps, seed) for seed in range(chosen.seeds)]
            mean = statistics.mean(loss for loss, _ in runs)
            if way[0].startswith("dense"):
                dense[way[3]] = mean
            print(
                f"  {way[0]:<34}{mean:>10.4f}{mean / dense[way[3]] - 1:>+12.2%}"
                f"{max(r[0] for r in runs) - min(r[0] for r in runs):>9.4f}{units.size(runs[0][1]):>14}",
                flush=True,
            )


if __name__ == "__main__":
    main()
