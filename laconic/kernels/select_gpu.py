"""What :mod:`laconic.kernels.select` does, for tensors on a GPU: Triton programs that each look at one run of entries.

Two passes: one counts what reaches the threshold in each run (and writes the sum with the residual), the other puts it
where the counts before it say. No atomics: the order is that of the places, whatever program ends first.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

RUN = 4096  # entries of a program
SAMPLE = 1 << 16
WORTH_GUESSING = 1 << 15


def pick(flat: Tensor, residual: Tensor | None, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Places (rising) and values of the ``k >= 1`` largest of ``flat + residual``, the first of equal ones; exact.

    Also what is left of the sum without them, if there is a residual.
    """
    n = flat.numel()
    left = None if residual is None else torch.empty_like(flat)
    source = flat if left is None else left
    threshold = _guess(flat, residual, k)
    runs = triton.cdiv(n, RUN)
    counts = torch.empty(runs, dtype=torch.int32, device=flat.device)
    _count[(runs,)](flat, residual, left, threshold, counts, n, residual is not None, RUN)
    ends = counts.cumsum(0)
    total = int(ends[-1])
    if total < k:  # the guess was too high: the k-th magnitude itself
        threshold = source.abs().topk(k).values[-1:].view(torch.int32).clone()
        _count[(runs,)](source, None, None, threshold, counts, n, False, RUN)
        ends = counts.cumsum(0)
        total = int(ends[-1])
    places = torch.empty(total, dtype=torch.int32, device=flat.device)
    values = torch.empty(total, dtype=torch.float32, device=flat.device)
    _compact[(runs,)](source, threshold, ends - counts, places, values, n, left is not None, RUN)
    if total == k:
        return places, values, left
    magnitudes = values.abs()
    limit = magnitudes.topk(k).values[-1]
    # NaN is above everything here too: not "magnitudes > limit".
    above, ties = (magnitudes <= limit).logical_not_(), magnitudes == limit
    keep = above | (ties & (ties.cumsum(0) <= k - above.sum()))
    if left is not None:
        back = keep.logical_not()
        left[places[back].long()] = values[back]
    return places[keep][:k], values[keep][:k], left


def add_at(out: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    """``out[places] += weight * values``; places are all different, so the order of the sums does not matter."""
    out.index_add_(0, places.long(), values if weight == 1.0 else values * weight)


def _guess(flat: Tensor, residual: Tensor | None, k: int) -> Tensor:
    """A threshold, as bits, that a little more than ``k`` entries reach; 0 where all have to be looked at."""
    n = flat.numel()
    if n < WORTH_GUESSING or 4 * k > n:
        return torch.zeros(1, dtype=torch.int32, device=flat.device)
    stride = n // SAMPLE | 1
    sample = flat[::stride] if residual is None else flat[::stride] + residual[::stride]
    expected = k * sample.numel() / n
    rank = min(sample.numel(), math.ceil(expected + 2 * math.sqrt(expected) + 2))
    return sample.abs().topk(rank).values[-1:].view(torch.int32).clone()


@triton.jit
def _count(x, residual, left, threshold, counts, n, fed: tl.constexpr, RUN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * RUN + tl.arange(0, RUN)
    inside = at < n
    v = tl.load(x + at, mask=inside, other=0.0)
    if fed:
        v += tl.load(residual + at, mask=inside, other=0.0)
        tl.store(left + at, v, mask=inside)
    reaches = ((v.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= tl.load(threshold)) & inside
    tl.store(counts + tl.program_id(0), tl.sum(reaches.to(tl.int32), 0))


@triton.jit
def _compact(x, threshold, before, places, values, n, clear: tl.constexpr, RUN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * RUN + tl.arange(0, RUN)
    inside = at < n
    v = tl.load(x + at, mask=inside, other=0.0)
    reaches = ((v.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= tl.load(threshold)) & inside
    to = tl.load(before + tl.program_id(0)) + tl.cumsum(reaches.to(tl.int32), 0) - 1
    tl.store(places + to, at.to(tl.int32), mask=reaches)
    tl.store(values + to, v, mask=reaches)
    if clear:
        tl.store(x + at, tl.zeros((RUN,), tl.float32), mask=reaches)
