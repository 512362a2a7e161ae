"""Natural compression: each value at random to one of the two powers of two beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite, whole
from laconic.compress.bits import pack, packed_size, unpack
from laconic.compress.blocks import Form, Pieces, quantiser
from laconic.compress.noise import noise
from laconic.errors import ConfigError, NotANumber
from laconic.packet import Packet, need

# Exponents as in a float's bits: 0 and what is under the first is 0.
RANGES = {9: (0, 254), 8: (18, 145)}
INFINITE = 0x7F800000


def natural(bits: int = 9, seed: int = 0) -> Compressor:
    """Send sign and exponent; the mantissa is rounded away at random, so that the mean is the value.

    9 bits hold every exponent. With 8 there are 7 for the exponent: values under 2^-108 become 0, and beyond 2^18 they
    are refused.

    Wire:   ``bits / 8`` bytes an entry, packed tight: 9 as a byte of exponent and a bit of sign, in two tensors; 8 as
            a sign bit and 7 of exponent in a byte.
    Error:  unbiased, ``E|x - decompressed|^2 <= |x|^2 / 8`` (for values of at least 2^-126, or 2^-107 with 8 bits).
    Law:    powers of two stay what they are.
    Raises: ConfigError for other bits; NotANumber if the tensor holds NaN or infinity, or with 8 bits if a value is
            beyond the range.
    Source: Horvath et al. 2019, arXiv:1905.10988, section 2 and (8 bits) 2.4.
    """
    counts("natural", bits=bits, seed=seed)
    if bits not in RANGES:
        raise ConfigError(f"natural: bits must be 8 or 9, got {bits}")
    first, last = RANGES[bits]

    def refuse(top: int) -> None:
        if top >= INFINITE:
            raise NotANumber("natural: the tensor to send holds NaN or infinity")
        if bits == 8 and top > last << 23:
            raise NotANumber("natural: a value is beyond 2^18, the range of its 8 bits; natural(9) has float32's")

    def pieces_of(codes: Tensor, negative: Tensor) -> Pieces:
        if bits == 9:
            return {"exponents": codes, "signs": pack(negative, 1)}
        return {"codes": codes | (negative << 7)}

    def encode(values: Tensor, key: int | None) -> Pieces:
        assert key is not None
        finite("natural", values)
        raw = values.view(torch.int32)
        size = raw & 0x7FFFFFFF
        if values.numel() and values.device.type != "meta":
            refuse(int(size.max()))
        exponents = (size + ((noise(values, key) >> 9) & 0x7FFFFF)) >> 23
        codes = (exponents.clamp_(max=last) - first).clamp_(min=0).to(torch.uint8)
        return pieces_of(codes, ((raw < 0) & (codes > 0)).to(torch.uint8))

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        assert key is not None
        loops = kernels.loops("blocks")
        codes, signs, top, left = loops.exponents(values, residual, first, last, bits == 8, key)
        refuse(top)
        return {"codes": codes} if bits == 8 else {"exponents": codes, "signs": signs}, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        if whole(packet, "bits", 8, 9) == 8:
            return need(packet, "codes", (torch.uint8,), numel), None, RANGES[8][0]
        signs = need(packet, "signs", (torch.uint8,), packed_size(numel, 1))
        return need(packet, "exponents", (torch.uint8,), numel), signs, RANGES[9][0]

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        codes, signs, lowest = pieces
        negative = codes >> 7 if signs is None else unpack(signs, 1, numel)
        codes = (codes & 127 if signs is None else codes).int()
        exponents = torch.where(codes > 0, codes + lowest, 0)
        return ((exponents << 23) | (negative.int() << 31)).view(torch.float32)

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        codes, signs, lowest = pieces
        kernels.loops("blocks").exponents_back(codes, signs, lowest, out, weight)

    form = Form(encode, read, decode, fast_encode, fast_decode)
    return quantiser("natural", form, seed, {"bits": bits}, omega=lambda numel: 1 / 8)
