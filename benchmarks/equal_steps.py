"""Which compressors reach the dense run's loss at equal steps? Runs long enough to settle, with the rate falling to 0.

Two workers as threads on memory links: losses and bytes are those of any link, seconds are not measured. Fashion and
Shakespeare (nano), each with its own optimizer (SGD with momentum; AdamW), and both with SGD clipped at 1 for what is
made for it: dgc carries the momentum itself, and Signum needs rates of its own, since every value's step is as long as
the rate. Those were found at 1500 steps, by factors of two. The rate rises over a twentieth of the steps; so does dgc's
sparsity, over a twentieth more.

    python benchmarks/equal_steps.py [--steps 2000] [--seeds 2] [--only fashion] [--ways dense,dgc]
                                     [--batch-size 2] [--size micro] [--rate dgc=0.8]

``--ways`` takes whole labels, and words that stand for all labels they are in.

Every way has dense's seeds, so that what is over dense is known better than either: its standard error is of the pairs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import threading
from typing import Any, NamedTuple

import torch
from common import heading

from laconic.attached import Attached
from laconic.bench import units
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import build
from laconic.workloads import load

WORKERS = 2
WARM = 20  # a run is so many times longer than its warm-up
OPTIONS: dict[str, dict[str, Any]] = {"fashion": {}, "shakespeare": {"size": "nano"}}
SGD = {"fashion": 0.05, "shakespeare": 0.4}  # rates, with momentum 0.9
SIGNS = {"fashion": 0.0005, "shakespeare": 0.002}


class Way(NamedTuple):
    """``rates`` are SGD's on each workload; None is the workload's own optimizer. ``clip`` bounds the mean gradient."""

    label: str
    method: str
    settings: dict[str, Any] = {}  # noqa: RUF012
    rates: dict[str, float] | None = None
    clip: float | None = None


OWN = [
    Way("dense", "ddp"),
    Way("powersgd rank 4", "powersgd", {"rank": 4}),
    Way("int4, feedback", "ddp", {"compress": "int4(stochastic=false)"}),
    Way("sign, majority, momentum (Signum)", "signsgd", {"momentum": 0.9}, SIGNS),
    Way("sign, feedback", "ddp", {"compress": "sign"}),
    Way("topk 1 %, feedback", "topk"),
]
BY_SGD = [
    Way("dense, SGD", "ddp", {}, SGD, 1.0),
    Way("powersgd rank 4, SGD", "powersgd", {"rank": 4}, SGD, 1.0),
    Way("dgc 0.1 %", "dgc", {}, SGD),
    Way("topk 0.1 %, feedback, SGD", "topk", {"density": 0.001}, SGD, 1.0),
]


def trained(name: str, way: Way, steps: int, seed: int, options: dict[str, Any]) -> tuple[float, float]:
    """Held-out loss after ``steps`` steps, and bytes a step out of worker 0."""
    workload = load(name, OPTIONS[name] | options)
    warm = {"warmup_steps": steps // WARM} if way.method == "dgc" else {}
    drawing = threading.Lock()

    def work(link: Link) -> tuple[float, float]:
        with drawing:  # the weights are drawn from torch's one generator
            torch.manual_seed(seed)
            model = workload.make_model()
        sync = build(way.method, way.settings | warm)
        if way.rates is not None:
            momentum = 0.0 if sync.momentum else 0.9
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), way.rates[name], momentum)
        else:
            optimizer = workload.make_optimizer(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: min(1.0, WARM * (t + 1) / steps) * 0.5 * (1 + math.cos(math.pi * t / steps))
        )
        attached = Attached(model, optimizer, sync, link, clip=way.clip)
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

    return memory.run(WORKERS, work, timeout=3600.0)[0]


def paced(way: Way, name: str, own: dict[str, float]) -> Way:
    """The way at the rate that was given for it, if one was and it steps by SGD."""
    rate = next((own[part] for part in own if part in way.label), None)
    return way if rate is None or way.rates is None else way._replace(rates={name: rate})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=sorted(OPTIONS))
    parser.add_argument("--ways", default="")
    parser.add_argument("--batch-size", type=int, help="of each worker (default: the workload's)")
    parser.add_argument("--size", help="shakespeare's (default: nano)")
    parser.add_argument("--rate", action="append", default=[], help="a way's own rate by SGD, such as dgc=0.8")
    chosen = parser.parse_args()
    options = {key: value for key in ("batch_size", "size") if (value := getattr(chosen, key)) is not None}
    own = {label: float(rate) for label, _, rate in (text.partition("=") for text in chosen.rate)}
    torch.set_num_threads(1)
    heading(f"Held-out loss after {chosen.steps} steps, {WORKERS} workers, mean of {chosen.seeds} seeds")
    whole = {way.label for way in OWN + BY_SGD}
    wanted = [word for word in chosen.ways.split(",") if word]
    for name in OPTIONS:
        if chosen.only not in (None, name):
            continue
        print(f"{name}\n  {'way':<34}{'held-out':>10}{'over dense':>12}{'known to':>10}{'spread':>9}{'sent':>14}")
        for ways in (OWN, BY_SGD):
            dense: list[float] = []
            for way in ways:
                if wanted and not any(word == way.label if word in whole else word in way.label for word in wanted):
                    continue
                at_own_rate = paced(way, name, own)
                runs = [trained(name, at_own_rate, chosen.steps, seed, options) for seed in range(chosen.seeds)]
                losses = [loss for loss, _ in runs]
                if way is ways[0]:
                    dense = losses
                more = [loss / least - 1 for loss, least in zip(losses, dense, strict=False)]
                over = statistics.mean(more) if more else math.nan
                known = statistics.stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.nan
                row = f"  {way.label:<34}{statistics.mean(losses):>10.4f}{over:>+12.2%}{known:>10.2%}"
                print(f"{row}{max(losses) - min(losses):>9.4f}{units.size(runs[0][1]):>14}", flush=True)


if __name__ == "__main__":
    main()
