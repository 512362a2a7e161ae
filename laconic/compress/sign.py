"""Signs: one bit a value, and one magnitude for all of them or for each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite, whole
from laconic.compress.bits import pack, packed_size, unpack
from laconic.compress.blocks import Form, Pieces, checked_block, fitting, halved, in_blocks, quantiser, scaled_by
from laconic.errors import unknown
from laconic.packet import Packet, need

SCALES = ("l1", "l2", "none")
CHUNK = 1024  # values that are summed up by halves, before their sums are: the same order in torch and in loops


def sign(scale: str = "l1", block: int = 0) -> Compressor:
    """Send the sign of each value (of zero +1), and one magnitude for each ``block``, or for the whole tensor (0).

    The magnitude is the mean one (``"l1"``: the least error), the root of the mean square (``"l2"``, as 1-bit Adam
    has it), or 1 (``"none"``: plain signSGD, where zeros become 1 as well).

    Wire:   1/8 byte an entry, and 4 bytes a block.
    Error:  ``"l1"``: ``|x - decompressed|^2 = |x|^2 - |x|_1^2 / numel``: 0.363 of the square on Gaussian values, and at
            worst ``1 - 1/numel`` of it (``delta``). ``"l2"``: 0.404 on Gaussian values, and up to twice the square at
            worst. Biased, so wrap it in error_feedback.
    Raises: ConfigError for another scale, or unless ``block`` is a multiple of 8; NotANumber if the tensor holds NaN
            or infinity.
    Source: Bernstein et al. 2018, arXiv:1802.04434 (signSGD); Karimireddy et al. 2019, arXiv:1901.09847 (the scaled
            sign); Tang et al. 2021, arXiv:2102.02888 (1-bit Adam's scale).
    """
    counts("sign", block=block)
    if scale not in SCALES:
        raise unknown("scale of sign", scale, SCALES)
    if block:
        checked_block("sign", block, 8)

    def size(numel: int) -> int:
        return fitting(block or max(1, numel), numel)

    def amounts(values: Tensor, chunk: int) -> Tensor:
        rows = in_blocks(values, chunk).double()
        return halved(rows.square() if scale == "l2" else rows.abs())

    def scales_of(sums: Tensor, numel: int) -> Pieces:
        """The scales, of the sums of blocks, or of chunks if all are one block."""
        if not block:
            sums = halved(sums[None])[: min(1, numel)]
        finite("sign", sums)
        if scale == "none":
            return {}
        counts = torch.full_like(sums, size(numel))
        if numel:
            counts[-1] = numel - (sums.numel() - 1) * size(numel)
        mean = sums / counts
        # A float32's largest at most, so that rounding does not make infinity of it.
        return {"scales": (mean.sqrt() if scale == "l2" else mean).clamp(max=torch.finfo(torch.float32).max).float()}

    def encode(values: Tensor, key: int | None) -> Pieces:
        sums = amounts(values, size(values.numel()) if block else CHUNK)
        return {"bits": pack((values >= 0).to(torch.uint8), 1)} | scales_of(sums, values.numel())

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        loops, numel = kernels.loops("blocks"), values.numel()
        bits, sums, left = loops.signs(values, residual, size(numel) if block else CHUNK, scale == "l2")
        pieces = {"bits": bits} | scales_of(sums, numel)
        if left is not None:
            loops.less_signs(left, pieces.get("scales", torch.ones(1)), size(numel) if scale != "none" else numel)
        return pieces, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        bits = need(packet, "bits", (torch.uint8,), packed_size(numel, 1))
        if "scales" not in packet.tensors:
            return bits, torch.ones(min(1, numel), device=bits.device), max(1, numel)
        told = fitting(whole(packet, "block", 0, 1 << 31) or max(1, numel), numel)
        return bits, need(packet, "scales", (torch.float32,), -(-numel // told)), told

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        bits, scales, told = pieces
        signs = unpack(bits, 1, numel)
        return scaled_by((signs.float() * 2 - 1), scales, told)

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        bits, scales, told = pieces
        kernels.loops("blocks").signs_back(bits, scales, told, out, weight)

    form = Form(encode, read, decode, fast_encode, fast_decode)
    laws: dict[str, Any] = {}
    if scale == "l1":
        laws["delta"] = lambda numel: 1 / size(numel)
    if scale == "none":
        laws["no_feedback"] = "sends ones, whatever the size of what it was given"
    return quantiser("sign", form, None, {"block": block}, **laws)
