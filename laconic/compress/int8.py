"""Blockwise int8: eight bits a value and one scale a block."""

from __future__ import annotations

from laconic.compress.base import Compressor, counts
from laconic.compress.blocks import checked_block, linear, linear_laws, quantiser

LEVELS = 127  # symmetric: -128 is never used


def int8(block: int = 256, stochastic: bool = True, seed: int = 0) -> Compressor:
    """Round to 255 levels, with one float32 scale for every ``block`` consecutive values.

    Wire:   1 + 4/block bytes an entry.
    Error:  under one level, ``max|block| / 127``, and unbiased if ``stochastic``, with ``|x - decompressed|^2`` at most
            ``block / (4 127^2) |x|^2`` on average; half a level if not, and then that bound holds always.
    Raises: ConfigError unless ``block >= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: the block-wise form of Dettmers et al. 2022, arXiv:2110.02861, with linear levels; QSGD's rounding
            (Alistarh et al. 2017, arXiv:1610.02132).
    """
    counts("int8", block=block, seed=seed)
    form = linear("int8", checked_block("int8", block), LEVELS, 8)
    laws = linear_laws(block, LEVELS, stochastic)
    return quantiser("int8", form, seed if stochastic else None, {"block": block}, **laws)
