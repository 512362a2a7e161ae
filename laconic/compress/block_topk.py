"""Block top-k: whole blocks of neighbours, those of largest norm."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress import places as places_
from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, stateless, whole
from laconic.compress.topk import MOST, largest
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet, check_shape, need

SMALL = 1e-15  # a norm whose square float32 still tells from 0


def block_topk(density: float = 0.01, block: int = 64) -> Compressor:
    """Keep the ``ceil(density * blocks)`` blocks of ``block`` neighbours of largest norm; of equal ones, the first.

    A place serves a whole block, and blocks are copied as they lie; but small entries come along with large ones.

    Wire:   the blocks' values in the tensor's dtype, and their places in about ``log2(1/density) + 1.5`` bits a block.
            The last block may be short, and then sends no more than it has.
    Error:  ``|x - decompress(compress(x))|^2 <= (1 - kept/blocks) |x|^2``. Biased: wrap it in :func:`error_feedback`.
    Raises: ConfigError unless ``0 < density <= 1`` and ``block >= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: the bound is top-k's, Stich et al. 2018, arXiv:1809.07599, section 2, for blocks in place of entries.
    """
    counts("block_topk", block=block)
    share("block_topk", density)
    if block < 1:
        raise ConfigError(f"block_topk: block must be at least 1, got {block}")

    def keep(numel: int) -> int:
        return math.ceil(density * -(-numel // block))

    def pack(flat: Tensor, x: Tensor) -> tuple[Packet, Tensor]:
        blocks = -(-flat.numel() // block)
        if blocks > MOST:
            raise ConfigError(f"block_topk: {blocks} blocks; places are 31 bits, so take larger blocks")
        numbers, values = _take(flat, block, _chosen(flat, block, keep(flat.numel())))
        data, low = places_.encode(numbers, blocks)
        header = {"shape": list(x.shape), "block": block, "low": low}
        return Packet({"values": values, "places": data}, header), numbers

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        return pack(x.detach().reshape(-1), x)[0], state

    def carry(x: Tensor, residual: Tensor, state: tuple) -> tuple[Packet, Tensor, tuple]:
        flat = x.detach().reshape(-1)
        left = torch.add(flat, residual.reshape(-1), out=kernels.empty_like(flat))
        packet, numbers = pack(left, x)
        rows, rest = _split(left, block)
        inside, last = _divide(numbers, rows.shape[0])
        rows.index_fill_(0, inside, 0)
        if last:
            rest.zero_()
        return packet, left.reshape(x.shape), state

    return Compressor(
        stateless,
        compress,
        _scatter,
        name="block_topk",
        refines="values",
        sparse=True,
        carry=carry,
        add=_add,
        delta=lambda numel: keep(numel) / max(1, -(-numel // block)),
        sized=False,
        block=block,
    )


def _split(flat: Tensor, block: int) -> tuple[Float[Tensor, "blocks block"], Float[Tensor, " rest"]]:
    """The whole blocks as rows, and the rest, where they lie."""
    rows = flat.numel() // block
    return flat[: rows * block].view(rows, block), flat[rows * block :]


def _divide(numbers: Tensor, rows: int) -> tuple[Tensor, bool]:
    """The numbers of whole blocks, and whether the short one is among them."""
    if not numbers.numel() or numbers.device.type == "meta" or int(numbers[-1]) < rows:
        return numbers.long(), False
    return numbers[:-1].long(), True


def _chosen(flat: Tensor, block: int, k: int) -> Tensor:
    """Numbers of the ``k`` blocks of largest norm, rising."""
    dtype = torch.float64 if flat.dtype == torch.float64 else torch.float32
    norms = _norms(flat, block, dtype)
    # What is very large or very small has no square: then in another range.
    if flat.device.type != "meta" and norms.numel() and not SMALL < float(norms.max()) < math.inf:
        finite("block_topk", flat)
        most = flat.abs().max().to(dtype)
        norms = _norms(flat.to(dtype) / torch.where(most > 0, most, 1), block, dtype)
    return largest(norms, k)[0]


def _norms(flat: Tensor, block: int, dtype: torch.dtype) -> Tensor:
    rows, rest = _split(flat, block)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=dtype)
    if not rest.numel():
        return norms
    return torch.cat((norms, torch.linalg.vector_norm(rest, dtype=dtype).reshape(1)))


def _take(flat: Tensor, block: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    rows, rest = _split(flat, block)
    if flat.device.type == "meta":  # as if the short block were not among them
        return numbers, flat.new_empty(min(flat.numel(), numbers.numel() * block))
    inside, last = _divide(numbers, rows.shape[0])
    values = rows.index_select(0, inside).reshape(-1)
    return numbers, torch.cat((values, rest)) if last else values


def _blocks(packet: Packet) -> tuple[int, Tensor, bool, Tensor]:
    """The block's size, the numbers of whole blocks, whether the short one is there, and the values; all checked."""
    numel = promised(packet)[1]
    block = whole(packet, "block", 1, 1 << 62)
    values = need(packet, "values", FLOATS)
    size = min(block, max(1, numel))
    numbers = places_.decode(packet, -(-numel // size), -(-values.numel() // size))
    inside, last = _divide(numbers, numel // size)
    wanted = inside.numel() * size + (numel % size if last else 0)
    if values.numel() != wanted and values.device.type != "meta":
        raise PacketError(f"packet: {values.numel()} values for blocks of {wanted} entries")
    return size, inside, last, values


def _scatter(packet: Packet) -> Float[Tensor, "*shape"]:
    shape, numel = promised(packet)
    block, inside, last, values = _blocks(packet)
    dense = values.new_zeros(numel)
    if values.device.type != "meta":
        _into(dense, block, inside, last, values)
    return dense.reshape(shape)


def _add(packet: Packet, into: Tensor, weight: float) -> None:
    block, inside, last, values = _blocks(packet)
    check_shape(packet, into)
    values = values.to(into)
    _into(into.view(-1), block, inside.to(into.device), last, values if weight == 1.0 else values * weight)


def _into(dense: Tensor, block: int, inside: Tensor, last: bool, values: Tensor) -> None:
    rows, rest = _split(dense, block)
    count = inside.numel() * block
    rows.index_add_(0, inside, values[:count].reshape(-1, block))
    if last:
        rest.add_(values[count:])
