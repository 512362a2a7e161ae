"""laconic beside torch's own ways of training on a slow link, in one run on the kernel-shaped testbed. Needs root.

A 10.7 M-parameter GPT, 2 workers, 100 Mbit/s, so many seconds each: DistributedDataParallel, its fp16 hook, post-local
SGD, PowerSGD rank 4, and methods of laconic. For each, steps as a share of what the same workers do without a network,
and the held-out loss at the end (of the weights that the method would ship; torch's ways: worker 0's).

    python benchmarks/torch_ways.py [--seconds 90] [--rate 100mbit] [--ways ddp,ours-streaming] [--option batch_size=8]
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
IDEAL_SECONDS = 12.0
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


def worker(way: str, seconds: float, options: dict[str, Any], out: str) -> None:
    import torch.distributed as dist

    import laconic
    from laconic.fault.ending import Ending
    from laconic.links.rendezvous import rendezvous
    from laconic.methods import build
    from laconic.train import set_learning
    from laconic.workloads import load

    torch.set_num_threads(1)
    workload = load("shakespeare", options)
    link = laconic.links.process_group("gloo")
    torch.manual_seed(0)
    model = workload.make_model()
    optimizer = workload.make_optimizer(model)
    sync = None
    if way in TORCH:
        runs, step = torch_way(way, model, optimizer)
    else:
        name, settings = ("alone", {}) if way == "ideal" else OURS[way]
        method = build(name, settings)
        set_learning(optimizer, method)
        runs, sync = model, laconic.attach(model, optimizer, method, link)
        step = sync.step
    ending = Ending(rendezvous(60, "ending")[2], rendezvous(60, "ending")[2], link.rank, link.size)
    batches = workload.batches("train", link.rank, link.size, 0)
    dist.barrier()
    start, steps = time.perf_counter(), 0
    while ending.may_begin(steps + 1):
        optimizer.zero_grad()
        workload.loss(runs, next(batches)).backward()
        step()
        steps += 1
        if link.rank == 0 and time.perf_counter() - start >= seconds:
            ending.ask("done")
    taken = time.perf_counter() - start
    waited = link.meter.seconds_waiting / taken
    if sync is not None:
        sync.drain()
        model.load_state_dict(model.state_dict() | sync.weights())
    loss = None
    if link.rank == 0:
        model.eval()
        held_out = list(workload.batches("eval", 0, link.size, 0))
        with torch.no_grad():
            losses = [(workload.tokens(b), float(workload.loss(model, b))) for b in held_out]
        loss = sum(n * value for n, value in losses) / sum(n for n, _ in losses)
    Path(f"{out}.{link.rank}").write_text(
        json.dumps({"steps": steps, "seconds": taken, "loss": loss, "waiting": waited})
    )
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
    heading(f"2 workers on the testbed, {chosen.rate}, {chosen.seconds:g} s each, shakespeare {options}")

    def run(way: str, seconds: float) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, Testbed(parse(chosen.rate, 2)) as bed:
            plan = json.dumps([way, seconds, options, OURS])
            statuses = run_everywhere(bed, [sys.executable, __file__, "worker", plan, f"{folder}/out"])
            if any(statuses):
                raise SystemExit(f"{way}: a worker ended with {statuses}")
            found: dict[str, Any] = json.loads(Path(f"{folder}/out.0").read_text())
        return found | {"rate": found["steps"] / found["seconds"]}

    # The ideal is measured again between the ways: a machine that others share too drifts within minutes.
    before = run("ideal", IDEAL_SECONDS)["rate"]
    print(f"{'way':<28}{'steps':>7}{'steps/s':>9}{'of ideal':>10}{'waiting':>9}{'held-out':>10}", flush=True)
    for way in ways:
        found = run(way, chosen.seconds)
        after = run("ideal", IDEAL_SECONDS)["rate"]
        share = "" if way in TORCH else f"{found['waiting']:.1%}"
        print(
            f"{way:<28}{found['steps']:>7}{found['rate']:>9.3f}{2 * found['rate'] / (before + after):>10.1%}{share:>9}"
            f"{found['loss']:>10.4f}   ideal {before:.3f}, {after:.3f}",
            flush=True,
        )
        before = after


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "worker":
        way, seconds, options, ours = json.loads(sys.argv[2])
        OURS.update({name: (method, settings) for name, (method, settings) in ours.items()})
        worker(way, seconds, options, sys.argv[3])
    else:
        main()
