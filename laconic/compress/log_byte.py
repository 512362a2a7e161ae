"""A sign and a logarithm in one byte: for a few numbers of any size, such as the projected gradients of one_byte."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, finite, promised, stateless
from laconic.compress.half import original
from laconic.errors import ConfigError
from laconic.packet import CODES, Packet, need

STEPS = 8  # codes to a factor of e
MOST = 63  # the largest logarithm, in steps
ZERO, MISSING = 0, 128  # the code under the smallest logarithm: with a plus nothing, with a minus no number


def log_byte(missing: bool = False) -> Compressor:
    """Send each value's sign and ``round(8 ln|x|)`` in [-63, 63]: values of 3.8e-4 to 2630 in 8 bits.

    What is larger goes as 2630, what is under half of 3.8e-4 as 0. With ``missing`` NaN and infinity have a code of
    their own, which the receiver reads as NaN; without, they are refused.

    Wire:   1 byte an entry: bit 7 the sign, the others the logarithm and 64; 0 is zero, 128 is no number.
    Error:  relative, at most ``e^(1/16) - 1 = 6.4 %`` of the value from 3.6e-4 to 2800; under that absolute, 1.9e-4.
    Raises: NotANumber if the tensor holds NaN or infinity, unless ``missing``.
    Source: Zelikman et al. 2023, arXiv:2306.10015. Its released code has 16 steps to a factor of e, which with the
            sign are 9 bits; half as many make a byte.
    """

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        if x.dtype not in FLOATS:
            raise ConfigError(f"only floating-point tensors can be compressed, got {x.dtype}")
        if not missing:
            finite("log_byte", x)
        flat = x.detach().reshape(-1).double()
        logs = torch.round(STEPS * flat.abs().log())
        logs = torch.where(logs.isfinite(), logs, -MOST - 1).clamp_(-MOST, MOST)  # of 0 it is minus infinity
        codes = (logs + (MOST + 1)).to(torch.uint8)
        codes = torch.where(flat.abs() < 0.5 * math.exp(-MOST / STEPS), ZERO, codes + 128 * (flat < 0).to(torch.uint8))
        codes = torch.where(flat.isfinite(), codes, MISSING).to(torch.uint8)
        return Packet({"codes": codes}, {"shape": list(x.shape), "dtype": CODES[x.dtype]}), state

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        codes = need(packet, "codes", (torch.uint8,), numel)
        values = _values(_table().to(codes.device), codes)
        return values.to(original(packet)).reshape(shape)

    return Compressor(stateless, compress, decompress, name="log_byte")


def _values(table: Tensor, codes: Tensor) -> Tensor:
    return table.index_select(0, codes.int())


@cache
def _table() -> Tensor:
    """What each code stands for. A table, since ``exp`` is not the same to the last bit on every machine."""
    values = [math.exp((code - MOST - 1) / STEPS) for code in range(128)]
    values[ZERO] = 0.0
    table = torch.tensor([*values, *(-v for v in values)], dtype=torch.float32)
    table[MISSING] = math.nan
    return table
