"""The weights kept along a run, whose losses are measured once it has ended: written beside a checkpoint.

So that the curve of a run that is interrupted, or killed, and gone on with later begins where the run did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from laconic.errors import ConfigError, PacketError

MOST = 28  # points along a run
MOST_BYTES = 1 << 30  # of all of them together; fewer are kept of a large model
FOLDER = "points"


def keep(run: Path, points: Sequence[dict[str, Any]]) -> None:
    """Write the points that are not written yet, each a file ``points/step-….safetensors`` that is whole or not there.

    Raises: ConfigError if the disk is full or not writable.
    """
    for point in points:
        reading = {name: value for name, value in point.items() if name != "weights"}
        path = run / FOLDER / f"step-{point['step']:09d}.safetensors"
        if path.exists():
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            weights = {name: value.contiguous() for name, value in point["weights"].items()}
            save_file(weights, path.with_suffix(".part"), {"laconic": json.dumps(reading)})
            path.with_suffix(".part").rename(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"points: cannot write {path}: {error}") from None


def kept(run: Path, step: int, measured: Collection[int] = ()) -> list[dict[str, Any]]:
    """The points up to a step, in order, but for those already ``measured``; later ones, of steps to be taken again,
    are dropped.

    Raises: PacketError for a damaged file.
    """
    found = []
    for path in sorted((run / FOLDER).glob("step-*.safetensors")):
        at = int(path.stem.removeprefix("step-"))
        if at > step:
            path.unlink()
        elif at not in measured:
            try:
                with safe_open(path, framework="pt") as file:
                    reading = json.loads(file.metadata()["laconic"])
                    weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise PacketError(f"points: cannot read {path}: {error}; delete it to go on without it") from None
            found.append(reading | {"weights": weights})
    return found


def forget(run: Path) -> None:
    """Take all points away: their losses have been measured."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
