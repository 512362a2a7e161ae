"""The generators that a workload may draw from without saying so: torch's, the GPU's, numpy's and Python's own."""

from __future__ import annotations

import random
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from laconic.errors import PacketError

_ONE = threading.Lock()  # workers that are threads of one process share the generators: one at a time


class Randomness(NamedTuple):
    """Where all of them are; ``cuda`` is the present GPU's, if there is one."""

    torch: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]

    def plain(self) -> dict[str, Any]:
        """Python's and numpy's, as JSON."""
        version, words, spare = self.python
        name, keys, *rest = self.numpy
        return {"python": [version, list(words), spare], "numpy": [name, keys.tolist(), *rest]}


def seed(value: int) -> None:
    """Start all of them at ``value``."""
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % (1 << 32))


def here() -> Randomness:
    """Where they are now."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    state: Any = np.random.get_state(legacy=True)
    return Randomness(torch.get_rng_state(), cuda, random.getstate(), state)


def put_back(kept: Randomness) -> None:
    """Put all of them where they were."""
    random.setstate(kept.python)
    np.random.set_state(kept.numpy)
    torch.set_rng_state(kept.torch)
    if kept.cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(kept.cuda)


def resume(state: Tensor, cuda: Tensor | None, plain: Any) -> None:
    """Put all of them where a checkpoint says that they were.

    Raises: PacketError for a state that is damaged.
    """
    try:
        version, words, spare = plain["python"]
        name, keys, *rest = plain["numpy"]
        python = (version, tuple(words), spare)
        put_back(Randomness(state, cuda, python, (name, np.array(keys, np.uint32), *rest)))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise PacketError(f"checkpoint: the state of its random generators is damaged: {error}") from None


class Apart:
    """Generators of its own for what draws from everybody's: ``with`` puts them in place, and back afterwards.

    Batches that are drawn so do not depend on what the model draws between them, and can be drawn again by themselves.
    """

    def __init__(self, value: int) -> None:
        others = here()
        seed(value)
        self._own = here()
        put_back(others)

    def __enter__(self) -> None:
        _ONE.acquire()
        self._others = here()
        put_back(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = here()
        put_back(self._others)
        _ONE.release()
