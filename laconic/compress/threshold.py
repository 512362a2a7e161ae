"""Threshold sparsification: send whatever reaches a threshold that a sample guesses, about a given share."""

from __future__ import annotations

import math
import random
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite, share
from laconic.compress.topk import MOST, add, largest, scatter, sparse_packet
from laconic.errors import ConfigError
from laconic.packet import Packet
from laconic.state import checkpointed

FEW, MANY = 0.8, 1.3  # of the wanted count
ENOUGH = 100  # entries of the sample that pass: the count is then within a tenth of the wanted, most of the time
ROUNDS = 10
BESIDE = 8  # of the sample that lie side by side, as many as memory hands over at once, where it is a small share
STEP = 32  # strides are one more than a multiple of this, so that they fall in with no length of a row,
FEW_APART = (31, 29, 23, 19, 17, 13, 11, 1)  # or primes that seldom divide one

Found = tuple[Tensor, Tensor, Tensor | None]  # places, values, and what is left of the sum, where there is one


@checkpointed
class ThresholdState(NamedTuple):
    """How many tensors have been sent: where the sample begins is a function of the seed and this."""

    step: int


def threshold(density: float = 0.01, sample: float = 0.001, seed: int = 0) -> Compressor:
    """Send every entry that reaches a threshold, which about ``k = ceil(density * numel)`` do.

    The threshold is that of a sample: every so many-th entry, or eight neighbours in eight times as many, ``sample`` of
    them all and enough that 100 pass (all of a tensor that has no more). Where fewer than 0.8 k entries of the whole
    tensor reach it, it falls by a fifth and they are counted again; where more than 1.3 k do, the k largest of them are
    sent. So it is one pass nearly always, and no entry that is not sent is larger than one that is. Zeros are never
    sent.

    Wire:   as :func:`topk`, for 0.8 k to 1.3 k entries: how many, the tensor decides. Fewer only where it has no more
            that are not 0.
    Error:  ``|x - decompress(compress(x))|^2 <= (1 - 0.8 k/numel) |x|^2``. Biased: wrap it in :func:`error_feedback`.
    Raises: ConfigError unless ``0 < density <= 1`` and ``0 < sample <= 1``; NotANumber if the tensor holds NaN or
            infinity.
    Source: Lin et al. 2018, arXiv:1712.01887 (Deep Gradient Compression), the sampling and its authors' adaptation; the
            bounds of their code.
    """
    counts("threshold", seed=seed)
    share("threshold", density)
    share("threshold", sample, "sample")

    def init(like: Tensor) -> ThresholdState:
        return ThresholdState(0)

    def guess(flat: Tensor, residual: Tensor | None, k: int, step: int) -> float:
        """What the same share of the sample reaches, but never 0."""
        n = flat.numel()
        wanted = min(n, max(math.ceil(sample * n), math.ceil(ENOUGH * n / k)))
        apart = n // wanted
        beside = BESIDE if apart > STEP else 1
        stride = apart * beside // STEP * STEP + 1 if apart > STEP else next(p for p in FEW_APART if p <= apart)
        start = random.Random(f"threshold/{seed}/{step}").randrange(min(stride, n - beside + 1))
        rank = math.ceil(k * beside * ((n - start - beside) // stride + 1) / n)
        loops = _loops(flat, residual)
        top = math.nan if loops is None else loops.guess(flat, residual, start, stride, beside, rank)
        if not math.isfinite(top):
            taken = (t[start:].unfold(0, beside, stride).reshape(-1) for t in (flat, residual) if t is not None)
            seen = reduce(torch.add, taken)
            finite("threshold", seen)
            top = float(seen.abs().topk(rank).values[-1])
        return max(top, _least(flat.dtype))

    def select(flat: Tensor, residual: Tensor | None, step: int) -> Found:
        if flat.numel() > MOST:
            raise ConfigError(
                f"threshold: a tensor of {flat.numel()} entries; places are 31 bits, so cut it into parts"
            )
        k = math.ceil(density * flat.numel())
        few, many = math.ceil(FEW * k), math.floor(MANY * k)
        if flat.device.type == "meta" or not k:
            return flat.new_empty(k, dtype=torch.int32), flat.new_empty(k), residual
        top = guess(flat, residual, k, step) if k < flat.numel() else _least(flat.dtype)
        falling = [top * FEW**i for i in range(ROUNDS)]
        if top == _least(flat.dtype):  # what is not 0 has been counted already
            falling, few = [top], 0
        loops = _loops(flat, residual)
        if loops is not None:
            found = loops.passing(flat, residual, falling, few, 2 * many)
        else:
            found = _passing(flat, residual, falling, few)
        if found is None or found[0].numel() > many:
            wanted = flat if residual is None else flat + residual
            places, values = largest(wanted, k)
            places, values = places[values != 0], values[values != 0]
            return places, values, None if residual is None else wanted.index_fill(0, places.long(), 0)
        finite("threshold", found[1])  # these are larger than all others
        return found

    def compress(x: Float[Tensor, "*shape"], state: ThresholdState) -> tuple[Packet, ThresholdState]:
        places, values, _ = select(x.detach().reshape(-1), None, state.step)
        return sparse_packet(places, values, x), ThresholdState(state.step + 1)

    def carry(x: Tensor, residual: Tensor, state: ThresholdState) -> tuple[Packet, Tensor, ThresholdState]:
        places, values, left = select(x.detach().reshape(-1), residual.reshape(-1), state.step)
        assert left is not None
        return sparse_packet(places, values, x), left.reshape(x.shape), ThresholdState(state.step + 1)

    return Compressor(
        init,
        compress,
        scatter,
        name="threshold",
        refines="values",
        sparse=True,
        carry=carry,
        add=add,
        delta=lambda numel: math.ceil(FEW * math.ceil(density * numel)) / max(1, numel),
        sized=False,
    )


def _least(dtype: torch.dtype) -> float:
    """The smallest magnitude that is not 0."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def _loops(flat: Tensor, residual: Tensor | None) -> Any:
    return kernels.loops("passing", *(t for t in (flat, residual) if t is not None))


def _passing(flat: Tensor, residual: Tensor | None, thresholds: list[float], few: int) -> Found | None:
    """The plain form of :func:`laconic.kernels.passing.passing`."""
    wanted = flat if residual is None else flat + residual
    finite("threshold", wanted)
    magnitudes = wanted.abs()
    for limit in thresholds:
        places = (magnitudes >= limit).nonzero().squeeze(1)
        if few <= places.numel():
            left = None if residual is None else wanted.index_fill(0, places, 0)
            return places.int(), wanted[places], left
    return None
