"""The largest coefficients of the cosine transform of every tile, as DeMo sends its fast-moving components."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, stateless, whole
from laconic.compress.dct import basis, working
from laconic.compress.rows import bits_of, largest_in_rows, pack, places_in_rows, unpack
from laconic.errors import ConfigError, NotANumber
from laconic.packet import Packet, need

MOST = 256  # entries along the side of a tile

Tiling = tuple[int, int, int, int]  # rows of tiles, entries down a tile, columns of tiles, entries across


def dct_topk(keep: float = 1 / 128, chunk: int = 64) -> Compressor:
    """Keep the ``ceil(keep * entries)`` largest coefficients of the orthonormal DCT-II of each tile; ties, the first.

    A tensor of two or more dimensions is a matrix of ``shape[0]`` rows, and a tile's sides are the largest divisors of
    its two dimensions not above ``chunk``: at the defaults 32 of the 4096 coefficients of a 64 x 64 tile, as the paper
    has. A vector has tiles of one dimension. Sides that are prime leave tiles of one row: choose widths that divide.

    Wire:   the coefficients in the tensor's dtype, and their places in ``log2(entries)`` bits: 5.5 bytes each for
            float32 and tiles of 64 x 64.
    Error:  ``|x - decompress(compress(x))|^2 <= (1 - keep) |x|^2`` and rounding. Biased: wrap it in
            :func:`error_feedback`.
    Raises: ConfigError unless ``0 < keep <= 1`` and ``1 <= chunk <= 256``; NotANumber if the tensor holds NaN or
            infinity, or a coefficient is beyond the range of the tensor's dtype (float16).
    Source: Peng et al. 2024, arXiv:2411.19870 (DeMo), its transform and selection. Its momentum, decay and sign are not
            here.
    """
    counts("dct_topk", chunk=chunk)
    share("dct_topk", keep, "keep")
    if not 1 <= chunk <= MOST:
        raise ConfigError(f"dct_topk: chunk must be in [1, {MOST}], got {chunk}")

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        tiling = _tiling(x.shape, chunk)
        tiles = _forward(x.detach(), tiling).to(x.dtype)
        count = math.ceil(keep * tiles.shape[1])
        try:
            places, values = largest_in_rows("dct_topk", tiles, count)
        except NotANumber:
            finite("dct_topk", x)
            raise NotANumber(f"dct_topk: a coefficient is beyond {x.dtype}'s range; take a smaller chunk") from None
        data = pack(places.reshape(-1), bits_of(tiles.shape[1], count))
        header = {"shape": list(x.shape), "chunk": chunk, "keep": count}
        return Packet({"values": values.reshape(-1), "places": data}, header), state

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        tiling = _tiling(shape, whole(packet, "chunk", 1, MOST))
        size = tiling[1] * tiling[3]
        count = whole(packet, "keep", 1, size)
        rows = numel // size
        values = need(packet, "values", FLOATS, rows * count)
        packed = unpack(packet, "places", bits_of(size, count), rows * count)
        places = places_in_rows(packed, rows, size, count)
        tiles = working(values).new_zeros(rows, size).scatter_(1, places, working(values).reshape(rows, count))
        return _backward(tiles, tiling).to(values.dtype).reshape(shape)

    return Compressor(
        stateless,
        compress,
        decompress,
        name="dct_topk",
        refines="values",
        sparse=True,
        delta=lambda numel: keep,
    )


def _tiling(shape: tuple[int, ...], chunk: int) -> Tiling:
    numel = math.prod(shape)
    if not numel:
        return 0, 1, 0, 1
    down = shape[0] if len(shape) > 1 else 1
    tall, wide = _side(down, chunk), _side(numel // down, chunk)
    return down // tall, tall, numel // down // wide, wide


def _side(size: int, most: int) -> int:
    """The largest divisor of ``size`` not above ``most``."""
    return next(side for side in range(min(size, most), 0, -1) if size % side == 0)


def _forward(x: Tensor, tiling: Tiling) -> Float[Tensor, "tiles entries"]:
    """The coefficients of each tile, a tile a row."""
    rows, tall, columns, wide = tiling
    if x.device.type == "meta" or not x.numel():
        return x.new_empty(rows * columns, tall * wide)
    values = working(x.contiguous()).reshape(-1, wide)
    across = values @ basis(wide, values.dtype, x.device).T
    both = basis(tall, values.dtype, x.device) @ across.reshape(rows, tall, columns * wide)
    return both.reshape(rows, tall, columns, wide).transpose(1, 2).reshape(rows * columns, tall * wide)


def _backward(tiles: Tensor, tiling: Tiling) -> Tensor:
    """The entries, in their order, from the coefficients of each tile."""
    rows, tall, columns, wide = tiling
    if tiles.device.type == "meta" or not tiles.numel():
        return tiles.reshape(-1)
    across = tiles.reshape(-1, wide) @ basis(wide, tiles.dtype, tiles.device)
    lines = across.reshape(rows, columns, tall, wide).transpose(1, 2).reshape(rows, tall, columns * wide)
    return (basis(tall, tiles.dtype, tiles.device).T @ lines).reshape(-1)
