"""What is worth saying about a run that has ended, beside its numbers."""

from __future__ import annotations

import json
from pathlib import Path

from laconic.bench import units
from laconic.fault.checkpoint import newest
from laconic.recipe import Recipe

MUCH_WAITING = 0.5


def remarks(folder: Path, recipe: Recipe) -> list[str]:
    """Sentences about a finished run: that it never exchanged anything, or that it mostly waited."""
    summary = json.loads((folder / "summary.json").read_text())
    if summary["workers"] < 2 or recipe.method == "alone":
        return []
    steps = f"{units.count(summary['steps'])} steps"
    if summary["bytes_out"] == 0:
        return [
            f"The workers exchanged nothing in these {steps}: each trained by itself, because {recipe.method} did not "
            "come to its first exchange. Set a shorter period (--set every=…) or train for longer."
        ]
    apart = []
    if summary.get("merged_loss") is not None:
        apart = [
            f"The workers' own weights end with a held-out loss of {units.loss(summary['local_loss'])} on average, and "
            f"their mean has {units.loss(summary['merged_loss'])}; they differ by {summary['weight_std']:.2g} (rms)."
        ]
    if not summary.get("bytes_exact", True):
        apart.append("Bytes of sums are reckoned as a ring's: what this backend sends cannot be counted here.")
    waited = summary["seconds_waiting"] / max(summary["seconds"], 1e-9)
    if waited <= MUCH_WAITING:
        return apart
    link = f" --link {recipe.link}" if recipe.link else ""
    return [
        *apart,
        f"The workers spent {units.share(waited)} of their time waiting for the network. To see which method waits "
        f"less here: laconic compare {recipe.workload} --workers {recipe.workers}{link}",
    ]


def interrupted(folder: Path, workers: int) -> str:
    """What is left after Ctrl-C, and how to go on."""
    if newest(folder, workers) is None:
        return f"Interrupted before the first checkpoint; what there is lies in {folder}"
    return f"Interrupted; the run is kept. Go on with: laconic train --resume {folder}"
