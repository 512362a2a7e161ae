"""The generators that a workload may draw from without saying so: torch's, the GPU's, numpy's and Python's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laconic.errors import PacketError


class Randomness(NamedTuple):
    """Where all of them are; ``cuda`` is the present GPU's, if there is one."""

    torch: Tensor
    cuda: Tensor | None
    plain: dict[str, Any]  # Python's and numpy's, as JSON


def seed(value: int) -> None:
    """Start all of them at ``value``."""
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % (1 << 32))


def here() -> Randomness:
    """Where they are now."""
    name, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    numpy = [name, np.asarray(keys).tolist(), int(place), int(has_gauss), float(gauss)]
    version, words, spare = random.getstate()
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return Randomness(torch.get_rng_state(), cuda, {"python": [version, list(words), spare], "numpy": numpy})


def put_back(kept: Randomness) -> None:
    """Put all of them where they were.

    Raises: PacketError for a state that is damaged.
    """
    try:
        version, words, spare = kept.plain["python"]
        name, keys, *rest = kept.plain["numpy"]
        random.setstate((version, tuple(words), spare))
        np.random.set_state((name, np.array(keys, np.uint32), *rest))
        torch.set_rng_state(kept.torch)
        if kept.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(kept.cuda)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PacketError(f"checkpoint: the state of its random generators is damaged: {error}") from None


@contextmanager
def replaying(value: int) -> Iterator[None]:
    """Draw again as from the start of a run with this seed, and afterwards go on as if nothing had been drawn."""
    kept = here()
    seed(value)
    try:
        yield
    finally:
        put_back(kept)
