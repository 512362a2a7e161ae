"""Loops that take everything above a threshold, which a sample guesses: one pass where the guess is good."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from laconic.kernels import empty_like, scratch
from laconic.kernels.select import gather, joined, sampled


def passing(
    flat: Tensor, residual: Tensor | None, thresholds: list[float], few: int, many: int
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Places (rising) and values of what reaches the first of falling ``thresholds`` that at least ``few`` reach.

    Also what is left of the sum without them, if there is a residual. ``None`` where that is much more than ``many``,
    or where fewer reach even the last.
    """
    n = flat.numel()
    x = flat.numpy()
    e = None if residual is None else residual.numpy()
    left = None if residual is None else empty_like(flat)
    out = None if left is None else left.numpy()
    for threshold in thresholds:
        found = gather(x, e, out, int(np.float32(threshold).view(np.int32)), many, n, final=True)
        if found is None:
            return None
        if few <= found.counts.sum():
            places, values = joined(found)
            return torch.from_numpy(places), torch.from_numpy(values), left
    return None


def guess(flat: Tensor, residual: Tensor | None, start: int, stride: int, beside: int, rank: int) -> float:
    """The ``rank``-th largest magnitude of ``beside`` neighbours at ``start`` and every ``stride`` from there."""
    runs = (flat.numel() - start - beside) // stride + 1
    sample = scratch("sample", runs * beside, np.float32)
    e = None if residual is None else residual.numpy()
    return float(np.int32(sampled(flat.numpy(), e, start, stride, beside, sample, rank)).view(np.float32))
