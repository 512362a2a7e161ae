"""Gossip on simulated links: how long an exchange takes among ever more workers, and what merging once is worth.

First the virtual seconds and bytes of a round of each exchange, from 8 workers to 256, every link alike. Then a small
network on labels dealt by a Dirichlet distribution: the held-out accuracy of the workers' own models and of their mean,
with gossip placed early, late, sparse and nowhere. Virtual seconds, bytes and losses do not depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import heading
from laconic import attach, merging
from laconic.exchange import Exchange, everyone, graph, neighbours, pairs, push_sum
from laconic.links import memory, simulated
from laconic.links.network import parse

EXCHANGES: dict[str, Callable[[], Exchange]] = {
    "everyone (all-reduce)": everyone,
    "graph, ring": graph,
    "graph, torus": lambda: graph(topology="torus"),
    "graph, exponential": lambda: graph(topology="exponential"),
    "push_sum, one-peer": push_sum,
    "neighbours, 1": lambda: neighbours(budget=1),
    "pairs": pairs,
}


def rounds(sizes: Sequence[int], parameters: int, link: str, count: int) -> None:
    """Virtual seconds of a round by exchange and size."""
    print(f"A round of {parameters:,} parameters, {link} each: virtual seconds (MB out of each worker), {count} rounds")
    print(f"{'':24}" + "".join(f"{size:>18}" for size in sizes))
    for name, build in EXCHANGES.items():
        cells = []
        for size in sizes:

            def work(end: simulated.SimulatedLink, make: Callable[[], Exchange] = build) -> tuple[float, int]:
                talk, x = make(), [torch.zeros(parameters)]
                state, begun = talk.init(x), end.now()
                for _ in range(count):
                    _, state = talk.run(x, state, end)
                return end.now() - begun, end.meter.bytes_out

            seen = simulated.run(parse(link, size), work)
            seconds = max(spent for spent, _ in seen) / count
            sent = sum(out for _, out in seen) / size / count / 1e6
            cells.append(f"{seconds:.3f} ({sent:.2f})")
        print(f"{name:<24}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    print()


# -- merging once ------------------------------------------------------------------------------------------------

CLASSES, FEATURES, WORKERS, BATCH = 10, 24, 8, 32


def examples(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points around three centres a class, wide enough to overlap."""
    centres = torch.randn(3 * CLASSES, FEATURES, generator=torch.Generator().manual_seed(1))
    which = labels * 3 + torch.randint(0, 3, labels.shape, generator=generator)
    return centres[which] + 0.9 * torch.randn(len(labels), FEATURES, generator=generator), labels


def shares(concentration: float, seed: int) -> Tensor:
    """Each worker's chances of the classes."""
    torch.manual_seed(seed)
    return torch.distributions.Dirichlet(torch.full((CLASSES,), concentration)).sample((WORKERS,))


def accuracy(net: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """The share of labels that it gets right."""
    with torch.no_grad():
        return float((net(data[0]).argmax(1) == data[1]).float().mean())


def merge(method: str, settings: dict[str, object], steps: int, seed: int) -> tuple[float, float, float, float]:
    """Accuracy of the workers' own models on average, and of their mean; bytes out of each; how far they are apart."""
    dealt = shares(0.1, seed)
    held_out = examples(torch.arange(2000) % CLASSES, torch.Generator().manual_seed(99))

    def work(link: memory.MemoryLink) -> tuple[float, float, float, float]:
        net = nn.Sequential(nn.Linear(FEATURES, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, CLASSES))
        generator = torch.Generator().manual_seed(1000 * seed + link.rank)
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) * (2 / p.shape[-1]) ** 0.5)
        sync = attach(net, torch.optim.SGD(net.parameters(), lr=0.05), method, link, **settings)
        for _ in range(steps):
            x, y = examples(torch.multinomial(dealt[link.rank], BATCH, True, generator=generator), generator)
            nn.functional.cross_entropy(net(x), y).backward()
            sync.step()
            sync.zero_grad()
        mean = merging.merged(sync)
        own = accuracy(net, held_out)
        with merging.standing_in(net, mean):
            together = accuracy(net, held_out)
        apart = merging.distance(sync.weights(), mean)
        before = link.meter.bytes_out
        sync.finish()
        return own, together, before, apart

    seen = memory.run(WORKERS, work)
    return tuple(sum(column) / WORKERS for column in zip(*seen, strict=True))  # type: ignore[return-value]


def merging_once(steps: int, seeds: int) -> None:
    """The table of when to gossip."""
    single: dict[str, object] = {"every": 10, "horizon": steps}
    ways: dict[str, tuple[str, dict[str, object]]] = {
        "ddp": ("ddp", {}),
        "d-psgd, ring, each step": ("d-psgd", {}),
        "alone (no gossip)": ("single-merge", single | {"budget": 0.0}),
        "budget 0.2": ("single-merge", single | {"budget": 0.2}),
        "budget 1": ("single-merge", single | {"budget": 1.0}),
        "budget 0.2, dense 10-15 %": ("single-merge", single | {"schedule": "truncate_v2", "start": 0.1}),
        "budget 0.2, dense 50-55 %": ("single-merge", single | {"schedule": "truncate_v2", "start": 0.5}),
        "budget 0.2, dense 90-95 %": ("single-merge", single | {"schedule": "truncate_v2", "start": 0.9}),
        "budget 0.2, late": ("single-merge", single | {"schedule": "late"}),
    }
    print(f"{WORKERS} workers, Dirichlet 0.1, {steps} steps, mean of {seeds} seeds; the mean is taken at the end")
    print(f"{'':28}{'own accuracy':>14}{'of the mean':>14}{'sent':>12}{'apart^2':>10}")
    for name, (method, settings) in ways.items():
        seen = [merge(method, settings, steps, seed) for seed in range(seeds)]
        own, mean, sent, apart = (sum(column) / seeds for column in zip(*seen, strict=True))
        print(f"{name:<28}{own:>14.3f}{mean:>14.3f}{sent / 1e6:>9.2f} MB{apart:>10.2f}", flush=True)


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="8,16,32,64,128,256")
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--link", default="100mbit,50ms")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    heading("Gossip: rounds among ever more workers, and merging once")
    rounds([int(size) for size in args.sizes.split(",")], args.parameters, args.link, args.rounds)
    merging_once(args.steps, args.seeds)


if __name__ == "__main__":
    main()
