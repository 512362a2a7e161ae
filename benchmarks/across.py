"""Stages or copies across a slow link: a step predicted, and rehearsed with real bytes between two sites of two.

    python benchmarks/across.py [--on paced|testbed] [--inside 100mbit] [--between 10mbit] [--repeats 5]

Computing sleeps, so that the workers of one machine do not take it from one another. On the testbed (root) a byte takes
1.0456 on the wire, as it does in the prediction. A time is the slowest worker's, after a barrier.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import heading, workers

from laconic.bench.testbed import FRAME_OVERHEAD, Testbed, available, run_everywhere
from laconic.links.network import of_cluster, parse_rate
from laconic.plan.cluster import Cluster, Line, Machine
from laconic.plan.cutting import Job, price
from laconic.plan.holmes import crossing
from laconic.plan.layout import Layout, ranked
from laconic.plan.rehearsal import rehearse
from laconic.plan.transformer import Shape, Training, Transformer, parameters

MODEL = Transformer(8, 128, 4, 512, 1000)  # messages of 0.5 MB, well above what a shaper lets pass at once
SHAPE = Shape(2, 1, 2, 4)
FLOPS = 2e11
BATCHES = (8, 16, 64)


def two_sites(inside: float, between: float) -> Cluster:
    """Two workers at each of two sites; bytes a second inside and between."""
    machines = tuple(Machine(f"{site}{i}", 64e9, FLOPS, site) for site in "ab" for i in range(2))
    lines = {(x, y): Line(inside if x == y else between, 0.0) for x in "ab" for y in "ab"}
    return Cluster("two sites", machines, lines, tuple(machine.name for machine in machines))


def job_of(batch: int) -> Job:
    """Gradients are summed at 16 bits, as the published rule has it."""
    return Job(MODEL, Training(batch, sharded_optimizer=False, gradient_bytes=2))


def worker(spec_path: str, out: str) -> None:
    """One worker: seconds of each repeat of each case."""
    torch.set_num_threads(1)
    spec = json.loads(Path(spec_path).read_text())
    cluster = two_sites(spec["inside"], spec["between"])
    if spec["on"] == "testbed":
        from laconic.links.process_group import process_group

        link: Any = process_group("gloo")
        out = f"{out}/{link.rank}.json"
    else:
        from laconic.links.paced import paced

        link = paced(of_cluster(cluster, 4))
    times: dict[str, list[float]] = {}
    for batch in BATCHES:
        for across in (True, False):
            layout = Layout(cluster, tuple(ranked(cluster)), SHAPE, across)
            for _ in range(spec["repeats"]):
                link.barrier()
                times.setdefault(f"{batch} {across}", []).append(rehearse(job_of(batch), layout, link, "cpu"))
    link.barrier()
    link.close()
    Path(out).write_text(json.dumps(times))


def measured(spec: dict[str, Any]) -> dict[str, float]:
    """The median over repeats of the slowest worker's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spec.json")
        path.write_text(json.dumps(spec))
        if spec["on"] == "testbed":
            with Testbed(of_cluster(two_sites(spec["inside"], spec["between"]), 4)) as bed:
                if any(run_everywhere(bed, [sys.executable, __file__, "worker", str(path), folder])):
                    raise SystemExit("a worker failed")
            ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(4)]
        else:
            ranks = workers(4, __file__, "worker", str(path))
    return {case: statistics.median(map(max, zip(*(rank[case] for rank in ranks), strict=True))) for case in ranks[0]}


def main() -> None:
    """Print predicted and measured seconds, and by how much stages across beat copies across."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--on", choices=("paced", "testbed"), default="paced")
    parser.add_argument("--inside", default="100mbit")
    parser.add_argument("--between", default="10mbit")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.on == "testbed" and (reason := available()) is not None:
        raise SystemExit(reason)
    heading(f"Two sites of two, {args.inside} inside and {args.between} between, {args.on}; {SHAPE}")
    inside, between = parse_rate(args.inside), parse_rate(args.between)
    frames = FRAME_OVERHEAD if args.on == "testbed" else 1.0
    cluster = two_sites(inside / frames, between / frames)
    found = measured({"inside": inside, "between": between, "on": args.on, "repeats": args.repeats})
    print(f"{'batch':>6}  {'across':<8}{'predicted':>11}{'measured':>11}{'ratio':>8}{'copies over stages':>34}")
    for batch in BATCHES:
        wanted = {}
        for across in (True, False):
            layout = Layout(cluster, tuple(ranked(cluster)), SHAPE, across)
            wanted[across] = price(job_of(batch), layout).seconds
        rule = crossing(batch, MODEL.sequence, MODEL.hidden, parameters(MODEL))
        for across, name in ((True, "stages"), (False, "copies")):
            took = found[f"{batch} {across}"]
            said = f"{wanted[across]:>9.3f} s{took:>9.3f} s{took / wanted[across]:>8.3f}"
            if not across:
                gain = wanted[False] / wanted[True], found[f"{batch} False"] / found[f"{batch} True"]
                better = "stages" if rule.stages_win else "copies"
                said += f"   predicted {gain[0]:.2f}, measured {gain[1]:.2f}; rule: {better}"
            print(f"{batch:>6}  {name:<8}{said}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main()
