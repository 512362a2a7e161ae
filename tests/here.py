"""A whole run in this process: each worker a thread on a memory link, which takes a tenth of a second and not ten."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import torch
from safetensors import safe_open

from laconic import train
from laconic.links import memory
from laconic.recipe import Recipe

MINE = str(Path(__file__).parent / "mine.py")


def run_here(monkeypatch, recipe: Recipe, folder: Path) -> Path:
    """Run a recipe into a folder as the worker processes would, going on from a checkpoint if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    mine, threads = threading.local(), torch.get_num_threads()
    store = torch.distributed.HashStore()
    with monkeypatch.context() as patch:
        patch.setattr(train, "_link", lambda recipe: mine.link)
        patch.setattr(train, "rendezvous", lambda timeout, room: (mine.link.rank, mine.link.size, store))
        patch.setattr(train.signal, "signal", lambda *_: None)  # only a main thread may
        if recipe.workers > 1:
            patch.setattr(train, "own_seed", lambda seed, rank: seed)  # threads share torch's generator

        def work(link):
            mine.link = link
            train.Worker(folder, recipe).run()

        try:
            memory.run(recipe.workers, work, timeout=recipe.timeout)
        finally:
            torch.set_num_threads(threads)  # one worker takes all cores, and the process would keep them
    return folder


def checkpoint(folder: Path, step: int, worker: int) -> tuple[dict, dict]:
    """What a worker's checkpoint holds: its tensors, and its header without what the clock says."""
    path = folder / "checkpoint" / f"step-{step:09d}" / f"worker-{worker}.safetensors"
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["laconic"])
        meter, seconds = header["progress"].pop("meter"), header["progress"].pop("seconds")
        assert seconds > 0
        header["progress"]["out"] = meter["bytes_out"], meter["messages_out"]
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def lines(path: Path) -> list[dict]:
    """A file of JSON objects, a line each."""
    return [json.loads(line) for line in path.read_text().splitlines()]
