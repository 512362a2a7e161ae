"""Which feedback finds the optimum where workers hold unlike data? Rounds and bytes to a gradient norm.

Logistic regression with an l2 penalty on mushrooms and a9a (the training file), rows sorted by label and dealt to the
workers in runs, full gradients in float64, Top-k. A loop in one process over the compressors themselves, with packets
read as receivers read them; no link, no seconds. Each method runs with every step of the grid, which is in units of 1/L
for the loss's smoothness L; shown is the step that reached 1e-6 in the fewest rounds, or came nearest to it.

    python benchmarks/heterogeneous.py [--workers 10] [--rounds 1000] [--density 0.1] [--only a9a]
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import heading
from torch import Tensor

from laconic.bench import units
from laconic.compress import Compressor, econtrol, ef21, ef21_sgdm, error_feedback, identity, topk
from laconic.compress.base import accumulate
from laconic.packet import message_nbytes
from laconic.workloads import adult
from laconic.workloads.shares import deal_by_label

GRID = (4.0, 2.0, 1.0, 0.5, 0.1)
GOALS = (1e-2, 1e-4, 1e-6)
ENOUGH = 1e-7  # a run that came so far is over
LOST = 1e3
WAYS: dict[str, Callable[[float], Compressor]] = {
    "gradient descent": lambda density: identity(),
    "topk alone": topk,
    "error_feedback(topk)": lambda density: error_feedback(topk(density)),
    "ef21(topk)": lambda density: ef21(topk(density)),
    "ef21_sgdm(topk)": lambda density: ef21_sgdm(topk(density)),
    "econtrol(topk)": lambda density: econtrol(topk(density)),
}


class Problem(NamedTuple):
    """``rows`` are features times labels (+1, -1); ``columns``, one block of them a worker, over its number of rows."""

    rows: Tensor
    columns: Tensor
    workers: int
    size: int
    penalty: float
    smoothness: float

    def gradients(self, x: Tensor) -> Tensor:
        """Each worker's own gradient, a row each."""
        slopes = -torch.sigmoid(-(self.rows @ x))
        return (self.columns @ slopes).reshape(self.workers, self.size) + self.penalty * x


class Result(NamedTuple):
    """``at``: the round at which each goal was reached; ``nbytes``: mean bytes of one message."""

    step: float
    norm: float
    at: list[int | None]
    nbytes: float


def problem(name: str, workers: int, penalty: float) -> Problem:
    if name == "a9a":
        features, labels = (t.double().numpy() for t in adult.rows("train"))
    else:
        with np.load(Path(adult.__file__).parent / "data" / "mushrooms.npz", allow_pickle=False) as packed:
            places, labels = packed["places"].astype(np.int64) - 1, packed["labels"]
        features = np.zeros((len(places), 112))
        np.put_along_axis(features, places, 1.0, axis=1)
    shares = [deal_by_label(labels, worker, workers, seed=0, skew=1.0) for worker in range(workers)]
    order = np.concatenate(shares)
    signed = features[order] * np.where(labels[order] > 0, 1.0, -1.0)[:, None]
    size, blocks, at = signed.shape[1], np.zeros((workers * signed.shape[1], len(order))), 0
    for worker, share in enumerate(shares):
        blocks[worker * size : (worker + 1) * size, at : at + len(share)] = signed[at : at + len(share)].T / len(share)
        at += len(share)
    smoothness = float(np.linalg.eigvalsh(signed.T @ signed / len(order))[-1]) / 4 + penalty
    rows, columns = torch.from_numpy(signed).to_sparse_csr(), torch.from_numpy(blocks).to_sparse_csr()
    return Problem(rows, columns, workers, size, penalty, smoothness)


def descend(task: Problem, compressor: Compressor, step: float, rounds: int) -> Result:
    """So many rounds of everyone's mean, with the gradient norm of the whole loss before each."""
    x = torch.zeros(task.size, dtype=torch.float64)
    states = [compressor.init(x) for _ in range(task.workers)]
    at: list[int | None] = [None] * len(GOALS)
    norm, nbytes = math.inf, 0
    for number in range(rounds):
        gradients = task.gradients(x)
        norm = float(gradients.mean(0).norm())
        at = [number if a is None and norm <= goal else a for a, goal in zip(at, GOALS, strict=True)]
        if norm < ENOUGH or not norm < LOST:
            break
        mean = torch.zeros_like(x)
        for i, gradient in enumerate(gradients):
            packet, states[i] = compressor.compress(gradient, states[i])
            nbytes += message_nbytes([packet])
            accumulate(compressor, packet, mean, 1 / task.workers)
        if compressor.integrate is not None:  # every worker's is the same: one stands for all
            mean, states[0] = compressor.integrate(mean, states[0])
        x = x - step / task.smoothness * mean
    return Result(step, norm, at, nbytes / (number * task.workers or 1))


def best(results: list[Result]) -> Result:
    """The fewest rounds to the last goal; where none reached it, the smallest norm at the end."""
    return min(results, key=lambda r: (r.at[-1] if r.at[-1] is not None else math.inf, r.norm))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--penalty", type=float, default=0.02)
    parser.add_argument("--only", choices=("mushrooms", "a9a"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
    heading(f"Unlike data: {chosen.workers} workers, rows sorted by label, Top-k of {chosen.density:g}")
    for name in (chosen.only,) if chosen.only else ("mushrooms", "a9a"):
        task = problem(name, chosen.workers, chosen.penalty)
        own = task.gradients(torch.zeros(task.size, dtype=torch.float64))
        norms = f"{float(own.mean(0).norm()):.3g}, of workers' own {float(own.norm(dim=1).mean()):.3g}"
        print(f"{name}: {task.rows.shape[0]} rows, {task.size} features, L {task.smoothness:.3g}, ", end="")
        print(f"penalty {task.penalty:g}; at the start the norm of the gradient is {norms} on average")
        goals = "".join(f"{f'to {goal:g}':>10}" for goal in GOALS)
        print(f"  {'method':<22}{'step x L':>9}{'norm':>11}{goals}{'a message':>11}{'to 1e-4':>10}  norms of all steps")
        for way, build in WAYS.items():
            results = [descend(task, build(chosen.density), step, chosen.rounds) for step in GRID]
            r = best(results)
            counts = "".join(f"{'-' if a is None else a:>10}" for a in r.at)
            spent = "-" if r.at[1] is None else units.size(r.at[1] * r.nbytes)
            every = " ".join("lost" if not one.norm < LOST else f"{one.norm:.0e}" for one in results)
            print(f"  {way:<22}{r.step:>9g}{r.norm:>11.1e}{counts}{r.nbytes:>9.0f} B{spent:>10}  {every}", flush=True)


if __name__ == "__main__":
    main()
