"""What a step takes on this machine: all workers at once, as they will share it, none exchanging."""

from __future__ import annotations

import tempfile
from pathlib import Path

from laconic.bench.compare import ideal_run
from laconic.launch import prepare
from laconic.recipe import Recipe


def step_here(recipe: Recipe) -> float:
    """Seconds of a worker's step, from a run of a few seconds in real processes.

    Raises: ConfigError, WorkloadError, RunFailed: what cannot be trained, as training would.
    """
    short = recipe.replace(
        method="alone", settings={}, on="paced", link="", links=(), cluster="", flops=None, step_seconds=None,
        tokens=None, steps=None, seconds=1.0,
    )  # fmt: skip
    prepare(short)
    with tempfile.TemporaryDirectory() as place:
        return float(ideal_run(short, Path(place) / "ideal", lambda line: None, "laconic plan")["step_seconds"])
