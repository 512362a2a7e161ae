"""PowerSGD: a low-rank approximation of the mean, found with two all-reduces of thin matrices."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import count, finite, still
from laconic.compress.low_rank import orthonormal
from laconic.errors import ConfigError, PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.links.base import Link
from laconic.state import varying


@varying("right", "residual")
class PowerSGDState(NamedTuple):
    """For each matrix, the right factor of the last round (shared) and what was not sent (private); else ``None``.

    ``step`` counts rounds: a cold start draws a fresh factor each time, or the same directions would always be missed.
    A state may be handed to a powersgd of another rank: a right factor of the wrong rank is drawn anew, and what was
    not sent is kept, or goes out whole with a matrix that no longer shrinks.
    """

    step: int
    right: list[Tensor | None]
    residual: list[Tensor | None]


def powersgd(rank: int = 4, warm_start: bool = True, min_rate: float = 2.0, seed: int = 0) -> Exchange:
    """The best rank-``rank`` approximation of the mean that one step of subspace iteration finds, with error feedback.

    A tensor of two or more dimensions is a matrix of ``n = shape[0]`` rows and m columns; one that would not shrink
    by ``min_rate``, and every vector, is averaged exactly. In the paper's letters, for the matrix M of each worker
    (with its residual added): ``P = sum of M Q``; P is made orthonormal; ``Q = mean of M^T P``; the mean is ``P Q^T``.
    The residual is what this worker did not send, ``M - P Q_mine^T``: it stays bounded, where the paper's own
    ``M - P Q^T`` also stores each worker's deviation from the mean, for ever.

    Wire:   two all-reduces, of ``rank (n + m)`` values a matrix; exact tensors ride on the first.
    Law:    sum of results + mean residual == sum of mean inputs. With ``rank >= min(n, m)`` the mean is exact.
    Raises: ConfigError unless ``rank >= 1`` and ``min_rate > 0``; NotANumber if a matrix holds NaN or infinity.
    Source: Vogels et al. 2019, arXiv:1905.13727, algorithm 1; the residual of their later package.
    """
    count("powersgd", rank, "rank")
    count("powersgd", seed, "seed", None)
    if not min_rate > 0:
        raise ConfigError(f"powersgd: min_rate must be positive, got {min_rate}")

    def matrix(tensor: Tensor) -> Tensor | None:
        if tensor.dim() < 2 or not tensor.numel():
            return None
        rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
        thin = min(rank, rows, columns) * (rows + columns) * min_rate
        return tensor.detach().reshape(rows, columns) if thin < rows * columns else None

    def draw(like: Tensor, step: int) -> Tensor:
        rows, columns = like.shape
        shape = (columns, min(rank, columns, rows))
        if like.device.type == "meta":
            return torch.empty(shape, dtype=working(like), device="meta")
        # By shape, not by place: a place depends on how parameters share buckets, and results must not.
        generator = torch.Generator().manual_seed(
            random.Random(f"powersgd/{seed}/{step}/{rows}/{columns}").getrandbits(63)
        )
        return torch.randn(shape, generator=generator, dtype=working(like)).to(like.device)

    def init(tensors: Tensors) -> PowerSGDState:
        right: list[Tensor | None] = []
        residual: list[Tensor | None] = []
        for tensor in tensors:
            m = matrix(tensor)
            right.append(None if m is None else draw(m, 0))
            residual.append(None if m is None else still(m))
        return PowerSGDState(0, right, residual)

    def run(tensors: Tensors, state: PowerSGDState, link: Link) -> tuple[list[Tensor], PowerSGDState]:
        share = 1 / link.size
        matrices: dict[int, Tensor] = {}
        rights: dict[int, Tensor] = {}
        exact: dict[int, Tensor] = {}
        with link.meter.compressing():
            for i, tensor in enumerate(tensors):
                whole, m = _with_residual(tensor, state.residual[i]), matrix(tensor)
                if m is None:
                    exact[i] = whole.mul_(share)
                    continue
                matrices[i] = whole.reshape(m.shape)
                finite("powersgd", matrices[i])
                warm = _fitting(state.right[i], matrices[i], rank) if warm_start else None
                rights[i] = draw(m, state.step) if warm is None else warm
            thin = {i: m.to(rights[i].dtype) @ rights[i] for i, m in matrices.items()}
        first = _sum({**{i: p * share for i, p in thin.items()}, **exact}, link)
        with link.meter.compressing():
            left = {i: orthonormal(first[i]) for i in matrices}
            mine = {i: m.to(left[i].dtype).T @ left[i] for i, m in matrices.items()}
        mean = _sum({i: q * share for i, q in mine.items()}, link)
        with link.meter.compressing():
            combined: list[Tensor] = []
            residuals: list[Tensor | None] = []
            for i, tensor in enumerate(tensors):
                if i in matrices:
                    combined.append((left[i] @ mean[i].T).to(tensor.dtype).reshape(tensor.shape))
                    sent = (left[i] @ mine[i].T).to(matrices[i].dtype)
                    residuals.append(matrices[i].sub_(sent))
                else:
                    combined.append(first[i].to(tensor.dtype))
                    residuals.append(None)
        return combined, PowerSGDState(state.step + 1, [mean.get(i) for i in range(len(tensors))], residuals)

    return Exchange(init, run, equal=True, name=f"powersgd(rank={rank})", sparse=True)


def _with_residual(tensor: Tensor, residual: Tensor | None) -> Tensor:
    """A new tensor: what came and what was kept of earlier ones."""
    if residual is None:
        return tensor.detach().clone()
    if residual.numel() != tensor.numel():
        raise PacketError(f"powersgd: the residual of another tensor, of {residual.numel()} entries: {tensor.numel()}")
    return tensor.detach() + residual.reshape(tensor.shape)


def _fitting(right: Tensor | None, m: Tensor, rank: int) -> Tensor | None:
    """The last round's right factor, if it was one of this rank."""
    fits = right is not None and right.shape == (m.shape[1], min(rank, *m.shape)) and right.dtype == working(m)
    return right if fits else None


def working(tensor: Tensor) -> torch.dtype:
    """The dtype to compute in: half precision has too few digits to orthogonalise."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _sum(tensors: dict[int, Tensor], link: Link) -> dict[int, Tensor]:
    """Sum over the workers, all tensors of one dtype in one all-reduce."""
    summed: dict[int, Tensor] = {}
    by_dtype: dict[torch.dtype, list[int]] = {}
    for i, tensor in sorted(tensors.items()):
        by_dtype.setdefault(tensor.dtype, []).append(i)
    for indices in by_dtype.values():
        flat = link.all_reduce(torch.cat([tensors[i].reshape(-1) for i in indices]))
        for i, part in zip(indices, flat.split([math.prod(tensors[i].shape) for i in indices]), strict=True):
            summed[i] = part.reshape(tensors[i].shape)
    return summed
