"""Blockwise int8: eight bits a value and one scale a block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from laconic.compress.base import Compressor, finite, noise_key, promised, whole
from laconic.compress.half import _code, original
from laconic.errors import ConfigError
from laconic.packet import Packet, need
from laconic.state import checkpointed

LEVELS = 127  # symmetric: -128 is never used


@checkpointed
class RoundingState(NamedTuple):
    """The position in the stream of random roundings."""

    step: int


def int8(block: int = 256, stochastic: bool = True, seed: int = 0) -> Compressor:
    """Round to 255 levels, with one float32 scale for every ``block`` consecutive values.

    Wire:   1 + 4/block bytes an entry.
    Error:  under one level, ``max|block| / 127``, and unbiased if ``stochastic``; half a level if not.
    Raises: ConfigError unless ``block >= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: the block-wise form of Dettmers et al. 2022, arXiv:2110.02861, with linear levels; QSGD's rounding
            (Alistarh et al. 2017, arXiv:1610.02132).
    """
    if block < 1:
        raise ConfigError(f"int8: block must be at least 1, got {block}")

    def init(like: Tensor) -> RoundingState:
        return RoundingState(0)

    def compress(x: Float[Tensor, "*shape"], state: RoundingState) -> tuple[Packet, RoundingState]:
        blocks = in_blocks(x, block)
        scales = blocks.abs().amax(dim=1) / LEVELS
        finite("int8", scales)
        levels = blocks * reciprocal(scales)[:, None]
        if stochastic:
            levels = levels.add_(uniform(levels, noise_key(x, seed, state.step))).floor_()
        else:
            levels = levels.round_()
        codes = levels.clamp_(-LEVELS, LEVELS).to(torch.int8).reshape(-1)[: x.numel()]
        header = {"shape": list(x.shape), "dtype": _code(x), "block": block}
        return Packet({"codes": codes, "scales": scales}, header), RoundingState(state.step + 1)

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        size = min(whole(packet, "block", 1, 1 << 31), max(1, numel))  # a large block must not ask for more memory
        codes = need(packet, "codes", (torch.int8,), numel)
        scales = need(packet, "scales", (torch.float32,), -(-numel // size))
        values = in_blocks(codes, size) * scales[:, None]
        return values.reshape(-1)[:numel].to(original(packet)).reshape(shape)

    return Compressor(init, compress, decompress, name="int8", block=block)


def in_blocks(x: Tensor, block: int) -> Float[Tensor, "blocks block"]:
    """``x`` flat, as float32, in rows of ``block`` values, the last padded with zeros; it may be ``x``'s memory."""
    flat = x.detach().reshape(-1)
    missing = -flat.numel() % block
    flat = pad(flat.float(), (0, missing)) if missing else flat.float()
    return flat.reshape(-1, block)


def reciprocal(scales: Tensor) -> Tensor:
    """``1 / scales``, and 0 where the scale is 0 or so small that its reciprocal would be infinite."""
    return torch.where(scales >= torch.finfo(torch.float32).tiny, 1 / scales, 0)


def uniform(like: Tensor, key: int) -> Tensor:
    """Uniform numbers in [0, 1) in the shape of ``like``, a pure function of ``key``."""
    if like.device.type == "meta":
        return torch.empty_like(like)
    generator = torch.Generator(device=like.device).manual_seed(key)
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
