"""What the benchmarks share: worker processes on this machine, interleaved timing, and a heading that says what ran."""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def heading(what: str) -> None:
    """Print what was measured, on which machine, at which commit, by which command."""
    import torch

    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in info if "model name" in line), "")
    print(f"{what}\n  command  python {' '.join(sys.argv)}\n  commit   {commit}, torch {torch.__version__}")
    print(f"  machine  {os.cpu_count()} x {model or platform.machine()}\n", flush=True)


def workers(count: int, script: str, *arguments: str, timeout: float = 900.0) -> list[Any]:
    """Run ``script`` once a worker with torchrun's environment; what each wrote to its last argument, as JSON."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank in range(count):
            place = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
            env = os.environ | place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            argv = [sys.executable, script, *arguments, f"{folder}/{rank}.json"]
            running.append(subprocess.Popen(argv, env=env))
        deadline = time.monotonic() + timeout
        for process in running:
            if process.wait(max(1.0, deadline - time.monotonic())):
                for other in running:
                    other.kill()
                raise SystemExit(f"a worker of {script} failed")
        return [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(count)]


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Time the ways in turns, so that a noisy moment falls on all of them; each returns its seconds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            times[name].append(run())
    return times


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios of neighbouring turns."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
