"""No compression: the tensor as it is. The lower end of every ladder."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, promised, stateless
from laconic.packet import Packet, need


def identity() -> Compressor:
    """Send the tensor as it is.

    Wire:   its bytes, in its dtype.
    Error:  none.
    """

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        return Packet({"values": x.detach().reshape(-1)}, {"shape": list(x.shape)}), state

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        return need(packet, "values", FLOATS, numel).reshape(shape)

    return Compressor(stateless, compress, decompress, summable=True, name="identity", refines="values")
