"""Half precision: 16 bits a value, as float16 or bfloat16."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import Compressor, finite, promised, stateless
from laconic.errors import ConfigError, NotANumber, PacketError, unknown
from laconic.packet import CODES, DTYPES, Packet, need

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def half(kind: str = "bf16") -> Compressor:
    """Send 16 bits a value: ``"bf16"`` keeps float32's range, ``"fp16"`` has 3 more bits of precision.

    Wire:   2 bytes an entry.
    Error:  relative 2^-8 (bf16) or 2^-11 (fp16; values under 6e-8 become 0).
    Raises: ConfigError for another kind; NotANumber if a value does not fit fp16's range (65504).
    """
    if kind not in HALVES:
        raise unknown("kind of half", kind, HALVES)
    top = torch.finfo(HALVES[kind]).max

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        values = x.detach().reshape(-1).to(HALVES[kind])
        try:
            finite(f"half({kind!r})", values)
        except NotANumber:
            finite(f"half({kind!r})", x)
            raise NotANumber(
                f"half({kind!r}): a value of {float(x.abs().max()):.3g} is beyond its range, {float(top):.3g}; "
                "half('bf16') has float32's"
            ) from None
        return Packet({"values": values}, {"shape": list(x.shape), "dtype": _code(x)}), state

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        return need(packet, "values", tuple(HALVES.values()), numel).to(original(packet)).reshape(shape)

    return Compressor(stateless, compress, decompress, summable=True, name="half")


def _code(x: Tensor) -> str:
    if x.dtype not in CODES or not x.is_floating_point():
        raise ConfigError(f"only floating-point tensors can be compressed, got {x.dtype}")
    return CODES[x.dtype]


def original(packet: Packet) -> torch.dtype:
    """The floating dtype that a packet's header says its tensor had.

    Raises: PacketError.
    """
    dtype = DTYPES.get(str(packet.header.get("dtype")))
    if dtype is None or not dtype.is_floating_point:
        raise PacketError(f"packet: dtype is {packet.header.get('dtype')!r}, wanted a floating one")
    return dtype
