"""How evenly a self-repellent walk samples, against what its formula says; and what that is worth to an optimizer.

``n Cov(x_n)``, x the shares of visits of a walk of n steps, for several alpha, over thousands of walks at once, against
:func:`laconic.exchange.kernel.sampling_covariance`. Then stochastic descent on least squares along the walk: the mean
square error with the visits settling sooner than the weights (memory < cooling), and later. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import heading
from laconic.exchange.kernel import base, repelled, sampling_covariance
from laconic.exchange.topology import shape

GRAPHS = {"6 workers, a ring and chords": ("0-1,1-2,2-3,3-4,4-5,0-5,0-3,1-4,1-5", 6), "ring of 8": ("ring", 8)}


def transitions(graph: str, size: int) -> np.ndarray:
    """The base chain, as the walk's own code has it."""
    made = shape(graph).among(size)
    degrees = {rank: len(made.targets(rank, 0)) for rank in range(size)}
    rows = np.zeros((size, size))
    for rank in range(size):
        for to, chance in base({other: degrees[other] for other in (rank, *made.targets(rank, 0))}, rank).items():
            rows[rank, to] = chance
    return rows


class Walks:
    """Many walks at once; each step is one of ``laconic.exchange.kernel``'s, which a check compares."""

    def __init__(self, rows: np.ndarray, alpha: float, memory: float, walks: int, seed: int) -> None:
        self.rows, self.alpha, self.memory = rows, alpha, memory
        self.size = len(rows)
        self.draw = np.random.default_rng(seed)
        self.at = self.draw.integers(0, self.size, walks)
        self.visits = np.full((walks, self.size), 1 / self.size)
        self.number = 0
        chances = repelled({j: p for j, p in enumerate(rows[0]) if p}, [0.1 + j for j in range(self.size)], alpha)
        ours = self.chances(rows[:1], np.array([[0.1 + j for j in range(self.size)]]))[0]
        assert all(abs(ours[j] - p) < 1e-12 for j, p in chances.items())

    def chances(self, rows: np.ndarray, visits: np.ndarray) -> np.ndarray:
        weights = rows * (visits / visits.max(1, keepdims=True)) ** -self.alpha
        return weights / weights.sum(1, keepdims=True)

    def step(self) -> None:
        """Move all of them, and count the visit."""
        cumulative = self.chances(self.rows[self.at], self.visits).cumsum(1)
        place = self.draw.random(len(self.at))[:, None] * cumulative[:, -1:]
        self.at = (cumulative < place).sum(1)
        weight = (self.number + 1 + self.size) ** -self.memory
        self.visits *= 1 - weight
        self.visits[np.arange(len(self.at)), self.at] += weight
        self.number += 1


def sampling(steps: int, walks: int, seed: int) -> bool:
    """The first table; whether all are within a tenth."""
    within = True
    for name, (graph, size) in GRAPHS.items():
        rows = transitions(graph, size)
        print(f"{name}: trace of n Cov(x_n), {walks:,} walks of {steps:,} steps\n  alpha  formula  measured  ratio")
        for alpha in (0.0, 1.0, 2.0, 5.0, 20.0):
            moving = Walks(rows, alpha, 1.0, walks, seed)
            for _ in range(steps):
                moving.step()
            formula = float(sampling_covariance(torch.tensor(rows), alpha).trace())
            measured = (steps + size) * float(((moving.visits - 1 / size) ** 2).sum(1).mean())
            within &= abs(measured / formula - 1) < 0.1
            print(f"  {alpha:5g}  {formula:7.4f}  {measured:8.4f}  {measured / formula:5.3f}", flush=True)
        print()
    return within


def descent(steps: int, walks: int, seed: int) -> None:
    """The second table: least squares, each worker with a minimum of its own, along the walk."""
    graph, size = next(iter(GRAPHS.values()))
    rows = transitions(graph, size)
    centres = np.random.default_rng(7).standard_normal((size, 4))
    centres -= centres.mean(0)
    print(f"least squares along the walk: mean square error over the step size, {walks:,} walks of {steps:,} steps")
    print("                                     alpha 0   alpha 1   alpha 5  alpha 20")
    cases = (
        ("visits settle sooner (0.7 < 0.9)", 0.7, 0.9),
        ("equally (0.8 = 0.8)", 0.8, 0.8),
        ("later (0.9 > 0.6)", 0.9, 0.6),
    )
    for name, memory, cooling in cases:
        found = []
        for alpha in (0.0, 1.0, 5.0, 20.0):
            moving = Walks(rows, alpha, memory, walks, seed)
            theta = np.zeros((walks, 4))
            for number in range(steps):
                moving.step()
                theta -= (number + 2) ** -cooling * (theta - centres[moving.at])
            found.append(float((theta**2).sum(1).mean()) / (steps + 1) ** -cooling)
        print(f"  {name:<33}" + "".join(f"{value:10.4f}" for value in found), flush=True)


def main() -> int:
    """Measure and print both; 1 if a variance is off by a tenth."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--walks", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    heading("Self-repellent walks: sampling variance against its formula")
    right = sampling(args.steps, args.walks, args.seed)
    descent(args.steps, args.walks, args.seed)
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
