"""Does each method move the way its paper says? Held-out loss and bytes at equal steps, workers in one process.

Fashion (SGD with momentum) for the methods that compress gradients, with their parts switched off one at a time;
Shakespeare (AdamW, size nano) for those that talk seldom, and the whole family of local steps beside one another. The
workers are threads on memory links: losses and bytes are those of any link, seconds are not measured.

    python benchmarks/directions.py [--workers 4] [--seeds 2] [--only fashion]
"""

from __future__ import annotations

import argparse
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
from laconic.train import set_learning
from laconic.workloads import load

Way = tuple[str, str, dict[str, Any]]
WARM = {"warmup_steps": 60}
FASHION: list[Way] = [
    ("ddp (dense)", "ddp", {}),
    ("topk 0.1 %, no feedback", "topk", {"density": 0.001, "feedback": False}),
    ("topk 0.1 %, feedback", "topk", {"density": 0.001}),
    ("dgc 0.1 %", "dgc", WARM),
    ("dgc without masking", "dgc", WARM | {"masking": False}),
    ("dgc without clipping", "dgc", WARM | {"clip": None}),
    ("dgc without warm-up", "dgc", {"warmup_steps": 0}),
    ("dgc without momentum", "dgc", WARM | {"momentum": 0.0}),
    ("powersgd rank 1", "powersgd", {"rank": 1}),
    ("powersgd rank 4", "powersgd", {"rank": 4}),
    ("powersgd rank 4, cold start", "powersgd", {"rank": 4, "warm_start": False}),
    ("ddp-half", "ddp-half", {}),
]
SHAKESPEARE: list[Way] = [
    ("ddp", "ddp", {}),
    ("alone", "alone", {}),
    ("local-sgd, every 25", "local-sgd", {"every": 25}),
    ("diloco, every 25", "diloco", {"every": 25}),
    ("diloco, every 100", "diloco", {"every": 100}),
    ("streaming-diloco, every 24", "streaming-diloco", {"every": 24, "fragments": 2}),
    ("streaming, overlap 5", "streaming-diloco", {"every": 24, "fragments": 2, "overlap": 5}),
    ("streaming, uncompressed", "streaming-diloco", {"every": 24, "fragments": 2, "compress": "identity"}),
    ("noloco, every 25", "noloco", {"every": 25}),
    ("noloco, a fifth of the lr", "noloco", {"every": 25, "_lr": 0.2}),
]
FAMILY: list[Way] = [
    ("ddp", "ddp", {}),
    ("alone", "alone", {}),
    ("local-sgd", "local-sgd", {"every": 12}),
    ("local-sgd, overlap 3", "local-sgd", {"every": 12, "overlap": 3}),
    ("post-local-sgd", "post-local-sgd", {"every": 12, "start": 125}),
    ("slowmo", "slowmo", {"every": 12}),
    ("slowmo, momentum 0.2", "slowmo", {"every": 12, "momentum": 0.2}),
    ("slowmo, inner reset", "slowmo", {"every": 12, "inner": "reset"}),
    ("co2", "co2", {"every": 12}),
    ("co2, no gap", "co2", {"every": 12, "gap": 1.0, "contraction": 0.5}),
    ("co2, gap 2", "co2", {"every": 12, "gap": 2.0}),
    ("co2, momentum 0.5, no gap", "co2", {"every": 12, "momentum": 0.5, "gap": 1.0, "contraction": 0.4}),
    ("diloco", "diloco", {"every": 12}),
    ("diloco, warm-up 5", "diloco", {"every": 12, "warmup_rounds": 5}),
    ("diloco, overlap 3", "diloco", {"every": 12, "overlap": 3}),
    ("diloco, a round late", "diloco", {"every": 12, "overlap": 12, "lr": 0.4, "momentum": 0.3}),
    ("diloco, eager", "diloco", {"every": 12, "overlap": 12, "eager": True}),
    ("streaming-diloco", "streaming-diloco", {"every": 12, "fragments": 2}),
    ("streaming, overlap 11", "streaming-diloco", {"every": 12, "fragments": 2, "overlap": 11}),
    ("noloco", "noloco", {"every": 12}),
    ("noloco, groups of 3", "noloco", {"every": 12, "group": 3}),
    ("noloco, overlap 3", "noloco", {"every": 12, "overlap": 3}),
]
PLANS: dict[str, tuple[dict[str, Any], int, list[Way]]] = {
    "fashion": ({}, 300, FASHION),
    "shakespeare": ({"size": "nano"}, 500, SHAKESPEARE),
    "family": ({"size": "nano"}, 500, FAMILY),
}


def trained(name: str, way: Way, workers: int, seed: int, steps: int) -> tuple[float, float, float]:
    """Held-out loss of worker 0's weights to ship, bytes a step out of it, and how far the workers' weights differ."""
    options = PLANS[name][0]
    workload = load("fashion" if name == "fashion" else "shakespeare", options)
    settings = {k: v for k, v in way[2].items() if not k.startswith("_")}
    drawing = threading.Lock()

    def work(link: Link) -> tuple[float, float, list[torch.Tensor]]:
        with drawing:  # the weights are drawn from torch's one generator
            torch.manual_seed(seed)
            model = workload.make_model()
        optimizer = workload.make_optimizer(model)
        sync = build(way[1], settings)
        if not sync.momentum and "momentum" in settings:  # dgc with momentum 0: the optimizer has none either
            for group in optimizer.param_groups:
                group["momentum"] = 0.0
        set_learning(optimizer, sync)
        for group in optimizer.param_groups:
            group["lr"] *= way[2].get("_lr", 1.0)
        attached = Attached(model, optimizer, sync, link)
        before = link.meter.bytes_out
        batches = workload.batches("train", link.rank, link.size, seed)
        for _ in range(steps):
            attached.zero_grad()
            workload.loss(model, next(batches)).backward()
            attached.step()
        attached.finish()
        sent = (link.meter.bytes_out - before) / steps
        weights = attached.weights()
        loss = float("nan")
        if link.rank == 0:
            evaluated = workload.make_model()
            with torch.no_grad():
                for key, value in weights.items():
                    evaluated.get_parameter(key).copy_(value)
                held_out = [
                    (workload.tokens(b), float(workload.loss(evaluated, b))) for b in workload.batches("eval", 0, 1, 0)
                ]
            loss = sum(n * value for n, value in held_out) / sum(n for n, _ in held_out)
        return loss, sent, [w.clone() for w in weights.values()]

    found = memory.run(workers, work, timeout=900.0)
    stacks = [torch.stack(same) for same in zip(*(f[2] for f in found), strict=True)]
    square = sum(float((s - s.mean(0)).square().sum()) for s in stacks) / workers
    return found[0][0], found[0][1], (square / sum(s[0].numel() for s in stacks)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=sorted(PLANS))
    parser.add_argument("--steps", type=int, help="in place of each plan's own")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    heading(f"Held-out loss at equal steps, {chosen.workers} workers, mean of {chosen.seeds} seeds")
    for name, (options, usual, ways) in PLANS.items():
        steps = chosen.steps or usual
        if chosen.only not in (None, name):
            continue
        print(f"{name} {options or ''}, {steps} steps")
        print(f"  {'way':<29}{'held-out':>10}{'spread':>9}{'sent a step':>14}{'weights differ by':>19}")
        for way in ways:
            runs = [trained(name, way, chosen.workers, seed, steps) for seed in range(chosen.seeds)]
            losses = [loss for loss, _, _ in runs]
            spread = max(losses) - min(losses)
            print(
                f"  {way[0]:<29}{statistics.mean(losses):>10.4f}{spread:>9.4f}{units.size(runs[0][1]):>14}"
                f"{statistics.mean(r[2] for r in runs):>19.2e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
