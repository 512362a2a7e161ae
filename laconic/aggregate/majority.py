"""The majority's sign: each worker has one vote on each value, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from laconic.aggregate.mean import Rule


def majority() -> Rule:
    """1 where more workers are positive than negative, -1 where fewer; of a tie 1, and 0 where nobody has voted.

    A zero is no vote. A minority of workers changes nothing where the rest agree, whatever it sends.

    Source: Bernstein et al. 2018, arXiv:1802.04434 (signSGD with majority vote); a tie is ours to define.
    """
    return Rule(_vote, name="majority")


def _vote(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    votes = torch.zeros_like(tensors[0], dtype=torch.float32)
    voted = torch.zeros_like(tensors[0], dtype=torch.bool)
    for tensor, weight in zip(tensors, weights, strict=True):
        votes.add_(tensor.sign(), alpha=weight)
        voted |= tensor != 0
    return torch.where(votes >= 0, 1.0, -1.0).mul_(voted).to(tensors[0].dtype)
