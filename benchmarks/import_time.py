"""What ``import laconic`` adds to ``import torch``: the median of fresh processes, the two taking turns.

Wanted: less than 0.5 s. Run it on an otherwise idle machine::

    python benchmarks/import_time.py --rounds 7

Prints one JSON object: the median milliseconds of a process that imports torch, of one that imports torch and laconic,
and of one that also reaches for ``laconic.attach``, which loads what stands on torch; then difference and ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

WAYS = {
    "torch": "import torch",
    "torch_and_laconic": "import torch, laconic",
    "torch_and_attach": "import torch, laconic; laconic.attach",
}


def milliseconds(code: str) -> float:
    """How long a fresh interpreter takes to run ``code`` and end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Measure in turns, so that a change of the machine's load meets all ways alike."""
    parser = argparse.ArgumentParser(description="What import laconic adds to import torch.")
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes of each")
    rounds = parser.parse_args().rounds
    for code in WAYS.values():
        milliseconds(code)  # the files come from the disk once
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, code in WAYS.items():
            taken[name].append(milliseconds(code))
    median = {f"{name}_ms": round(statistics.median(values), 1) for name, values in taken.items()}
    plain = median["torch_ms"]
    print(
        json.dumps(
            median
            | {
                "laconic_adds_ms": round(median["torch_and_laconic_ms"] - plain, 1),
                "attach_adds_ms": round(median["torch_and_attach_ms"] - plain, 1),
                "ratio": round(median["torch_and_laconic_ms"] / plain, 3),
                "rounds": rounds,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
