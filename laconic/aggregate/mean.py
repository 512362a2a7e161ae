"""The mean of everyone's tensors, plain or weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from laconic import kernels
from laconic.errors import ConfigError


class Rule(NamedTuple):
    """How the tensors of several workers become one.

    ``combine(tensors, weights)`` takes one tensor a worker, in rank order, and the weights the workers gave.
    ``weight`` is this worker's own, sent along with its tensors if the rule is ``weighted``; under any other, nobody
    heeds what a peer says of its own. A ``linear`` rule is ``sum(w x) / sum(w)``, so that an all-reduce may compute it.
    """

    combine: Callable[[Sequence[Tensor], Sequence[float]], Tensor]
    weight: float = 1.0
    linear: bool = False
    name: str = "rule"
    weighted: bool = False


def mean() -> Rule:
    """The arithmetic mean: every worker counts the same."""
    return Rule(_weighted, 1.0, linear=True, name="mean")


def weighted_mean(weight: float = 1.0) -> Rule:
    """``sum(w x) / sum(w)``, with ``weight`` this worker's own: its number of samples, say.

    With batches of unequal size it is the mean over samples, where :func:`mean` would favour the small batches.

    Raises: ConfigError unless ``weight`` is positive and finite.
    """
    if not 0 < weight < float("inf"):
        raise ConfigError(f"weighted_mean: weight must be positive and finite, got {weight}")
    return Rule(_weighted, float(weight), linear=True, name="weighted_mean", weighted=True)


def _weighted(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    # In rank order, so that every worker adds the same numbers in the same order and all hold the same bits.
    if all(weight == 1.0 for weight in weights):
        total = kernels.empty_like(tensors[0])
        torch.add(tensors[0], tensors[1], out=total) if len(tensors) > 1 else total.copy_(tensors[0])
        for tensor in tensors[2:]:
            total += tensor
        return total.div_(len(tensors))
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total.div_(sum(weights))
