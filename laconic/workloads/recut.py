"""Batches of any size from batches of one size: each row is used once, in the order it came."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import WorkloadError


class Recut:
    """Draws ordinary batches by ``draw()`` and hands out shares of them.

    A batch is tensors that have one row for each example, in tuples, lists or dictionaries. One that is wanted whole,
    while no rows wait, is handed on as it came, whatever it is.

    Law:    what was taken, put together, is what was drawn: no row is lost or comes twice.
    """

    def __init__(self, draw: Callable[[], Any]) -> None:
        self._draw = draw
        self._waiting: Any = None
        self._rows = 0  # in waiting
        self.taken = 0.0  # in ordinary batches: to take up here again, skip as many

    def take(self, share: float) -> Any:
        """A batch of ``share`` times the ordinary size.

        Raises: WorkloadError for a batch that cannot be cut, or cannot be cut into such shares.
        """
        self.taken += share
        if share == 1.0 and not self._rows:
            return self._draw()
        while True:
            if self._rows:
                wanted = self._wanted(share)
                if wanted <= self._rows:
                    break
            drawn = self._draw()
            self._size = rows(drawn)
            self._waiting = drawn if not self._rows else _joined(self._waiting, drawn)
            self._rows += self._size
        batch, self._waiting = _cut(self._waiting, slice(0, wanted)), _cut(self._waiting, slice(wanted, None))
        self._rows -= wanted
        return batch

    def skip(self, taken: float) -> None:
        """Go to where ``taken`` ordinary batches had been handed out."""
        whole = int(taken + 1e-6)
        for _ in range(whole):
            self._draw()
        if taken - whole > 1e-6:
            self.take(taken - whole)
        self.taken = taken

    def _wanted(self, share: float) -> int:
        exact = share * self._size
        if abs(exact - round(exact)) > 1e-6:
            raise WorkloadError(
                f"a batch of {self._size} rows cannot be dealt in shares such as {share:g}; set parts to a number that "
                f"divides {self._size}"
            )
        return round(exact)


def rows(batch: Any) -> int:
    """The number of rows that all tensors of a batch have.

    Raises: WorkloadError for a batch that is not made of tensors of one length.
    """
    leaves = _leaves(batch)
    lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.dim() else 0 for leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        raise WorkloadError(
            "batches cannot be dealt by speed: wanted tensors with one row for each example, in tuples, lists or "
            f"dictionaries, got {_told(batch)}"
        )
    return lengths.pop()


def _leaves(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return [leaf for value in batch.values() for leaf in _leaves(value)]
    if isinstance(batch, list | tuple):
        return [leaf for value in batch for leaf in _leaves(value)]
    return [batch]


def _each(batch: Any, others: tuple[Any, ...], act: Callable[..., Tensor]) -> Any:
    """``act`` on every tensor, in a structure of the same form."""
    if isinstance(batch, Mapping):
        return {key: _each(value, tuple(o[key] for o in others), act) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [_each(value, tuple(o[i] for o in others), act) for i, value in enumerate(batch)]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return act(batch, *others)


def _joined(first: Any, second: Any) -> Any:
    return _each(first, (second,), lambda a, b: torch.cat([a, b]))


def _cut(batch: Any, place: slice) -> Any:
    return _each(batch, (), lambda tensor: tensor[place])


def _told(batch: Any) -> str:
    leaves = _leaves(batch)
    return ", ".join(f"{list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in leaves[:6]) or "nothing"
