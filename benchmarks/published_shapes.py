"""Megatron's ten published models, predicted from their inputs, beside what was published.

python benchmarks/published_shapes.py
"""

from __future__ import annotations

import sys

from common import ROOT, heading

sys.path.insert(0, str(ROOT))

from tests.plan.test_megatron import (
    REACH,
    REACH_ALONE,
    TABLE,
    TRILLION,
    predicted,
)  # the rows are kept where they are tested


def main() -> None:
    """Print each row, and the misses of the models that nothing was fitted to."""
    heading(f"Megatron's weak scaling; matrix products reach {REACH:.0%} of the peak, fitted to the first four")
    print(f"{'parameters':>11}{'p':>4}{'t':>3}{'workers':>9}{'published':>11}{'predicted':>11}{'miss':>7}")
    misses = []
    for row in TABLE:
        billions, _, _, _, t, p, workers, _, published = row
        found = predicted(row)
        misses.append(found / published - 1)
        print(f"{billions:>9} B{p:>4}{t:>3}{workers:>9}{published:>11}{found:>11.0f}{misses[-1]:>+7.1%}")
    print(f"\nworst of the six with a pipeline: {max(map(abs, misses[4:])):.1%}; Tflop/s of each worker")
    alone = 100 * predicted(TRILLION, REACH_ALONE) / 312
    print(
        f"from inputs alone ({REACH_ALONE:.0%} of the peak) the trillion is at {alone:.1f} %, {alone - 52:+.1f} points"
    )


if __name__ == "__main__":
    main()
