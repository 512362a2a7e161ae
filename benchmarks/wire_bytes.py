"""The meter against the kernel: bytes that each method says it sent, and what the testbed's qdisc let out. Needs root.

The kernel's count has every header in it (66 bytes for each segment of at most 1448), the acknowledgements of what
was received, and the rendezvous; the meter has whole messages.

    python benchmarks/wire_bytes.py [--seconds 5] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from common import heading

from laconic.bench.ways import fit
from laconic.launch import launch
from laconic.methods import METHODS
from laconic.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    heading(f"shakespeare (micro), {chosen.workers} workers on the testbed, 100 Mbit/s, {chosen.seconds:g} s each")
    print(f"{'method':<18}{'meter bytes':>14}{'qdisc bytes':>14}{'qdisc/meter':>13}")
    for name in [name for name in METHODS if name != "alone"]:
        settings, _ = fit(name, {}, 60)
        recipe = Recipe("shakespeare", name, settings, workers=chosen.workers, link="100mbit", on="testbed")
        with tempfile.TemporaryDirectory() as folder:
            run = launch(recipe.replace(seconds=chosen.seconds), Path(folder) / "run")
            wire = sum(json.loads((run / "wire.json").read_text())["sent_bytes"])
            workers = [json.loads((run / f"worker-{rank}.json").read_text()) for rank in range(chosen.workers)]
        meter = sum(worker["bytes_out_in_all"] for worker in workers)
        print(f"{name:<18}{meter:>14,}{wire:>14,}{wire / meter:>13.4f}", flush=True)


if __name__ == "__main__":
    main()
