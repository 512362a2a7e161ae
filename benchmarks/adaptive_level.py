"""Accordion beside fixed levels: held-out loss and bytes at equal steps, with a learning rate that decays.

Fashion (SGD with momentum), the learning rate a tenth from 60 % of the steps on and a hundredth from 85 % on. The
workers are threads on memory links: losses and bytes are those of any link, seconds are not measured.

    python benchmarks/adaptive_level.py [--kind topk] [--steps 600] [--every 10] [--eta 0.5] [--seeds 2]
"""

from __future__ import annotations

import argparse
import statistics
import threading
from typing import Any, NamedTuple

import torch
from common import heading

from laconic.attached import Attached
from laconic.bench import units
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import ACCORDION_LEVELS, build
from laconic.workloads import load

DECAYS = {0.6: 0.1, 0.85: 0.01}  # from this share of the steps on, this share of the learning rate
BETWEEN: dict[str, list[float]] = {"topk": [0.03, 0.06], "powersgd": [2], "batch": []}


class Outcome(NamedTuple):
    loss: float
    nbytes: int
    light: float  # share of the entries that went by the light level, over all steps
    when: list[float]  # the same, in each tenth of the run


def trained(settings: dict[str, Any], workers: int, steps: int, seed: int) -> Outcome:
    workload = load("fashion")
    drawing = threading.Lock()

    def work(link: Link) -> Outcome:
        with drawing:  # the weights are drawn from torch's one generator
            torch.manual_seed(seed)
            model = workload.make_model()
        optimizer = workload.make_optimizer(model)
        start = [group["lr"] for group in optimizer.param_groups]
        attached = Attached(model, optimizer, build("accordion", settings), link)
        before = link.meter.bytes_out
        batches = workload.batches("train", link.rank, link.size, seed)
        shares = []
        for step in range(steps):
            factor = min([1.0, *(f for share, f in DECAYS.items() if step >= share * steps)])
            for group, lr in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = lr * factor
            attached.zero_grad()
            workload.loss(model, next(batches)).backward()
            attached.step()
            shares.append(light_share(attached))
        attached.drain()
        sent = link.meter.bytes_out - before
        with torch.no_grad():
            held_out = [(workload.tokens(b), float(workload.loss(model, b))) for b in workload.batches("eval", 0, 1, 0)]
        loss = sum(n * value for n, value in held_out) / sum(n for n, _ in held_out)
        tenths = [statistics.mean(shares[i * steps // 10 : (i + 1) * steps // 10]) for i in range(10)]
        return Outcome(loss, sent, statistics.mean(shares), tenths)

    return memory.run(workers, work, timeout=900.0)[0]


def light_share(attached: Attached) -> float:
    """The share of the entries of matrices that are at the light level now."""
    if not attached._buckets:
        return float(attached._state.light)
    sizes = [
        (p.numel(), light)
        for bucket in attached._buckets
        for p, light in zip(bucket.params, bucket.state.light, strict=True)
        if p.dim() > 1
    ]
    return sum(n for n, light in sizes if light) / sum(n for n, _ in sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(ACCORDION_LEVELS), default="topk")
    parser.add_argument("--light", type=float)
    parser.add_argument("--heavy", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    own = ACCORDION_LEVELS[chosen.kind]
    light = own[0] if chosen.light is None else chosen.light
    heavy = own[1] if chosen.heavy is None else chosen.heavy
    window = {"kind": chosen.kind, "every": chosen.every, "eta": chosen.eta}
    fixed = [heavy, *(level for level in BETWEEN[chosen.kind] if min(light, heavy) < level < max(light, heavy)), light]
    ways = {f"fixed {level:g}": window | {"light": level, "heavy": level} for level in fixed}
    ways[f"accordion {light:g} / {heavy:g}"] = window | {"light": light, "heavy": heavy}
    heading(
        f"fashion, {chosen.kind}, {chosen.steps} steps, lr x 0.1 at 60 % and x 0.01 at 85 %, {chosen.workers} workers, "
        f"mean of {chosen.seeds} seeds; windows of {chosen.every} steps, eta {chosen.eta:g}"
    )
    print(f"  {'way':<24}{'held-out':>10}{'spread':>9}{'sent':>12}{'of heavy':>10}{'light':>8}  light, by tenths")
    least = 1.0
    for name, settings in ways.items():
        runs = [trained(settings, chosen.workers, chosen.steps, seed) for seed in range(chosen.seeds)]
        losses = [run.loss for run in runs]
        nbytes = statistics.mean(run.nbytes for run in runs)
        mixed = name.startswith("accordion")
        least = nbytes if name == f"fixed {heavy:g}" else least
        print(
            f"  {name:<24}{statistics.mean(losses):>10.4f}{max(losses) - min(losses):>9.4f}{units.size(nbytes):>12}"
            f"{nbytes / least:>10.2f}{statistics.mean(r.light for r in runs) if mixed else 0:>8.1%}  "
            + (" ".join(f"{share:.2f}" for share in runs[0].when) if mixed else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()
