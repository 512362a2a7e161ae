"""Step time of laconic against torch's own way, same model, same data, in turns, over gloo on loopback.

``ddp`` against DistributedDataParallel; ``powersgd`` against DDP with torch's PowerSGD hook; ``topk`` against DDP with
a hook that all-gathers ``torch.topk`` of the bucket (with error feedback, as ours).

    python benchmarks/step_time.py            all three, a 10 M-parameter GPT, 2 processes
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import heading, in_turns, median_ratio, workers

ROUNDS, STEPS = 9, 2


def plain_topk(state, bucket):  # no annotations: DDP would want them resolved
    """What one writes first: torch.topk of the whole bucket, values and places all-gathered."""
    flat = bucket.buffer()
    residual = state.get(bucket.index())
    if residual is None or residual.numel() != flat.numel():  # DDP deals its buckets again after the first step
        residual = torch.zeros_like(flat)
    wanted = flat + residual
    places = wanted.abs().topk(max(1, flat.numel() // 100)).indices
    values = wanted[places]
    state[bucket.index()] = wanted.index_fill(0, places, 0)
    size = dist.get_world_size()
    all_values = [torch.empty_like(values) for _ in range(size)]
    all_places = [torch.empty_like(places) for _ in range(size)]
    dist.all_gather(all_values, values)
    dist.all_gather(all_places, places)
    flat.zero_()
    for v, p in zip(all_values, all_places, strict=True):
        flat.index_add_(0, p, v)
    flat.div_(size)
    future: torch.futures.Future = torch.futures.Future()
    future.set_result(flat)
    return future


def worker(out: str, size: str) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel

    import laconic
    from laconic.workloads import load

    torch.set_num_threads(1)
    workload = load("shakespeare", {"size": size})
    link = laconic.links.process_group("gloo")
    batches = workload.batches("train", link.rank, link.size, 0)

    def ours(method: str, **settings: Any) -> Any:
        model = workload.make_model()
        sync = laconic.attach(model, workload.make_optimizer(model), method, link, **settings)
        return model, sync

    def theirs(hook: str | None) -> Any:
        model = workload.make_model()
        optimizer = workload.make_optimizer(model)
        wrapped = DistributedDataParallel(model, bucket_cap_mb=100 if hook == "powersgd" else 25)
        if hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
            wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif hook == "topk":
            wrapped.register_comm_hook({}, plain_topk)
        return wrapped, optimizer

    def timed(pair: Any) -> Any:
        model, stepper = pair

        def run() -> float:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                stepper.zero_grad()
                workload.loss(model, next(batches)).backward()
                stepper.step()
            dist.barrier()
            return (time.perf_counter() - start) / STEPS

        return run

    made = {
        "laconic ddp": ours("ddp"),
        "torch DDP": theirs(None),
        "laconic powersgd": ours("powersgd", rank=4),
        "torch PowerSGD hook": theirs("powersgd"),
        "laconic topk": ours("topk", density=0.01),
        "plain topk hook": theirs("topk"),
    }
    ways = {name: timed(pair) for name, pair in made.items()}
    in_turns(ways, 2)
    times = in_turns(ways, ROUNDS)
    Path(out).write_text(json.dumps(times))
    link.barrier()
    link.close()


def main() -> None:
    heading("Seconds a step, 2 processes, gloo on loopback, shakespeare GPT of size 'ten' (10.7 M parameters)")
    times = workers(2, __file__, "worker")[0]
    pairs = [
        ("laconic ddp", "torch DDP"),
        ("laconic powersgd", "torch PowerSGD hook"),
        ("laconic topk", "plain topk hook"),
    ]
    print(f"{'ours':<18}{'theirs':<22}{'ours s':>8}{'theirs s':>10}{'ratio':>8}")
    for a, b in pairs:
        ratio = median_ratio(times[a], times[b])
        print(f"{a:<18}{b:<22}{statistics.median(times[a]):>8.3f}{statistics.median(times[b]):>10.3f}{ratio:>8.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "worker":
        worker(sys.argv[2], "ten")
    else:
        main()
