"""How long an exchange takes among more and more workers, in the virtual seconds of a simulated network.

    python benchmarks/simulated_exchange.py [--numel 100000] [--link 100mbit,20ms] [--most 256]

The tensors are without data (``meta``): bytes and order are those of real ones, and 256 workers' all-reduce is 130,560
messages. The seconds do not depend on the machine or its load.
"""

from __future__ import annotations

import argparse

import torch
from common import heading

from laconic.exchange import Exchange, everyone, graph, pairs, push_sum
from laconic.links import simulated
from laconic.links.base import Link
from laconic.links.network import parse

ROUNDS = 4


def seconds(exchange: Exchange, workers: int, numel: int, link: str) -> tuple[float, float]:
    """Virtual seconds of a round, the longest of all workers', and the bytes that one sends in it."""

    def work(end: Link) -> tuple[float, float]:
        tensors = [torch.empty(numel, device="meta")]
        state = exchange.init(tensors)
        for _ in range(ROUNDS):
            _, state = exchange.run(tensors, state, end)
        return end.now() / ROUNDS, end.meter.bytes_out / ROUNDS

    ends = simulated.run(parse(link, workers), work)
    return max(time for time, _ in ends), max(nbytes for _, nbytes in ends)


def main() -> None:
    """Print a table: seconds and bytes of a round, for each exchange and number of workers."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--numel", type=int, default=100_000)
    arguments.add_argument("--link", default="100mbit,20ms")
    arguments.add_argument("--most", type=int, default=256)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    heading(f"An exchange of {given.numel:,} float32 values among simulated workers, each on {given.link}")
    counts = [n for n in (8, 16, 32, 64, 128, 256) if n <= given.most]
    exchanges = [everyone(), graph(topology="ring"), graph(topology="exponential"), push_sum(), pairs()]
    print(f"{'':40}" + "".join(f"{n:>10}" for n in counts))
    for exchange in exchanges:
        row = [seconds(exchange, n, given.numel, given.link) for n in counts]
        print(f"{exchange.name:<40}" + "".join(f"{time:>8.3f} s" for time, _ in row), flush=True)
        print(f"{'  bytes out':<40}" + "".join(f"{nbytes / 1e6:>7.2f} MB" for _, nbytes in row), flush=True)


if __name__ == "__main__":
    main()
