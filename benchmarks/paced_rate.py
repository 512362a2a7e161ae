"""How well the paced link holds a stated rate and latency, between two real processes.

python benchmarks/paced_rate.py
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from common import heading, workers

RATES = ("5mbit", "20mbit", "100mbit", "300mbit", "1gbit")
SECONDS = 1.5  # of transfer at the stated rate
MESSAGES = 6


def worker(link_text: str, out: str) -> None:
    from laconic.links import paced, parse
    from laconic.packet import Packet

    link = paced(parse(link_text, 2))
    rate = link.network.connections[0].up
    size = int(rate * SECONDS / MESSAGES)
    message = [Packet({"x": torch.zeros(size, dtype=torch.uint8)})]
    found = []
    for both in (False, True):
        link.barrier()
        before, start = link.meter.bytes_in + link.meter.bytes_out, time.perf_counter()
        for _ in range(MESSAGES):
            handle = link.start(link.send, message, 1 - link.rank) if both or link.rank == 0 else None
            if both or link.rank == 1:
                link.recv(1 - link.rank)
            if handle is not None:
                handle.result()
        moved = link.meter.bytes_in + link.meter.bytes_out - before
        found.append(moved / (2 if both else 1) / (time.perf_counter() - start) / rate)
    link.barrier()
    starts = []
    for _ in range(10):
        start = time.perf_counter()
        if link.rank == 0:
            link.send([Packet({})], 1)
            link.recv(1)
        else:
            link.recv(0)
            link.send([Packet({})], 0)
        starts.append((time.perf_counter() - start) / 2)
    Path(out).write_text(json.dumps([*found, sorted(starts)[5]]))
    link.barrier()
    link.close()


def main() -> None:
    heading("Bytes a second over the stated rate, one way and both ways at once; and the time of an empty message")
    print(f"{'stated':<16}{'one way':>10}{'both ways':>12}{'empty message':>16}")
    for text in [*RATES, "20mbit,30ms"]:
        found = workers(2, __file__, "worker", text)
        both = sum(f[1] for f in found) / 2
        # With a latency the both-ways loop waits for each answer before the next message: no measure of the rate.
        rates = f"{found[1][0]:>10.3f}{both:>12.3f}" if "," not in text else f"{'':>22}"
        print(f"{text:<16}{rates}{found[0][2] * 1000:>13.2f} ms", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "worker":
        worker(sys.argv[2], sys.argv[3])
    else:
        main()
