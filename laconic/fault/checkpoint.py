"""Checkpoints: one safetensors file a worker, complete or not there at all.

``checkpoint/step-000500/worker-0.safetensors`` holds the model, the optimizer's state, the sync's and how far the run
had come. A step's folder counts once every worker's file is in it; the newest that counts is the one to resume from.
No pickle: the parts that are not tensors are JSON in the file's header.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from laconic.attached import Attached
from laconic.errors import ConfigError, PacketError
from laconic.fault import randomness
from laconic.parallel.shards import local, whole
from laconic.state import freeze, thaw

FORMAT = 2


def save(run: Path, step: int, model: nn.Module, attached: Attached, progress: dict[str, Any]) -> Path:
    """Write this worker's part of the checkpoint of ``step``, and drop the ones it makes needless.

    Raises: ConfigError if the disk is full or not writable.
    """
    state = attached.state_dict()
    tensors = {f"sync/{name}": tensor for name, tensor in state.pop("tensors").items()}
    skeleton, optimizer = freeze(state.pop("optimizer"))
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
    names: dict[str, str] = {}
    kept: dict[Any, str] = {}
    for name, value in model.state_dict().items():  # tied weights are one tensor under two names: write it once
        tensor = local(value)
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        names[name] = kept.setdefault(place, f"model/{name}")
        tensors[names[name]] = tensor
    drawn = randomness.here()
    tensors |= {"random": drawn.torch} | ({} if drawn.cuda is None else {"random-cuda": drawn.cuda})
    header = {"format": FORMAT, "step": step, "names": names, "attached": state, "optimizer": skeleton}
    header["random"] = drawn.plain()
    folder = run / "checkpoint" / f"step-{step:09d}"
    part = folder / f"worker-{seat(attached)[0]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(header | {"progress": progress})
        # A copy for each: safetensors refuses tensors that share memory, and a view would drag its base along.
        save_file(
            {n: t.detach().clone().contiguous() for n, t in tensors.items()},
            part.with_suffix(".part"),
            {"laconic": text},
        )
        _settle(part.with_suffix(".part"))
        part.with_suffix(".part").rename(part)
        _settle(folder)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"checkpoint: cannot write {part}: {error}") from None
    if attached.link.rank == 0:
        tidy(run, seat(attached)[1])
    return part


def _settle(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of files: what a power cut leaves is whole, or not there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seat(attached: Attached) -> tuple[int, int]:
    """This process's place among all that write a part, and how many they are; several to a worker that is sharded."""
    rank, size, shard = attached.link.rank, attached.link.size, attached.shard
    return (rank, size) if shard is None else (rank * shard.parts + shard.place, size * shard.parts)


def newest(run: Path, workers: int) -> int | None:
    """The newest step of which every worker's part is there; None if there is none."""
    complete = [step for step, count in _steps(run).items() if count >= workers]
    return max(complete, default=None)


def progress(run: Path, step: int) -> dict[str, Any]:
    """How far worker 0 had come at a checkpoint: ``step``, ``tokens`` and ``seconds``, without reading its tensors.

    Raises: PacketError for a damaged file.
    """
    part = run / "checkpoint" / f"step-{step:09d}" / "worker-0.safetensors"
    try:
        with safe_open(part, framework="pt") as file:
            return dict(_header(file, part)["progress"])
    except (OSError, SafetensorError) as error:
        raise PacketError(f"checkpoint: cannot read {part}: {error}") from None


def _header(file: Any, part: Path) -> dict[str, Any]:
    try:
        header = json.loads((file.metadata() or {}).get("laconic", "null"))
    except ValueError as error:
        raise PacketError(f"checkpoint: the header of {part} is damaged: {error}") from None
    parts = {"progress", "names", "random"}
    if not isinstance(header, dict) or header.get("format") != FORMAT or not parts <= header.keys():
        raise PacketError(f"checkpoint: {part} is not of this version's format ({FORMAT})")
    return header


def load(run: Path, step: int, model: nn.Module, attached: Attached) -> dict[str, Any]:
    """Put model, optimizer, sync and random state back as they were, and return the progress that was saved.

    Raises: ConfigError for a checkpoint of another model or method; PacketError for a damaged file.
    """
    part = run / "checkpoint" / f"step-{step:09d}" / f"worker-{seat(attached)[0]}.safetensors"
    try:
        with safe_open(part, framework="pt") as file:
            header = _header(file, part)
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise PacketError(f"checkpoint: cannot read {part}: {error}") from None
    model_here = model.state_dict()
    saved = {name: whole(tensors[key], model_here.get(name)) for name, key in header["names"].items()}
    shapes = ({name: tuple(value.shape) for name, value in values.items()} for values in (saved, model_here))
    if (there := next(shapes)) != (here := next(shapes)):
        other = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))[0]
        raise ConfigError(
            f"checkpoint: {part} is of another model: {other} is {there.get(other, 'not there')}, "
            f"and {here.get(other, 'not there')} here"
        )
    state = dict(header["attached"])
    state["tensors"] = {n.removeprefix("sync/"): t for n, t in tensors.items() if n.startswith("sync/")}
    state["optimizer"] = thaw(
        header["optimizer"], {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
    )
    attached.load_state_dict(state)  # which refuses what does not fit before it touches anything
    model.load_state_dict(saved)
    randomness.resume(tensors["random"], tensors.get("random-cuda"), header["random"])
    return dict(header["progress"])


def _steps(run: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    root = run / "checkpoint"
    for name in os.listdir(root) if root.is_dir() else []:
        match = re.fullmatch(r"step-(\d+)", name)
        if match:
            found[int(match[1])] = len(list((root / name).glob("worker-*.safetensors")))
    return found


def tidy(run: Path, workers: int) -> None:
    """Drop the checkpoints that are older than the newest complete one."""
    last = newest(run, workers)
    for step in _steps(run):
        if last is not None and step < last:
            shutil.rmtree(run / "checkpoint" / f"step-{step:09d}", ignore_errors=True)
