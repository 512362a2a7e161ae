"""The shape of an exchange: my tensors in, the group's combination of them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from laconic.links.base import Link

Tensors = Sequence[Tensor]


class Exchange(NamedTuple):
    """My tensors to the group's combination of them, in as many rounds as it likes.

    ``init(tensors)`` makes the state for tensors like these; ``run(tensors, state, link)`` touches neither and
    returns ``(combined, new state)``: if it raises, nothing has happened here. ``equal`` says that every worker
    gets the same bits; an exchange between pairs does not. ``sparse``: parts of the tensors are not sent this time.
    ``momentum``: the result already holds momentum, and the optimizer must add none. ``decayed(state)``, where there
    is one, is told that the learning rate has fallen, and returns the new state. ``group``: how many combine theirs at
    a time, in groups that change from round to round; None where it is all, or always the same.
    ``among(size)``, where there is one, says in a sentence who talks to whom among so many workers; or refuses that
    many, with a ConfigError.

    Convention: the lists of a state hold one entry a tensor, in the tensors' order; what is not in a list is about all
    of them. So :func:`take` and :func:`put` part a state by tensors, and two exchanges of one kind can share it.
    """

    init: Callable[[Tensors], Any]
    run: Callable[[Tensors, Any, Link], tuple[list[Tensor], Any]]
    equal: bool = True
    name: str = "exchange"
    sparse: bool = False
    momentum: bool = False
    decayed: Callable[[Any], Any] | None = None
    group: int | None = None
    among: Callable[[int], str] | None = None


def take(state: Any, places: Sequence[int]) -> Any:
    """The state for the tensors at ``places`` alone, to run these alone."""
    if isinstance(state, list):
        return [state[i] for i in places]
    if hasattr(state, "_fields"):
        return type(state)(*(take(value, places) for value in state))
    return state


def put(state: Any, places: Sequence[int], part: Any) -> Any:
    """``state`` with the entries at ``places`` from ``part``, and all that is about every tensor from ``part`` too.

    Law:    ``take(put(state, places, part), places) == part``.
    """
    if isinstance(state, list):
        entries = list(state)
        for i, entry in zip(places, part, strict=True):
            entries[i] = entry
        return entries
    if hasattr(state, "_fields"):
        return type(state)(*(put(old, places, new) for old, new in zip(state, part, strict=True)))
    return part
