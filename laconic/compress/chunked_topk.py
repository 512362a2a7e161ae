"""Chunked top-k: the largest entries of every few thousand neighbours, so that a packet's size is known beforehand."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, stateless, whole
from laconic.compress.rows import bits_of, largest_in_rows, pack, places_in_rows, unpack
from laconic.errors import ConfigError
from laconic.packet import Packet, check_shape, need

Part = tuple[int, int, int, int]  # where it begins, how many rows, of how many entries, of which how many are kept


def chunked_topk(density: float = 0.01, chunk: int = 4096) -> Compressor:
    """Keep the ``ceil(density * chunk)`` entries of largest magnitude of every ``chunk`` neighbours; ties, the first.

    What does not fill the last chunk keeps the same share. No sample, no second pass, and as many bytes every time; but
    where parts of a tensor differ in scale, much less of it is kept than :func:`topk` keeps.

    Wire:   the values in the tensor's dtype, and ``log2(chunk)`` bits a place: 5.5 bytes an entry of float32.
    Error:  ``|x - decompress(compress(x))|^2 <= (1 - density) |x|^2``. Biased: wrap it in :func:`error_feedback`.
    Raises: ConfigError unless ``0 < density <= 1`` and ``1 <= chunk <= 2^24``; NotANumber if the tensor holds NaN or
            infinity.
    Source: the selection of DeMo (Peng et al. 2024, arXiv:2411.19870), without its transform.
    """
    counts("chunked_topk", chunk=chunk)
    share("chunked_topk", density)
    if not 1 <= chunk <= MOST:
        raise ConfigError(f"chunked_topk: chunk must be in [1, {MOST}], got {chunk}")
    keep = math.ceil(density * chunk)

    def pack_up(found: list[tuple[Tensor, Tensor]], x: Tensor) -> Packet:
        # A tensor of nothing has no part, and still its dtype.
        values = [v.reshape(-1) for _, v in found] or [x.detach().reshape(-1)]
        places = [p.reshape(-1) for p, _ in found] or [x.new_empty(0, dtype=torch.int32)]
        tensors = {"values": torch.cat(values), "places": pack(torch.cat(places), _width(x.numel(), chunk, keep))}
        return Packet(tensors, {"shape": list(x.shape), "chunk": chunk, "keep": keep})

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        flat = x.detach().reshape(-1)
        found = [
            largest_in_rows("chunked_topk", flat[at : at + rows * size].reshape(rows, size), k)
            for at, rows, size, k in _parts(flat.numel(), chunk, keep)
        ]
        return pack_up(found, x), state

    def carry(x: Tensor, residual: Tensor, state: tuple) -> tuple[Packet, Tensor, tuple]:
        flat, kept = x.detach().reshape(-1), residual.reshape(-1)
        loops = kernels.loops("rows", flat, kept)
        parts = _parts(flat.numel(), chunk, keep)
        if loops is None:
            wanted = flat + kept
            packet, _ = compress(wanted, state)
            for (at, rows, size, _), places in zip(parts, _places(packet, parts, chunk, keep), strict=True):
                wanted[at : at + rows * size].view(rows, size).scatter_(1, places, 0)
            return Packet(packet.tensors, packet.header | {"shape": list(x.shape)}), wanted.reshape(x.shape), state
        left = kernels.empty_like(flat)
        found = []
        for at, rows, size, k in parts:
            here = slice(at, at + rows * size)
            found.append(loops.pick(flat[here], kept[here], left[here], size, k))
        packet = pack_up(found, x)
        finite("chunked_topk", packet.tensors["values"])  # these are larger than all others
        return packet, left.reshape(x.shape), state

    return Compressor(
        stateless,
        compress,
        _scatter,
        name="chunked_topk",
        refines="values",
        sparse=True,
        carry=carry,
        add=_add,
        delta=lambda numel: min((k / size for _, _, size, k in _parts(numel, chunk, keep)), default=1.0),
        block=chunk,
    )


MOST = 1 << 24


def _parts(numel: int, chunk: int, keep: int) -> list[Part]:
    """The whole chunks, then what is left over; a part that is empty is left out."""
    rows, rest = divmod(numel, chunk)
    parts = [(0, rows, chunk, keep), (rows * chunk, 1, rest, -(-keep * rest // chunk))]
    return [part for part in parts if part[1] * part[2]]


def _width(numel: int, chunk: int, keep: int) -> int:
    return bits_of(chunk, keep) if numel >= chunk else bits_of(numel, -(-keep * numel // chunk))


def _places(packet: Packet, parts: list[Part], chunk: int, keep: int) -> list[Tensor]:
    counts = [rows * k for _, rows, _, k in parts]
    numel = sum(rows * size for _, rows, size, _ in parts)
    packed = unpack(packet, "places", _width(numel, chunk, keep), sum(counts)).split(counts)
    return [places_in_rows(p, rows, size, k) for p, (_, rows, size, k) in zip(packed, parts, strict=True)]


def _entries(packet: Packet) -> tuple[list[Part], list[Tensor], Tensor]:
    numel = promised(packet)[1]
    chunk = whole(packet, "chunk", 1, MOST)
    keep = whole(packet, "keep", 1, chunk)
    parts = _parts(numel, chunk, keep)
    values = need(packet, "values", FLOATS, sum(rows * k for _, rows, _, k in parts))
    return parts, _places(packet, parts, chunk, keep), values


def _scatter(packet: Packet) -> Float[Tensor, "*shape"]:
    shape, numel = promised(packet)
    parts, places, values = _entries(packet)
    dense = values.new_zeros(numel)
    _into(dense, parts, places, values)
    return dense.reshape(shape)


def _add(packet: Packet, into: Tensor, weight: float) -> None:
    parts, places, values = _entries(packet)
    check_shape(packet, into)
    values = values.to(into)
    _into(into.view(-1), parts, [p.to(into.device) for p in places], values if weight == 1.0 else values * weight)


def _into(dense: Tensor, parts: list[Part], places: list[Tensor], values: Tensor) -> None:
    """Add the values at their places; no place comes twice."""
    counts = [rows * k for _, rows, _, k in parts]
    for (at, rows, size, k), where, what in zip(parts, places, values.split(counts), strict=True):
        starts = torch.arange(at, at + rows * size, size, device=dense.device)[:, None]
        dense.index_add_(0, (where + starts).reshape(-1), what.reshape(rows * k))
