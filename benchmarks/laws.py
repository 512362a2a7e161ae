"""Whether a law of the loss predicts a larger model: characters' models of 6 sizes, 6 budgets, the largest held out.

The models are the Shakespeare workload's, between its nano and its small. Its learning rate is constant, so that one
run of a size passes all budgets, and each is an end; the rate of a size lies between those of the table's neighbours.
The loss of a budget is the held-out one.

    python benchmarks/laws.py [--steps 2000] [--seeds 1] [--sizes 6]
"""

from __future__ import annotations

import argparse
import math
from statistics import mean

import torch
from common import heading

from laconic.plan import farseer, laws
from laconic.plan.laws import Point
from laconic.workloads import shakespeare
from laconic.workloads.shakespeare import GPT, SIZES, Size

WIDTHS = (32, 48, 64, 96, 128, 192)
BUDGETS = 6
RATIO = math.sqrt(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the largest budget")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sizes", type=int, default=6)
    chosen = parser.parse_args()
    ends = [round(chosen.steps / RATIO**i) for i in reversed(range(BUDGETS))]
    heading(f"shakespeare, {chosen.sizes} sizes, budgets of {', '.join(map(str, ends))} steps, {chosen.seeds} seeds")
    points: list[Point] = []
    for width in WIDTHS[: chosen.sizes]:
        runs = [train(width, ends, seed) for seed in range(chosen.seeds)]
        points += [Point(*same[0][:2], mean(point.loss for point in same)) for same in zip(*runs, strict=True)]
        losses = "  ".join(f"{point.loss:.4f}" for point in points[-BUDGETS:])
        print(f"width {width:>4}  {points[-1].params:>9,.0f} parameters   {losses}", flush=True)
    largest = max(point.params for point in points)
    kept, held = ([p for p in points if (p.params == largest) is out] for out in (False, True))
    law = laws.fit(kept)
    print(f"\nChinchilla's law without the largest: {law}")
    told("Chinchilla's", law.loss, held)
    if chosen.sizes > 3:
        told("Farseer's", farseer.fit(kept).loss, held)
    every = laws.fit(points)
    told("Chinchilla's, fitted to all,", every.loss, points)


def told(name: str, predict: object, points: list[Point]) -> None:
    assert callable(predict)
    misses = [predict(point.params, point.tokens) / point.loss - 1 for point in points]
    print(f"{name:<30} misses by {mean(map(abs, misses)):.2%} on average, {max(map(abs, misses)):.2%} at worst")


def rate(width: int) -> float:
    """The learning rate for a width: on a line through the table's in logarithms."""
    low, high = SIZES["nano"], SIZES["small"]
    share = math.log(width / low.width) / math.log(high.width / low.width)
    return low.lr * (high.lr / low.lr) ** share


def train(width: int, ends: list[int], seed: int) -> list[Point]:
    """One run of a size: the held-out loss at the end of each budget."""
    torch.manual_seed(seed)
    size = Size(layers=2 if width <= 64 else 4, width=width, heads=max(1, width // 32), lr=rate(width))
    model = GPT(size, len(shakespeare.text()[2]), context=64)
    optimizer = shakespeare.make_optimizer(model)
    count = sum(p.numel() for p in model.parameters())
    stream, trained, points = shakespeare.batches("train", 0, 1, seed), 0, []
    for step in range(1, ends[-1] + 1):
        batch = next(stream)
        optimizer.zero_grad()
        shakespeare.loss(model, batch).backward()
        optimizer.step()
        trained += shakespeare.tokens(batch)
        if step in ends:
            points.append(Point(float(count), float(trained), held_out(model)))
    return points


@torch.no_grad()
def held_out(model: GPT) -> float:
    model.eval()
    batches = list(shakespeare.batches("eval", 0, 1, 0))
    counts = [shakespeare.tokens(batch) for batch in batches]
    total = sum(n * float(shakespeare.loss(model, batch)) for n, batch in zip(counts, batches, strict=True))
    model.train()
    return total / sum(counts)


if __name__ == "__main__":
    main()
