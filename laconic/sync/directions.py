"""Directions to look in: the same bits on every worker, made of numbers and never sent.

A direction is a function of the run's seed, the step, the sample and the tensor; each entry of its own place alone. It
is made of whole numbers, a table and single roundings, which are the same on every machine. A logarithm or a cosine,
as Box and Muller need, is not: its last bit depends on the device, and on a CPU on how many entries are taken at once.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import struct
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from laconic import kernels
from laconic.compress.noise import noise
from laconic.errors import unknown

HALF = 1 << 16
GRID = 1 << 16  # the table's numbers are multiples of 1/GRID, so that the sum of two is exact in float32


def key_of(seed: int, step: int, sample: int, tensor: int) -> int:
    """64 bits for one tensor of one direction, each a function of all four numbers."""
    packed = struct.pack("<4Q", seed % (1 << 64), step, sample, tensor)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def gaussian(like: Tensor, key: int) -> Tensor:
    """Standard normal float32 numbers in the shape of ``like``: two 16-bit quantiles each, added.

    Law:    mean 0 and variance 1 to 1e-7; 2^32 values, up to 6.1 deviations.
    """
    bits = noise(like, key)
    table, scale = _quantiles()
    table = table.to(like.device)
    low = table.index_select(0, (bits & (HALF - 1)).reshape(-1))
    high = table.index_select(0, ((bits >> 16) & (HALF - 1)).reshape(-1))
    return low.add_(high).mul_(scale).reshape(like.shape)


def rademacher(like: Tensor, key: int) -> Tensor:
    """One or minus one, float32, in the shape of ``like``: variance 1, and cheaper than :func:`gaussian`."""
    return ((noise(like, key) >> 31) | 1).float()


@cache
def _quantiles() -> tuple[Tensor, float]:
    """The normal's quantiles at the middles of 2^16 equal shares, and the scale that makes a sum of two standard."""
    normal = statistics.NormalDist()
    upper = [round(GRID * normal.inv_cdf(0.5 + (i + 0.5) / HALF)) for i in range(HALF // 2)]
    variance = 2 * 2 * sum(n * n for n in upper) / HALF / GRID**2
    table = torch.tensor([-n for n in reversed(upper)] + upper, dtype=torch.float64) / GRID
    return table.float(), 1 / math.sqrt(variance)


KINDS: dict[str, Callable[[Tensor, int], Tensor]] = {"gaussian": gaussian, "rademacher": rademacher}


def checked_kind(what: str, kind: str) -> str:
    """``kind`` if it is one: gaussian, rademacher or axes.

    Raises: ConfigError.
    """
    if kind not in (*KINDS, "axes"):
        raise unknown(f"{what} directions", kind, (*KINDS, "axes"))
    return kind


def direction(kind: str, params: Sequence[Tensor], seed: int, step: int, sample: int, samples: int, i: int) -> Tensor:
    """Tensor ``i`` of a direction: ``sample`` of ``samples`` in this step, over ``params`` together.

    Along ``axes`` each direction is one entry's, times the root of their number: the entries in turn.
    """
    like = params[i]
    if kind != "axes":
        return KINDS[kind](like, key_of(seed, step, sample, i))
    sizes = [p.numel() for p in params]
    at = (step * samples + sample) % sum(sizes) - sum(sizes[:i])
    flat = torch.zeros(like.numel(), dtype=torch.float32, device=like.device)
    if 0 <= at < like.numel():
        flat[at] = math.sqrt(sum(sizes))
    return flat.reshape(like.shape)


def add_direction(
    into: Tensor,
    by: float,
    kind: str,
    params: Sequence[Tensor],
    seed: int,
    step: int,
    sample: int,
    samples: int,
    i: int,
) -> None:
    """Add ``by`` times :func:`direction` to a contiguous tensor: a product, then a sum, each rounded once."""
    fast = kernels.loops("directions", into) if kind in KINDS else None
    if fast is None:
        into.add_(direction(kind, params, seed, step, sample, samples, i).mul_(by))
        return
    table, scale = _quantiles() if kind == "gaussian" else (None, 1.0)
    fast.add(into.view(-1), by, key_of(seed, step, sample, i), table, scale)
