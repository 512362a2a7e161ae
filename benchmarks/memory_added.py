"""What each method keeps beside the model and the optimizer, in units of the model; the same on every machine.

The most that its state holds after any step of three rounds, what is under way included: as much as a checkpoint would.
Eight equal blocks, float32; plain SGD, which keeps nothing itself. Buffers of an exchange while it runs are not in it.

    python benchmarks/memory_added.py [--workers 4]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import heading

from laconic.attached import Attached
from laconic.errors import LaconicError
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import METHODS, build

BLOCKS, WIDTH, EVERY = 8, 64, 8
PUBLISHED = {  # the units of the specification's table, where it has the method
    "ddp": "0",
    "local-sgd": "0",
    "diloco": "2",
    "slowmo": "2",
    "streaming-diloco": "2",
    "co2": "3",
    "noloco": "2",
    "sgp": "1 scalar",
    "srrw": "N floats",
    "modest": "view",
    "single-merge": "0",
}
SHORT: dict[str, dict[str, Any]] = {  # for a run of 24 steps, all workers taking the same
    "post-local-sgd": {"start": EVERY},
    "uneven-diloco": {"least": EVERY, "most": EVERY},
    "hcef": {"least_steps": EVERY, "most_steps": EVERY},
}
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("diloco", {"fragments": 4}),
    ("diloco", {"overlap": 4}),
    ("diloco", {"overlap": EVERY}),
    ("diloco", {"momentum": 0.0}),
    ("streaming-diloco", {"overlap": 7}),
    ("streaming-diloco", {"feedback": True}),
    ("noloco", {"overlap": 4}),
    ("noloco", {"mixing": 0.5}),
    ("slowmo", {"overlap": 4}),
    ("co2", {"fragments": 4}),
    ("ddp", {"compress": "int8"}),
]


def kept(method: str, settings: dict[str, Any], workers: int) -> float:
    """Units of the model."""
    defaults = METHODS[method].defaults
    short = {k: v for k, v in {"every": EVERY, "warmup_steps": 4}.items() if k in defaults}
    sync = build(method, short | SHORT.get(method, {}) | settings)

    def work(link: Link) -> float:
        blocks = [torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS)]
        model = torch.nn.Sequential(*blocks)
        attached = Attached(model, torch.optim.SGD(model.parameters(), lr=0.01), sync, link)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        most = 0.0
        for step in range(3 * EVERY):
            x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * step + link.rank))
            if sync.explore is not None:
                attached.step(lambda x=x: model(x).square().mean())
            else:
                model(x).square().mean().backward()
                attached.step()
            attached.zero_grad()
            held = attached.state_dict()["tensors"].values()
            most = max(most, sum(t.numel() * t.element_size() for t in held) / size)
        attached.finish()
        return most

    return max(memory.run(workers, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    workers = parser.parse_args().workers
    torch.set_num_threads(1)
    heading(f"Memory that a method adds on each of {workers} workers, in units of the model")
    print(f"{'method':<18}{'settings':<26}{'units':>7}  {'published':>9}")
    for method, settings in [*((name, {}) for name in METHODS), *WAYS]:
        try:
            units = f"{kept(method, settings, workers):.2f}"
        except LaconicError as error:
            units = f"refused: {str(error)[:80]}"
        shown = " ".join(f"{k}={v}" for k, v in settings.items())
        print(f"{method:<18}{shown:<26}{units:>7}  {PUBLISHED.get(method, '') if not settings else '':>9}", flush=True)


if __name__ == "__main__":
    main()
