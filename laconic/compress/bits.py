"""Codes of a few bits, packed tight: eight of ``bits`` bits lie in ``bits`` bytes, the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def packed_size(numel: int, bits: int) -> int:
    """Bytes of ``numel`` codes."""
    return -(-numel * bits // 8)


def steps(bits: int) -> list[tuple[int, int, int]]:
    """How eight codes move together in a 64-bit word, first by pairs: ``(mask, width, shift)``.

    The mask covers the first of each two fields of ``width`` bits; the second lies ``shift`` higher than it will.
    """
    found = []
    for count in (1, 2, 4):  # codes in a field
        width, every = bits * count, 16 * count
        found.append((sum(((1 << width) - 1) << at for at in range(0, 64, every)), width, 8 * count - width))
    return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Flat ``uint8`` codes, each under ``2**bits``, as ``packed_size`` bytes; unused bits are 0."""
    count = codes.numel()
    if bits == 8 or not count:
        return codes
    word = pad(codes, (0, -count % 8)).view(torch.int64)
    for mask, width, shift in steps(bits):
        word = (word & mask) | ((word >> shift) & (mask << width))
    return word.view(torch.uint8).reshape(-1, 8)[:, :bits].reshape(-1)[: packed_size(count, bits)]


def unpack(packed: Tensor, bits: int, numel: int) -> Tensor:
    """The ``numel`` codes that :func:`pack` made ``packed`` of."""
    if bits == 8 or not numel:
        return packed
    rows = pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    word = pad(rows, (0, 8 - bits)).reshape(-1).view(torch.int64)
    for mask, width, shift in reversed(steps(bits)):
        word = (word & mask) | ((word & (mask << width)) << shift)
    return word.view(torch.uint8)[:numel]
