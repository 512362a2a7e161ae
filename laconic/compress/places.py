"""Places of the entries that were kept, in the fewest bytes: Rice codes of the gaps, or a bitmap where that is shorter.

A gap g between neighbours is ``g >> low`` in unary (that many zeros, then a one) and ``low`` plain bits. All unary
parts come first, padded to whole bytes; then all plain bits. Bits fill a byte from its lowest. With ``low`` fitted to
the density this is within 0.12 bits an entry of the entropy of random places.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from laconic import kernels
from laconic.errors import PacketError
from laconic.packet import Packet, need

BITMAP = -1
MOST = 31  # bits of a plain part


def low_bits(numel: int, k: int) -> int:
    """Plain bits of a gap, fitted to ``k`` of ``numel`` random places; ``BITMAP`` where one bit an entry is fewer.

    Source: Golomb 1966; Rice & Plaunt 1971; the optimum for geometric gaps: Kiely 2004.
    """
    if not 0 < k < numel:
        return 0
    density = k / numel
    low = max(0, 1 + math.floor(math.log2(math.log((math.sqrt(5) - 1) / 2) / math.log1p(-density))))
    return BITMAP if numel <= k * expected_bits(density, low) else min(low, MOST)


def expected_bits(density: float, low: int) -> float:
    """Bits an entry that Rice codes with ``low`` plain bits take for random places."""
    zeros = (1 - density) ** (1 << low)
    return low + 1 + zeros / (1 - zeros)


def encode(places: Int[Tensor, " k"], numel: int) -> tuple[UInt8[Tensor, " bytes"], int]:
    """Rising ``places`` under ``numel`` as bytes, and the number of plain bits to read them with.

    On ``meta`` tensors: as many bytes as random places take.
    """
    k = places.numel()
    low = low_bits(numel, k)
    if places.device.type == "meta":
        nbytes = -(-numel // 8) if low == BITMAP else (math.ceil(k * expected_bits(k / numel, low) / 8) if k else 0)
        return places.new_empty(nbytes, dtype=torch.uint8), low
    if low == BITMAP:
        bits = torch.zeros(-(-numel // 8) * 8, dtype=torch.uint8, device=places.device)
        bits[places.long()] = 1
        return pack_bits(bits), low
    loops = kernels.loops("rice") if places.device.type == "cpu" else None
    if loops is not None and k:
        return loops.encode(places, low), low
    gaps = places.long().diff(prepend=places.new_full((1,), -1, dtype=torch.int64)) - 1
    ends = (gaps >> low).add_(1).cumsum(0) - 1
    unary = torch.zeros(-(-(int(ends[-1]) + 1) // 8) * 8 if k else 0, dtype=torch.uint8, device=places.device)
    unary[ends] = 1
    plain = ((gaps[:, None] >> torch.arange(low, device=gaps.device)) & 1).reshape(-1).to(torch.uint8)
    return torch.cat((pack_bits(unary), pack_bits(plain))), low


def decode(packet: Packet, numel: int, k: int) -> Int[Tensor, " k"]:
    """The ``k`` places that a packet's ``places`` spell: rising, different, under ``numel``; int32.

    Raises: PacketError for bytes that :func:`encode` does not write for ``k`` places under ``numel``.
    """
    data = need(packet, "places", (torch.uint8,))
    low = packet.header.get("low")
    if type(low) is not int or not BITMAP <= low <= MOST or k > numel:
        raise PacketError(f"packet: {k} places of {numel} with low={low!r}, wanted a number of bits in [-1, {MOST}]")
    if data.device.type == "meta":
        return data.new_empty(k, dtype=torch.int32)
    if low == BITMAP:
        if data.numel() != -(-numel // 8):
            raise PacketError(f"packet: a bitmap of {data.numel()} bytes for {numel} entries")
        found = unpack_bits(data).nonzero().squeeze(1)
        if found.numel() != k or (k and int(found[-1]) >= numel):
            raise PacketError(f"packet: a bitmap of {numel} entries with {found.numel()} set, wanted {k}")
        return found.int()
    second = -(-k * low // 8)
    first = data.numel() - second
    if first < 0 or (k == 0 and first):
        raise PacketError(f"packet: {data.numel()} bytes are no {k} places with {low} plain bits each")
    loops = kernels.loops("rice") if data.device.type == "cpu" else None
    if loops is not None:
        places = loops.decode(data, low, numel, k)
        if isinstance(places, int) and places == loops.UNFINISHED:
            raise PacketError(f"packet: its codes do not end after {k} places")
        if isinstance(places, int):
            raise PacketError(f"packet: a place is outside the tensor's {numel} entries")
        return places
    ends = unpack_bits(data[:first]).nonzero().squeeze(1)
    if ends.numel() != k:
        raise PacketError(f"packet: its codes do not end after {k} places")
    zeros = ends.diff(prepend=ends.new_full((1,), -1)) - 1
    plain = unpack_bits(data[first:])[: k * low].reshape(k, low).long()
    gaps = (zeros << low) + (plain << torch.arange(low, device=data.device)).sum(1)
    found = (gaps + 1).cumsum(0) - 1
    if k and int(found[-1]) >= numel:
        raise PacketError(f"packet: a place is outside the tensor's {numel} entries")
    return found.int()


def pack_bits(bits: UInt8[Tensor, " n"]) -> UInt8[Tensor, " bytes"]:
    """Zeros and ones as bytes, the lowest bit first, the last byte filled up with zeros."""
    missing = -bits.numel() % 8
    if missing:
        bits = torch.cat((bits, bits.new_zeros(missing)))
    return (bits.reshape(-1, 8) << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(data: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, " n"]:
    """The bits of bytes, the lowest first."""
    return ((data[:, None] >> torch.arange(8, dtype=torch.uint8, device=data.device)) & 1).reshape(-1)
