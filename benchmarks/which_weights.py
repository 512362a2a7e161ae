"""Which weights of Streaming DiLoCo to evaluate: a worker's own, or the anchors that all workers share.

Two workers in one process, shakespeare (micro), no link limit; held-out losses of both at some steps, and of
data-parallel training at the same steps.

    python benchmarks/which_weights.py [--steps 150]
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import torch
from common import heading

from laconic.attached import Attached
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import build
from laconic.workloads import load

POINTS = (0.1, 0.2, 0.4, 0.7, 1.0)
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {}),
    ("streaming-diloco", {"every": 6}),
    ("streaming-diloco", {"every": 6, "mixing": 0.0}),
    ("streaming-diloco", {"every": 12}),
    ("streaming-diloco", {"every": 24}),
]


def losses(method: str, settings: dict[str, Any], steps: int) -> list[tuple[int, float, float]]:
    workload = load("shakespeare")
    held_out = list(workload.batches("eval", 0, 2, 0))[::2]
    points = {max(1, round(share * steps)) for share in POINTS}
    sync = build(method, settings)
    drawing = threading.Lock()

    def evaluated(weights: list[torch.Tensor]) -> float:
        model = workload.make_model()
        with torch.no_grad():
            for p, w in zip(model.parameters(), weights, strict=True):
                p.copy_(w)
            counted = [(workload.tokens(b), float(workload.loss(model, b))) for b in held_out]
        return sum(n * value for n, value in counted) / sum(n for n, _ in counted)

    def train(link: Link) -> list[tuple[int, float, float]]:
        with drawing:  # the weights are drawn from torch's one generator
            torch.manual_seed(0)
            model = workload.make_model()
        attached = Attached(model, workload.make_optimizer(model), sync, link)
        batches = workload.batches("train", link.rank, link.size, 0)
        found = []
        for step in range(1, steps + 1):
            attached.zero_grad()
            workload.loss(model, next(batches)).backward()
            attached.step()
            if step in points and link.rank == 0:
                own = [p.detach().clone() for p in model.parameters()]
                shared = list(own)
                if method != "ddp":
                    for fragment in attached._state.fragments:
                        for i, anchor in zip(fragment.members, fragment.anchor, strict=True):
                            shared[i] = anchor
                found.append((step, evaluated(own), evaluated(shared)))
        attached.drain()
        return found

    return memory.run(2, train, timeout=600.0)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    heading(f"Held-out loss of a worker's own weights / of the shared anchors, shakespeare (micro), {steps} steps")
    for method, settings in WAYS:
        told = "  ".join(f"{step}: {own:.3f} / {shared:.3f}" for step, own, shared in losses(method, settings, steps))
        print(f"{method:<17} {settings!s:<30} {told}", flush=True)


if __name__ == "__main__":
    main()
