"""The largest entries of each row of a matrix, and their places within the row in a fixed number of bits."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from laconic import kernels
from laconic.compress.base import finite
from laconic.compress.places import pack_bits, unpack_bits
from laconic.errors import PacketError
from laconic.packet import Packet, need


def largest_in_rows(what: str, rows: Float[Tensor, "r c"], keep: int) -> tuple[Tensor, Tensor]:
    """Places within the row (r x keep, rising) and values of the ``keep`` largest magnitudes of each row.

    Of equal ones, the first.

    Raises: NotANumber, naming ``what``, if there is NaN or infinity.
    """
    shape = (rows.shape[0], keep)
    if rows.device.type == "meta" or not rows.numel():
        return rows.new_empty(shape, dtype=torch.int32), rows.new_empty(shape)
    single = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    loops = kernels.loops("rows", single)
    if loops is None:
        finite(what, rows)
        places = _first_largest(single.abs(), keep)
    else:
        places, values = loops.pick(single.reshape(-1), None, None, rows.shape[1], keep)
        finite(what, values)  # these are larger than all others
        places = places.reshape(shape)
    return places.int(), rows.gather(1, places.long())


def _first_largest(magnitudes: Tensor, keep: int) -> Tensor:
    limit = magnitudes.topk(keep, dim=1).values[:, -1:]
    above, equal = magnitudes > limit, magnitudes == limit
    chosen = above | (equal & (equal.cumsum(1) <= keep - above.sum(1, keepdim=True)))
    return chosen.nonzero()[:, 1].reshape(-1, keep)


def bits_of(size: int, keep: int) -> int:
    """Bits of a place in a row of ``size`` entries; none where all are kept."""
    return 0 if keep >= size else (size - 1).bit_length()


def pack(numbers: Int[Tensor, " k"], width: int) -> UInt8[Tensor, " bytes"]:
    """Numbers under ``2**width``, in ``width`` bits each, the lowest bit of a byte first."""
    nbytes = -(-numbers.numel() * width // 8)
    if numbers.device.type == "meta" or not nbytes:
        return numbers.new_empty(nbytes, dtype=torch.uint8)
    loops = kernels.loops("rows") if numbers.device.type == "cpu" else None
    if loops is None:
        steps = torch.arange(width, device=numbers.device)
        return pack_bits(((numbers.long()[:, None] >> steps) & 1).reshape(-1).to(torch.uint8))
    data = torch.empty(nbytes, dtype=torch.uint8)
    loops.pack(numbers.int().numpy(), width, data.numpy())
    return data


def unpack(packet: Packet, name: str, width: int, count: int) -> Int[Tensor, " k"]:
    """The ``count`` numbers that :func:`pack` wrote into the packet's tensor ``name``; int32.

    Raises: PacketError.
    """
    data = need(packet, name, (torch.uint8,), -(-count * width // 8))
    if data.device.type == "meta" or not width:
        return data.new_zeros(count, dtype=torch.int32)
    loops = kernels.loops("rows") if data.device.type == "cpu" else None
    if loops is None:
        bits = unpack_bits(data)[: count * width].reshape(count, width).int()
        return (bits << torch.arange(width, device=data.device)).sum(1, dtype=torch.int32)
    numbers = torch.empty(count, dtype=torch.int32)
    loops.unpack(data.contiguous().numpy(), width, numbers.numpy())
    return numbers


def places_in_rows(packed: Int[Tensor, " k"], rows: int, size: int, keep: int) -> Int[Tensor, "r keep"]:
    """Places as a matrix, checked to rise within each row of ``size`` entries.

    Raises: PacketError.
    """
    if keep >= size:
        return torch.arange(size, device=packed.device).expand(rows, size)
    places = packed.reshape(rows, keep).long()
    if packed.device.type != "meta" and places.numel():
        if bool((places[:, -1] >= size).any()):
            raise PacketError(f"packet: a place is outside its row of {size} entries")
        if bool((places[:, 1:] <= places[:, :-1]).any()):
            raise PacketError("packet: the places in a row do not rise")
    return places
