"""How long the flow simulator takes for a round of a thousand workers, and what splitting flows brings.

    python benchmarks/flows.py [--workers 1024] [--parameters 16777216] [--methods ddp,powersgd,...] [--on aws10,homes6]

For each method: the messages of one round, the seconds of a core's time that recording and playing them take, and the
round's own seconds on equal links and on each cluster. Then leaf-spine networks: whole flows on hashed paths and split
ones, in units of sprayed ones' seconds. What compiles or loads the loops is not counted.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import heading

from laconic.links.network import parse
from laconic.plan.cluster import read_cluster
from laconic.plan.fabric import Fabric, fabric_of, leaf_spine
from laconic.plan.flows import in_rounds, play
from laconic.plan.recording import recorded
from laconic.plan.spraying import ethereal, hashed, sprayed

METHODS = "ddp,powersgd,topk,dgc,signsgd,diloco,streaming-diloco,noloco,d-psgd,sgp"
LINK = "100mbit,20ms"


def rounds(methods: list[str], fabrics: dict[str, Fabric], workers: int, parameters: int) -> None:
    """A row for each method."""
    play(next(iter(fabrics.values())), recorded("ddp", 4, 4096))
    print(f"{'':18}{'messages':>10}{'record':>9}" + "".join(f"{name:>11}{'taken':>8}" for name in fabrics))
    for method in methods:
        begun = time.process_time()
        messages = recorded(method, workers, parameters)
        row = f"{method:<18}{len(messages.source):>10,}{time.process_time() - begun:>8.2f}s"
        for fabric in fabrics.values():
            begun = time.process_time()
            seconds = play(fabric, messages).seconds
            row += f"{seconds:>10.3f}s{time.process_time() - begun:>7.2f}s"
        print(row, flush=True)


def splitting() -> None:
    """Seconds of an all-to-all and of a shift among 64 hosts under 8 leaves, in units of ideal spraying's."""
    print(f"\n{'8 leaves of 8 hosts':34}{'whole, hashed':>14}{'split':>8}{'pieces':>8}{'sprayed':>9}")
    leaf = [worker // 8 for worker in range(64)]
    patterns = {
        "all-to-all": [(a, b, 1e6) for a in range(64) for b in range(64) if a != b],
        "each to the next leaf": [(w, (w + 8) % 64, 1e7) for w in range(64)],
    }
    for spines in (3, 4, 5, 8):
        fabric = leaf_spine(8, 8, spines, host=1.25e9, spine=1.25e9)
        for name, rows in patterns.items():
            times = []
            for deal in (hashed, ethereal, sprayed):
                dealt = deal(rows, leaf, range(spines))
                times.append((play(fabric, in_rounds(64, [dealt]), together=True).seconds, len(dealt)))
            ideal = times[2][0]
            print(
                f"{f'{spines} spines, {name}':34}{times[0][0] / ideal:>14.3f}{times[1][0] / ideal:>8.3f}"
                f"{times[1][1]:>8,}{times[2][1]:>9,}",
                flush=True,
            )


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--workers", type=int, default=1024)
    arguments.add_argument("--parameters", type=int, default=2**24)
    arguments.add_argument("--methods", default=METHODS)
    arguments.add_argument("--on", default="aws10,homes6")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    heading(f"One round of {given.workers:,} workers, {given.parameters:,} parameters; equal links are {LINK}")
    fabrics: dict[str, Fabric] = {"equal": fabric_of(parse(LINK, given.workers))}
    fabrics |= {name: fabric_of(read_cluster(name), given.workers) for name in filter(None, given.on.split(","))}
    rounds(given.methods.split(","), fabrics, given.workers, given.parameters)
    splitting()


if __name__ == "__main__":
    main()
