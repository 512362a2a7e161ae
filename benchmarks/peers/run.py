"""laconic beside what a user would take instead, torchft and hivemind, in one run on the testbed. Needs root.

A 10.7 M-parameter GPT, 2 workers, so many seconds each, a synchronisation in 16 steps: torchft's DiLoCo and Streaming
DiLoCo, hivemind's Optimizer with local updates, and methods of laconic. The peers are installed from the package index
into an environment of their own (with the CPU build of torch, and laconic beside them), so that all run on the same
torch. The ideal is measured within each way's run, as in ``benchmarks/torch_ways.py``. hivemind's own processes work on
beside it and slow it down, so that the share of it flatters; ``alone`` is the rate of workers with nothing beside them,
measured first.

What cannot be installed or started has the reason for its row.

    python benchmarks/peers/run.py [--seconds 90] [--rates 100mbit,20mbit] [--ways torchft,ours] [--option batch_size=8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from common import heading  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "laconic" / "peers"
TORCH = "torch>=2.11,<2.14"
PEERS = {"torchft": "torchft-nightly", "hivemind": "hivemind"}
WAYS = ("alone", "torchft DiLoCo", "torchft streaming DiLoCo", "hivemind", "hivemind fp16")
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours ddp": ("ddp", {}),
    "ours diloco": ("diloco", {"every": 16}),
    "ours streaming-diloco": ("streaming-diloco", {"every": 16, "fragments": 2, "overlap": 4, "lr": 0.7}),
}
STARTING = 120.0  # seconds beyond a run's own


def installed(folder: Path) -> tuple[Path, dict[str, str]]:
    """The Python of an environment with the peers in it, and why those that are not there are not."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    failed = {}
    wanted = {"laconic": ["-e", str(ROOT)], **{peer: [package] for peer, package in PEERS.items()}}
    for peer, words in wanted.items():
        if _has(python, peer):
            continue
        print(f"installing {peer}", flush=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *words, TORCH], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            failed[peer] = (reasons or done.stderr.splitlines() or ["pip failed without a word"])[-1]
    if "laconic" in failed:
        raise SystemExit(f"laconic cannot be installed into {folder}: {failed['laconic']}")
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    shown = [line.split() for line in listed.splitlines() if line.startswith(("torch", "hivemind"))]
    print("  peers    " + ", ".join(" ".join(words[:2]) for words in shown), flush=True)
    large = [line.split()[0] for line in listed.splitlines() if line.startswith("nvidia")]
    if large:
        raise SystemExit(f"{folder} has {', '.join(large)}: not the CPU build of torch; give pip the index that has it")
    return python, failed


def _has(python: Path, module: str) -> bool:
    return subprocess.run([python, "-I", "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def measured(python: Path, way: str, rate: str, seconds: float, options: dict[str, Any]) -> dict[str, Any] | str:
    """What came of one way, or why nothing did."""
    from laconic.bench.testbed import Testbed, run_everywhere
    from laconic.links import parse

    with tempfile.TemporaryDirectory() as folder, Testbed(parse(rate, 2)) as bed:
        plan = json.dumps([way, seconds, options, OURS])
        limit = ["timeout", "--kill-after=5", str(2.5 * seconds + STARTING)]  # the ideal's steps take their time too
        log = Path(folder) / "log"
        shell = f'exec "$@" >> {log}-$RANK 2>&1'
        argv = ["sh", "-c", shell, "sh", *limit, str(python), str(HERE / "worker.py"), plan, folder]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        statuses = run_everywhere(bed, argv, env)
        out = Path(folder) / "out.0"
        if any(statuses) or not out.exists():
            return f"workers ended with {statuses}: {_last(Path(folder))}"
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def _last(folder: Path) -> str:
    """The last error that a worker logged, or its last line."""
    lines = [line for path in sorted(folder.glob("log-*")) for line in path.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error" in line and not line.startswith(" ")]
    return (errors or lines or ["no word"])[-1][:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--rates", default="100mbit,20mbit")
    parser.add_argument("--ways", default="", help="parts of names, such as torchft,streaming")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--ours", action="append", default=[], help="NAME=METHOD:key=value:… adds a way of laconic's")
    parser.add_argument("--venv", type=Path, default=CACHE, help="where the peers are installed")
    chosen = parser.parse_args()

    from laconic.recipe import read_settings

    for text in chosen.ours:
        name, _, rest = text.partition("=")
        method, *pairs = rest.split(":")
        OURS[f"ours {name}"] = (method, read_settings(pairs))
    options = {"size": "ten", "batch_size": 8} | read_settings(chosen.option)
    heading(f"2 workers on the testbed, {chosen.seconds:g} s each, shakespeare {options}")
    python, failed = installed(chosen.venv)
    parts = [part for part in chosen.ways.split(",") if part]
    ways = [way for way in (*WAYS, *OURS) if not parts or any(part in way for part in parts)]
    for rate in chosen.rates.split(","):
        head = f"{'steps':>7}{'steps/s':>9}{'ideal':>8}{'of ideal':>10}{'of alone':>10}{'held-out':>10}"
        print(f"\n{rate}\n{'way':<28}{head}", flush=True)
        alone = 0.0
        for way in ways:
            peer = way.split()[0]
            found = failed[peer] if peer in failed else measured(python, way, rate, chosen.seconds, options)
            if isinstance(found, str):
                print(f"{way:<28}  {found}", flush=True)
                continue
            alone = found["rate"] if way == "alone" else alone
            share = f"{found['rate'] / alone:.1%}" if alone else ""
            print(
                f"{way:<28}{found['steps']:>7}{found['rate']:>9.3f}{found['ideal']:>8.3f}"
                f"{found['rate'] / found['ideal']:>10.1%}{share:>10}{found['loss']:>10.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
