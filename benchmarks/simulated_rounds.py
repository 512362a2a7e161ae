"""How many rounds a second of real time a simulation does: each worker's tensors go to one partner and are averaged.

python benchmarks/simulated_rounds.py [--workers 256] [--numel 100000] [--rounds 60] [--repeats 3]
"""

from __future__ import annotations

import argparse
import time

import torch
from common import heading

from laconic.exchange import pairs
from laconic.links import simulated
from laconic.links.base import Link
from laconic.links.network import parse


def main() -> None:
    """Time it, and say how much of it is not the exchange's own arithmetic."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workers", type=int, default=256)
    arguments.add_argument("--numel", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    heading(f"{given.workers} simulated workers of {given.numel:,} parameters, in pairs")
    exchange = pairs()
    began: list[float] = []
    ended: list[float] = []

    def work(link: Link) -> float:
        tensors = [torch.full((given.numel,), float(link.rank))]
        state = exchange.init(tensors)
        for _ in range(2):  # the first rounds start threads and touch memory
            tensors, state = exchange.run(tensors, state, link)
        if not began:
            began.extend((time.perf_counter(), time.process_time()))
        first = link.now()
        for _ in range(given.rounds):
            tensors, state = exchange.run(tensors, state, link)
        ended[:] = time.perf_counter(), time.process_time()
        return (link.now() - first) / given.rounds

    for _ in range(given.repeats):
        began.clear()
        virtual = simulated.run(parse("100mbit,10ms", given.workers), work)
        seconds, processor = ended[0] - began[0], ended[1] - began[1]
        each = 1e6 / given.rounds / given.workers
        print(
            f"{given.rounds / seconds:6.1f} rounds/s of real time; a worker's round takes {seconds * each:.0f} µs, "
            f"{processor * each:.0f} µs of a processor, and {virtual[0] * 1e3:.1f} ms of virtual time"
        )


if __name__ == "__main__":
    main()
