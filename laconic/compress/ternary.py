"""TernGrad: each value at random to -1, 0 or 1 times one scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from laconic import kernels
from laconic.compress.base import Compressor, counts, finite
from laconic.compress.blocks import Form, Pieces, halved, in_blocks, quantiser, reciprocal
from laconic.compress.noise import uniform
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet, need

CHUNK = 1024  # values whose squares are summed up by halves, before their sums are: the same order as in loops
PLACES = (1, 3, 9, 27, 81)  # of the five digits of a byte


def ternary(clip: float | None = 2.5, seed: int = 0) -> Compressor:
    """Send -1, 0 or 1 times the largest magnitude, at random so that the mean is the value.

    ``clip``: values beyond so many standard deviations (about zero, so that a tensor of equal values is not clipped
    away) are cut off first, which makes the scale and with it the variance smaller; ``None``: nothing is.

    Wire:   1/5 byte an entry (five digits of base 3 a byte, the first lowest) and 4 bytes a tensor.
    Error:  unbiased for the clipped tensor. Without clipping ``E|decompressed|^2 = |x|_inf |x|_1``, so that ``omega =
            (sqrt(numel) - 1) / 2``; with it ``E|x - decompressed|^2 <= (clip + 1) |x|^2``, about 1.0 of the square on
            Gaussian values at 2.5.
    Raises: ConfigError unless ``clip`` is positive or None; NotANumber if the tensor holds NaN or infinity.
    Source: Wen et al. 2017, arXiv:1705.07878, sections 3.1 and 3.3 (layer-wise scales and clipping).
    """
    counts("ternary", seed=seed)
    if clip is not None and not 0 < clip < math.inf:
        raise ConfigError(f"ternary: clip must be positive, or none, got {clip}")

    def scale_of(top: Tensor, sums: Tensor | None, numel: int) -> Tensor:
        """The scale, of the largest magnitude and the sums of squares of chunks."""
        finite("ternary", top)
        if clip is None or sums is None:
            return top
        spread = (halved(sums[None])[: top.numel()] / max(1, numel)).sqrt()
        return torch.minimum(top.double(), spread * clip).float()

    def encode(values: Tensor, key: int | None) -> Pieces:
        assert key is not None
        top = values.abs().amax().reshape(1) if values.numel() else values.new_zeros(0)
        sums = None if clip is None else halved(in_blocks(values, CHUNK).double().square())
        scale = scale_of(top, sums, values.numel())
        if not values.numel():
            return {"trits": values.to(torch.uint8), "scale": scale}
        inside = values.clamp(-scale, scale) * reciprocal(scale)
        digits = inside.add_(uniform(inside, key)).floor_().clamp_(-1, 1).add_(1).to(torch.uint8)
        rows = pad(digits, (0, -digits.numel() % 5)).reshape(-1, 5)
        packed = (rows * torch.tensor(PLACES, dtype=torch.uint8, device=rows.device)).sum(dim=1, dtype=torch.uint8)
        return {"trits": packed, "scale": scale}

    def fast_encode(values: Tensor, residual: Tensor | None, key: int | None) -> tuple[Pieces, Tensor | None]:
        loops = kernels.loops("blocks")
        bits, sums, left = loops.amounts(values, residual, clip is not None)
        scale = scale_of(torch.tensor([bits], dtype=torch.int32).view(torch.float32), sums, values.numel())
        packed = loops.trits(values if left is None else left, float(scale), key, left is not None)
        return {"trits": packed, "scale": scale}, left

    def read(packet: Packet, numel: int) -> tuple[Any, ...]:
        packed = need(packet, "trits", (torch.uint8,), -(-numel // 5))
        if numel and packed.device.type != "meta" and int(packed.max()) >= 243:
            raise PacketError(f"packet: {int(packed.max())} is no five digits of base 3, which end at 242")
        return packed, need(packet, "scale", (torch.float32,), min(1, numel))

    def decode(pieces: tuple[Any, ...], numel: int) -> Tensor:
        packed, scale = pieces
        places = torch.tensor(PLACES, dtype=torch.uint8, device=packed.device)
        digits = (packed[:, None] // places % 3).reshape(-1)[:numel]
        return (digits.float() - 1) * scale if numel else digits.float()

    def fast_decode(pieces: tuple[Any, ...], out: Tensor, weight: float | None) -> None:
        packed, scale = pieces
        kernels.loops("blocks").trits_back(packed, float(scale), out, weight)

    form = Form(encode, read, decode, fast_encode, fast_decode)
    laws: dict[str, Any] = {"omega": lambda numel: (math.sqrt(max(1, numel)) - 1) / 2}
    if clip is not None:
        laws = {"no_feedback": "(clipped) may miss by more than it was given (clip=None goes with damped and feedback)"}
    return quantiser("ternary", form, seed, None, **laws)
