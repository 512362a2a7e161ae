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
    ``momentum``: the result already holds momentum, and the optimizer must add none.
    """

    init: Callable[[Tensors], Any]
    run: Callable[[Tensors, Any, Link], tuple[list[Tensor], Any]]
    equal: bool = True
    name: str = "exchange"
    sparse: bool = False
    momentum: bool = False
