"""laconic beside torch's own ways of training on a slow link, in one run on the kernel-shaped testbed. Needs root.

A 10.7 M-parameter GPT, 2 workers, 100 Mbit/s, so many seconds each: DistributedDataParallel, its fp16 hook, post-local
SGD, PowerSGD rank 4, and methods of laconic. For each, its rate of steps as a share of the ideal's, and the held-out
loss at the end (of the weights that the method would ship; torch's ways: worker 0's).

The ideal is the same training by each worker alone. A machine that others share drifts by a tenth within a minute, so
the same processes take a few steps of it after every eighth of the way's: both rates are of the same minutes. What the
way still has under way is waited for first, on the way's clock.

    python benchmarks/torch_ways.py [--seconds 90] [--rate 100mbit] [--ways "torch DDP,laconic ddp"] [--option …]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import heading

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "laconic ddp": ("ddp", {}),
    "laconic powersgd": ("powersgd", {"rank": 4}),
    "laconic streaming-diloco": (
        "streaming-diloco",
        {"every": 24, "fragments": 3, "overlap": 2, "lr": 0.7, "momentum": 0.8},
    ),
}
TORCH = ("torch DDP", "torch DDP fp16 hook", "torch post-local SGD", "torch PowerSGD rank 4")
TURN, FIRST, IDEAL_STEPS = 8, 4, 3  # after steps 4, 12, 20, … of the way come three of the ideal
PERIOD = 16  # of post-local SGD's averaging


def torch_way(way: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """The wrapped model, and what to call in the optimizer's place."""
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook, powerSGD_hook
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model, bucket_cap_mb=100 if "Power" in way else 25)
    step = optimizer.step
    if way == "torch DDP fp16 hook":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif way == "torch post-local SGD":
        state = post_localSGD_hook.PostLocalSGDState(None, dist.new_subgroups(group_size=1)[0], 2)
        wrapped.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
        averager = PeriodicModelAverager(period=PERIOD, warmup_steps=2)

        def step() -> None:  # type: ignore[misc]
            optimizer.step()
            averager.average_parameters(model.parameters())
    elif way == "torch PowerSGD rank 4":
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped, step


class Trainer:
    """One way of training on this worker's batches, timed step by step."""

    loose = False

    def __init__(self, workload: Any, link: Any, way: str) -> None:
        from laconic import attach
        from laconic.methods import build
        from laconic.train import set_learning

        torch.manual_seed(0)
        self.workload = workload
        self.model = self.runs = workload.make_model()
        self.optimizer = workload.make_optimizer(self.model)
        self.batches = workload.batches("train", link.rank, link.size, 0)
        self.step, self.sync = self.optimizer.step, None
        self.steps, self.seconds = 0, 0.0
        if way in TORCH:
            self.runs, self.step = torch_way(way, self.model, self.optimizer)
        elif way in OURS:
            name, settings = OURS[way]
            method = build(name, settings)
            set_learning(self.optimizer, method)
            self.sync = attach(self.model, self.optimizer, method, link)
            self.step = self.sync.step

    def train(self) -> None:
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.workload.loss(self.runs, next(self.batches)).backward()
        self.step()
        self.steps, self.seconds = self.steps + 1, self.seconds + time.perf_counter() - start

    def drain(self) -> None:
        start = time.perf_counter()
        if self.sync is not None:
            self.sync.drain()
        self.seconds += time.perf_counter() - start

    def held_out(self) -> float:
        if self.sync is not None:
            self.model.load_state_dict(self.model.state_dict() | self.sync.weights())
        self.model.eval()
        with torch.no_grad():
            batches = self.workload.batches("eval", 0, 1, 0)
            losses = [(self.workload.tokens(b), float(self.workload.loss(self.model, b))) for b in batches]
        return sum(n * loss for n, loss in losses) / sum(n for n, _ in losses)


def worker(way: str, seconds: float, options: dict[str, Any], out: str) -> None:
    from laconic.links import process_group
    from laconic.workloads import load

    torch.set_num_threads(1)
    workload = load("shakespeare", options)
    link = process_group("gloo")
    race(Trainer(workload, link, way), Trainer(workload, link, "ideal"), link, seconds, out)


def race(run: Trainer, ideal: Trainer, link: Any, seconds: float, out: str, first: int = FIRST) -> None:
    """Take steps of ``run``, and after every eighth of them, from the ``first``, some of the ideal; write what came.

    All workers end after the same step; those that do not wait for one another (``run.loose``) each in its own time.
    """
    from laconic.fault.ending import Ending
    from laconic.links.rendezvous import rendezvous

    ending = Ending(rendezvous(60, "ending")[2], rendezvous(60, "ending")[2], link.rank, link.size)
    ideal.train()
    ideal.steps, ideal.seconds = 0, 0.0
    link.barrier()
    while run.seconds < seconds if run.loose else ending.may_begin(run.steps + 1):
        run.train()
        if run.steps % TURN == first:
            run.drain()
            for _ in range(IDEAL_STEPS):
                ideal.train()
        if link.rank == 0 and run.seconds >= seconds:
            ending.ask("done")
    found = {
        "steps": run.steps,
        "rate": run.steps / run.seconds,
        "ideal": ideal.steps / ideal.seconds,
        "waiting": link.meter.seconds_waiting / run.seconds,
    }
    run.drain()
    if link.rank == 0:
        found["loss"] = run.held_out()
    Path(f"{out}.{link.rank}").write_text(json.dumps(found))
    link.barrier()
    os._exit(0)


def main() -> None:
    from laconic.bench.testbed import Testbed, run_everywhere
    from laconic.links import parse
    from laconic.recipe import read_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rate", default="100mbit")
    parser.add_argument("--ways", default="")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--ours", action="append", default=[], help="NAME=METHOD:key=value:… adds a way of laconic's")
    chosen = parser.parse_args()
    for text in chosen.ours:
        name, _, rest = text.partition("=")
        method, *pairs = rest.split(":")
        OURS[name] = (method, read_settings(pairs))
    options = {"size": "ten", "batch_size": 8} | read_settings(chosen.option)
    ways = [w for w in chosen.ways.split(",") if w] or [*TORCH, *OURS]
    if strange := [w for w in ways if w not in (*TORCH, *OURS)]:
        parser.error(f"there is no way {strange[0]!r}; there are {', '.join([*TORCH, *OURS])}")
    heading(f"2 workers on the testbed, {chosen.rate}, {chosen.seconds:g} s each, shakespeare {options}")

    def run(way: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, Testbed(parse(chosen.rate, 2)) as bed:
            plan = json.dumps([way, chosen.seconds, options, OURS])
            statuses = run_everywhere(bed, [sys.executable, __file__, "worker", plan, f"{folder}/out"])
            if any(statuses):
                raise SystemExit(f"{way}: a worker ended with {statuses}")
            found: dict[str, Any] = json.loads(Path(f"{folder}/out.0").read_text())
        return found

    print(
        f"{'way':<28}{'steps':>7}{'steps/s':>9}{'ideal':>8}{'of ideal':>10}{'waiting':>9}{'held-out':>10}", flush=True
    )
    for way in ways:
        found = run(way)
        waiting = "" if way in TORCH else f"{found['waiting']:.1%}"
        print(
            f"{way:<28}{found['steps']:>7}{found['rate']:>9.3f}{found['ideal']:>8.3f}"
            f"{found['rate'] / found['ideal']:>10.1%}{waiting:>9}{found['loss']:>10.4f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "worker":
        way, seconds, options, ours = json.loads(sys.argv[2])
        OURS.update({name: (method, settings) for name, (method, settings) in ours.items()})
        worker(way, seconds, options, sys.argv[3])
    else:
        main()
