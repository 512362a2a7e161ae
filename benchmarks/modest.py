"""MoDeST past a crash: what a round sends, and the accuracy with and without four fifths of the workers killed.

Real training of ``--workers`` nodes on simulated links (virtual seconds, real models and messages), their data dealt
with ``--skew``. In one run all live; in the other ``--share`` of the workers close their links at one moment, in the
middle of a round and whatever they are doing. Losses, bytes and virtual seconds are the same on every machine load.

    python benchmarks/modest.py [--workload fashion] [--workers 50] [--sample 10] [--rounds 80] [--share 0.8]
"""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any, NamedTuple

import torch
from common import heading
from torch import nn

from laconic import attach
from laconic.bench import units
from laconic.errors import ConfigError
from laconic.links import simulated
from laconic.links.network import parse
from laconic.sync import modest
from laconic.workloads import adult, fashion

DOOM = 250  # a channel on which nobody speaks
WORKLOADS: dict[str, ModuleType] = {"fashion": fashion, "adult": adult}


class Ran(NamedTuple):
    """What one worker reports: None where it was killed."""

    accuracy: list[tuple[int, float]]
    seconds: float
    bytes_out: int
    steps: int
    finals: float


def accuracy(workload: ModuleType, net: nn.Module, weights: dict[str, Any]) -> float:
    """The share of the test rows that are told right."""
    there = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(weights)
    right = count = 0
    with torch.no_grad():
        for features, labels in workload.batches("eval", 0, 1, 0):
            out = net(features)
            guess = out.squeeze(1) > 0 if out.shape[1] == 1 else out.argmax(1)
            right += int((guess == labels.bool() if out.shape[1] == 1 else guess == labels).sum())
            count += len(labels)
    net.load_state_dict(there)
    return right / count


def run(args: argparse.Namespace, doomed: set[int], moment: float) -> list[Ran | None]:
    workload = WORKLOADS[args.workload]

    def work(link: Any) -> Ran | None:
        torch.manual_seed(args.seed)
        net = workload.make_model()
        optimizer = torch.optim.SGD(net.parameters(), lr=args.lr)
        method = modest(
            every=args.every,
            sample=args.sample,
            aggregators=args.aggregators,
            success=args.success,
            patience=args.patience,
            seed=args.seed,
        )
        batches = workload.batches("train", link.rank, link.size, args.seed, batch_size=args.batch_size, skew=args.skew)
        sync = attach(net, optimizer, method, link)
        before, began, seen, steps = link.meter.bytes_out, link.now(), [], 0

        def die() -> None:
            try:
                link.recv_any([link.rank], moment - link.now(), DOOM)
            except Exception:  # the moment has come
                link.close()

        if link.rank in doomed:
            link.lane("doom").start(die)
        try:
            while sync.rounds < args.rounds:
                link.compute(args.step_seconds)
                workload.loss(net, next(batches)).backward()
                sync.step()
                sync.zero_grad()
                steps += 1
                if link.rank == 0 and (not seen or sync.rounds >= seen[-1][0] + args.rounds // 8):
                    seen.append((sync.rounds, accuracy(workload, net, sync.weights())))
            ended, sent = link.now() - began, link.meter.bytes_out - before
            sync.finish()
        except ConfigError:
            if link.rank in doomed:
                return None
            raise
        final = accuracy(workload, net, sync.weights()) if link.rank == 0 else 0.0
        return Ran(seen, ended, sent, steps, final)

    return simulated.run(parse(args.link, args.workers), work)


def show(name: str, args: argparse.Namespace, ran: list[Ran | None]) -> float:
    alive = [one for one in ran if one is not None]
    assert ran[0] is not None, "worker 0 is never killed"
    workload = WORKLOADS[args.workload]
    size = 4 * sum(p.numel() for p in workload.make_model().parameters())
    told = 2 * args.aggregators * args.sample * size
    print(f"{name}: {len(alive)} of {args.workers} workers at the end, {ran[0].seconds:.1f} virtual s")
    print("  accuracy at round " + ", ".join(f"{round}: {100 * value:.1f} %" for round, value in ran[0].accuracy))
    print(f"  at the end {100 * ran[0].finals:.2f} %")
    if len(alive) == args.workers:
        sent = sum(one.bytes_out for one in alive) / args.rounds
        print(f"  bytes a round {units.size(sent)}, 2 a s P b = {units.size(told)}: {sent / told:.3f} of it")
    print(flush=True)
    return ran[0].finals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), default="fashion")
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--sample", type=int, default=10)
    parser.add_argument("--aggregators", type=int, default=2)
    parser.add_argument("--success", type=float, default=0.8)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--skew", type=float, default=0.5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--share", type=float, default=0.8, help="of the workers that is killed")
    parser.add_argument("--when", type=float, default=0.5, help="share of the run at which they are")
    parser.add_argument("--patience", type=float, default=30.0)
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--link", default="100mbit,20ms")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    heading(f"MoDeST on {args.workload}, {args.workers} workers, {args.share:.0%} of them killed")
    ran = run(args, set(), 0.0)
    alone = show("all live", args, ran)
    assert ran[0] is not None
    drawn = torch.randperm(args.workers - 1, generator=torch.Generator().manual_seed(args.seed)).add(1).tolist()
    killed = set(drawn[: round(args.share * args.workers)])
    crashed = show("killed", args, run(args, killed, args.when * ran[0].seconds))
    print(f"difference {100 * (alone - crashed):.2f} points")


if __name__ == "__main__":
    main()
