"""Low rank: a matrix as the product of two thin ones, in one packet of its own."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, counts, finite, noise_key, promised, whole
from laconic.errors import ConfigError, NotANumber
from laconic.packet import Packet, need
from laconic.state import checkpointed


@checkpointed
class LowRankState(NamedTuple):
    """How many tensors have been sent, and the right factor of the last (columns x rank), where the next one begins."""

    step: int
    right: Tensor | None


def low_rank(
    rank: int = 4, unbiased: bool = False, iterations: int = 1, warm_start: bool = True, seed: int = 0
) -> Compressor:
    """Send a matrix as ``left @ right``, with ``rank`` columns and rows.

    A tensor of two or more dimensions is a matrix of ``n = shape[0]`` rows and m columns. One that would not shrink,
    and every vector, is sent as it is. The factors are found by ``iterations`` steps of subspace iteration, which begin
    at the last tensor's if ``warm_start`` and at random ones if not: nearly the best approximation of a matrix that
    changes slowly. ``unbiased`` sends ``rank`` of the matrix's singular triples, drawn with probabilities that grow
    with the singular values, and divided by them: right on average, and much more noise. It needs all triples: time
    grows as ``min(n, m)^2 max(n, m)``.

    One packet says it all, so it also goes where the powersgd exchange, whose two all-reduces everyone takes part in,
    cannot: between pairs, through a server, into a median. Between everyone, powersgd sends less: its packets are
    added in flight, these are gathered.

    Wire:   ``rank (n + m)`` values in the tensor's dtype.
    Error:  at ``rank >= min(n, m)`` none. Biased: wrap it in :func:`error_feedback`. Without ``warm_start``
            ``E|x - decompress(compress(x))|^2 <= (1 - rank / min(n, m)) |x|^2``. With ``unbiased``
            ``E|..|^2 <= (min(n, m) / rank - 1) |x|^2``, to be used without feedback.
    Raises: ConfigError unless ``rank >= 1`` and ``iterations >= 1``; NotANumber if the tensor holds NaN or infinity, or
            a factor is beyond the range of its dtype (float16).
    Source: Vogels et al. 2019, arXiv:1905.13727 (subspace iteration); unbiased: Wang et al. 2018, arXiv:1806.04090
            (ATOMO), with as many triples every time.
    """
    counts("low_rank", rank=rank, iterations=iterations, seed=seed)
    if rank < 1 or iterations < 1:
        raise ConfigError(f"low_rank: rank and iterations must be at least 1, got {rank} and {iterations}")

    def init(like: Tensor) -> LowRankState:
        if unbiased or not _thin(tuple(like.shape), rank):
            return LowRankState(0, None)
        return LowRankState(0, draw(_matrix(like), 0))

    def draw(matrix: Tensor, step: int) -> Tensor:
        shape = (matrix.shape[1], rank)
        if matrix.device.type == "meta":
            return matrix.new_empty(shape)
        key = random.Random(f"low_rank/{seed}/{step}/{tuple(matrix.shape)}").getrandbits(63)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(key), dtype=matrix.dtype)
        return drawn.to(matrix.device)

    def factors(matrix: Tensor, state: LowRankState, key: int) -> tuple[Tensor, Tensor]:
        if unbiased:
            return _sampled(matrix, rank, key)
        right = state.right if warm_start and state.right is not None else draw(matrix, state.step)
        for _ in range(iterations):
            left = orthonormal(matrix @ right.to(matrix))
            right = matrix.T @ left
        return left, right.T

    def compress(x: Float[Tensor, "*shape"], state: LowRankState) -> tuple[Packet, LowRankState]:
        header = {"shape": list(x.shape)}
        if not _thin(tuple(x.shape), rank):
            values = x.detach().reshape(-1)
            finite("low_rank", values)
            return Packet({"values": values}, header | {"rank": 0}), state._replace(step=state.step + 1)
        matrix = _matrix(x)
        finite("low_rank", matrix)
        left, right = factors(matrix, state, noise_key(x, seed, state.step))
        tensors = {"left": left.to(x.dtype).reshape(-1), "right": right.to(x.dtype).reshape(-1)}
        for values in tensors.values():
            try:
                finite("low_rank", values)
            except NotANumber:
                raise NotANumber(f"low_rank: a factor is beyond {x.dtype}'s range; use bfloat16") from None
        after = None if unbiased else right.T
        return Packet(tensors, header | {"rank": rank}), LowRankState(state.step + 1, after)

    def unbiasedness(numel: int) -> float:
        return max(0.0, math.isqrt(numel) / rank - 1)

    return Compressor(
        init,
        compress,
        _decompress,
        name="low_rank",
        sparse=True,
        no_feedback="(unbiased) sends more than it was given" if unbiased else "",
        delta=None if unbiased or warm_start else lambda numel: min(1.0, rank / max(1, math.isqrt(numel))),
        omega=unbiasedness if unbiased else None,
    )


def _decompress(packet: Packet) -> Float[Tensor, "*shape"]:
    shape, numel = promised(packet)
    rank = whole(packet, "rank", 0, max(1, numel))
    if not rank:
        return need(packet, "values", FLOATS, numel).reshape(shape)
    rows = shape[0] if shape else 1
    columns = numel // rows if rows else 0
    left = need(packet, "left", FLOATS, rows * rank)
    right = need(packet, "right", (left.dtype,), rank * columns)
    dtype = torch.promote_types(left.dtype, torch.float32)
    product = left.to(dtype).reshape(rows, rank) @ right.to(dtype).reshape(rank, columns)
    return product.add_(0.0).to(left.dtype).reshape(shape)  # no -0


def _thin(shape: tuple[int, ...], rank: int) -> bool:
    """Whether two factors are smaller than the matrix."""
    numel = math.prod(shape)
    return len(shape) > 1 and numel > 0 and rank * (shape[0] + numel // shape[0]) < numel


def _matrix(x: Tensor) -> Float[Tensor, "n m"]:
    # In one order in memory, so that products round alike however the tensor lies.
    return x.detach().contiguous().reshape(x.shape[0], -1).to(torch.promote_types(x.dtype, torch.float32))


def orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span (n x r); columns of a zero matrix stay harmless.

    By Cholesky's factor of the r x r Gram matrix, twice: two thin products instead of a QR, which takes ten times as
    long on a tall matrix. Where the columns are too nearly dependent for that, QR.
    """
    if matrix.device.type == "meta":
        return torch.empty_like(matrix)
    q = matrix.double()
    for _ in range(2):
        gram = q.T @ q
        factor, info = torch.linalg.cholesky_ex(gram)
        diagonal = factor.diagonal()
        if int(info) or bool(diagonal.min() <= 1e-6 * diagonal.max()):
            return torch.linalg.qr(matrix.double()).Q.to(matrix.dtype)
        q = torch.linalg.solve_triangular(factor, q.T, upper=False).T
    return q.to(matrix.dtype)


def _sampled(matrix: Tensor, rank: int, key: int) -> tuple[Tensor, Tensor]:
    """``rank`` of the matrix's singular triples: ``sum of left_i right_i`` is the matrix, on average over ``key``."""
    if matrix.device.type == "meta":
        return matrix.new_empty(matrix.shape[0], rank), matrix.new_empty(rank, matrix.shape[1])
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _sampled(matrix.T, rank, key)
        return left.T, right.T
    wide = matrix.double()
    # Whatever rounding does to the vectors: all that the mean needs is that they are orthonormal.
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)
    atoms = vectors.T @ wide
    sizes = torch.linalg.vector_norm(atoms, dim=1).tolist()
    chosen, chances = draw_without_replacement(sizes, rank, random.Random(key).random())
    index = torch.tensor(chosen, device=matrix.device)
    weights = torch.tensor([1 / chance for chance in chances], dtype=torch.float64, device=matrix.device)
    return vectors[:, index].to(matrix.dtype), (atoms[index] * weights[:, None]).to(matrix.dtype)


def draw_without_replacement(sizes: list[float], count: int, start: float) -> tuple[list[int], list[float]]:
    """``count`` of the numbers, and with what probability each was drawn: in proportion to its size, but at most 1.

    One random ``start`` in [0, 1) draws them all: laid end to end, as long as they are probable, every one that a mark
    of ``start``, ``start + 1``, ... falls on.
    """
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    left, total, sure = count, math.fsum(sizes), 0
    while sure < count and (not total > 0 or sizes[order[sure]] * left >= total):
        total = math.fsum(sizes[i] for i in order[sure + 1 :])
        left, sure = left - 1, sure + 1
    chosen, chances = order[:sure], [1.0] * sure
    mark, end = start, 0.0
    for i in order[sure:]:
        if len(chosen) == count or not total > 0:
            break
        chance = left * sizes[i] / total
        end += chance
        if mark < end:
            chosen.append(i)
            chances.append(chance)
            mark += 1
    for i in order[sure:]:  # rounding may have left the last mark just past the end
        if len(chosen) == count:
            break
        if i not in chosen:
            chosen.append(i)
            chances.append(math.inf)
    return chosen, chances
