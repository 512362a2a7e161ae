"""How well a probe finds what the kernel shapes: rates on the wire and latencies of testbeds, stated and measured.

python benchmarks/probe.py           all cases; needs root
python benchmarks/probe.py 0 2       these cases of the list alone
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from common import heading

CASES = (  # workers, links, those that differ, seconds
    (2, "10mbit", (), 30),
    (2, "100mbit", (), 30),
    (2, "50mbit/10mbit,20ms", (), 30),
    (3, "40mbit", ("1:40mbit/8mbit", "0-2:4mbit"), 60),
    (4, "50mbit,10ms", ("3:50mbit/10mbit,10ms", "0-1:20mbit,30ms"), 75),
    (4, "20mbit,50ms", (), 75),
)


def main(chosen: list[int]) -> None:
    heading("What a probe says of shaped links, over what they were shaped to")
    print(f"{'workers':>7}  {'links':<58}{'rate: worst':>12}{'median':>8}{'latency':>10}{'up/down':>9}", end="")
    print(f"{'sent':>9}{'took':>8}")
    for number in chosen or range(len(CASES)):
        print(row(*CASES[number]), flush=True)


def row(workers: int, link: str, others: tuple[str, ...], seconds: float) -> str:
    from laconic.bench import units
    from laconic.cli.probe import Plan
    from laconic.links.network import FRAMES, parse
    from laconic.plan.measured import MachineMeasured
    from laconic.plan.measured_tables import read_measured
    from laconic.plan.probing import start

    network = parse(link, workers, others)
    names = [f"worker{rank}" for rank in range(workers)]
    with tempfile.TemporaryDirectory() as folder:
        looking = {"workload": "", "options": {}, "compressors": []}
        work = Plan(Path(folder, "c.toml"), seconds, 2e9, again=True, looking=looking).work(names, "testbed")
    found = read_measured(start.in_testbed(network, work, lambda sentence: None), names)
    rates, delays = [], []
    for (a, b), measured in found.links.items():
        stated = network.link(names.index(a), names.index(b))
        rates.append(measured.bandwidth.median * measured.frames / stated.up - 1)
        delays.append(measured.latency.median - stated.latency)
    caps = []
    for rank, name in enumerate(names):
        for end in ("out", "into"):
            fan = getattr(found.machines.get(name, MachineMeasured()), end).get(workers - 1)
            others_rates = [network.link(*(pair if end == "out" else pair[::-1])).up for pair in pairs(rank, workers)]
            own = network.connections[rank].up if end == "out" else network.connections[rank].down
            if fan is not None:
                caps.append(fan.bandwidth.median * FRAMES / min(own, sum(others_rates)) - 1)
    worst = max(rates, key=abs)
    return (
        f"{workers:>7}  {' '.join([link, *others]):<58}{worst:>+12.1%}{statistics.median(rates):>+8.1%}"
        f"{max(delays, key=abs) * 1e3:>+7.1f} ms{f'{max(caps, key=abs):+.1%}' if caps else '':>9}"
        f"{units.size(found.nbytes):>9}{units.duration(found.seconds):>8}"
    )


def pairs(rank: int, workers: int) -> list[tuple[int, int]]:
    return [(rank, peer) for peer in range(workers) if peer != rank]


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
