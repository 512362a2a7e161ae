"""Where do the seconds go if one of four links is four times slower? Every method, on real processes.

Four workers on the testbed (root; else --on paced), the last one's link a quarter of the others'. For each method: the
held-out loss, steps a second, seconds computing, compressing and waiting as shares of the run (the mean of the workers;
the one with the slow link apart), bytes out of each worker, and the tensors that the method itself keeps, in copies of
the model: what is in a checkpoint beside the model and the optimizer.

    python benchmarks/slow_one.py [--seconds 60] [--link 20mbit] [--slow 5mbit] [--size nano] [--on paced] [--only ddp]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import heading
from safetensors import safe_open

from laconic.bench import units
from laconic.errors import RunFailed
from laconic.launch import launch, prepare
from laconic.methods import METHODS
from laconic.recipe import Recipe

SPENT = ("seconds_computing", "seconds_compressing", "seconds_waiting")


def settings(name: str, every: int) -> dict[str, Any]:
    """Published periods are for long runs: shorter ones where a method has them above it."""
    default = METHODS[name].defaults.get("every")
    fitted: dict[str, Any] = {"every": every} if isinstance(default, int) and default > every else {}
    if "fragments" in METHODS[name].defaults:
        fitted["fragments"] = 2  # the smallest model here has two blocks
    return fitted


def kept(run: Path, parameters: int) -> float:
    """Floats a parameter that the method itself keeps on worker 0."""
    (part,) = (run / "checkpoint").glob("step-*/worker-0.safetensors")
    with safe_open(part, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys() if name.startswith("sync/")]  # noqa: SIM118
    return sum(t.numel() * t.element_size() for t in tensors) / 4 / parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--link", default="20mbit")
    parser.add_argument("--slow", default="5mbit")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--every", type=int, default=16)
    parser.add_argument("--on", default="testbed", choices=("testbed", "paced"))
    parser.add_argument("--only", help="comma-separated methods; default: all")
    chosen = parser.parse_args()
    last = chosen.workers - 1
    heading(
        f"One slow link: {chosen.workers} workers at {chosen.link}, worker {last} at {chosen.slow}, on {chosen.on}, "
        f"shakespeare {chosen.size}, {chosen.seconds:g} s a method"
    )
    recipe = Recipe(
        "shakespeare",
        options={"size": chosen.size},
        workers=chosen.workers,
        link=chosen.link,
        links=(f"{last}:{chosen.slow}",),
        on=chosen.on,
        seconds=chosen.seconds,
        threads=1,
        save_every=10**9,
    )
    print(f"{'':<20}{'':>8}{'':>9}{'----- all workers -----':^24}{'---- slow link ----':^22}{'':>10}{'':>7}")
    print(
        f"{'method':<20}{'loss':>8}{'steps/s':>9}{'comp.':>8}{'compr.':>8}{'wait':>8}{'comp.':>7}{'compr.':>8}{'wait':>7}"
        f"{'sent':>10}{'kept':>7}"
    )
    names = chosen.only.split(",") if chosen.only else list(METHODS)
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(names):
            way = recipe.replace(method=name, settings=settings(name, chosen.every))
            run = Path(scratch) / str(number)
            try:
                parameters = prepare(way)
                launch(way, run)
            except (RunFailed, ValueError) as error:
                print(f"{name:<20} {error}", flush=True)
                continue
            s = json.loads((run / "summary.json").read_text())
            slow = json.loads((run / f"worker-{last}.json").read_text())
            shares = [units.share(one[key] / s["seconds"]) for one in (s, slow) for key in SPENT]
            print(
                f"{name:<20}{s['eval_loss']:>8.3f}{s['steps'] / s['seconds']:>9.1f}"
                f"{''.join(f'{x:>8}' for x in shares[:3])}{shares[3]:>7}{shares[4]:>8}{shares[5]:>7}"
                f"{units.size(s['bytes_out']):>10}{kept(run, parameters):>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
