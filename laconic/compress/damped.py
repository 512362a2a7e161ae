"""Damping: an unbiased compressor made contractive, so that feedback around it is sound."""

from __future__ import annotations

from torch import Tensor

from laconic.compress.base import Compressor, accumulate
from laconic.compress.random_k import random_k
from laconic.errors import ClashError, PacketError
from laconic.packet import Packet


def damped(compressor: Compressor | None = None) -> Compressor:
    """Divide what an unbiased compressor decompresses to by ``1 + omega``.

    Wire:   the compressor's, and the divisor's inverse in the header: the receiver needs no setting of the sender's.
    Error:  ``E|x - decompress(compress(x))|^2 <= (1 - delta) |x|^2`` with ``delta = 1 / (1 + omega(numel))``. Biased,
            so wrap it in a feedback.
    Raises: ClashError for a compressor that is not known to be unbiased.
    Source: Richtárik et al. 2021, arXiv:2106.05203, section 1 (scaled unbiased compressors are contractive).
    """
    inner = compressor if compressor is not None else random_k(scaled=True)
    omega = inner.omega
    if omega is None:
        raise ClashError(
            f"damped: {inner.name} is not known to be unbiased; wrap random_k(scaled=True), or a quantiser that states "
            "its omega"
        )

    def keep(numel: int) -> float:
        return 1 / (1 + omega(numel))

    def compress(x: Tensor, state: object) -> tuple[Packet, object]:
        packet, after = inner.compress(x, state)
        return Packet(packet.tensors, packet.header | {"damped": keep(x.numel())}), after

    def decompress(packet: Packet) -> Tensor:
        return inner.decompress(packet) * _factor(packet)

    def add(packet: Packet, into: Tensor, weight: float) -> None:
        accumulate(inner, packet, into, weight * _factor(packet))

    return inner._replace(
        compress=compress,
        decompress=decompress,
        name=f"damped({inner.name})",
        no_feedback="",
        carry=None,
        add=add,
        delta=keep,
        omega=None,
    )


def _factor(packet: Packet) -> float:
    value = packet.header.get("damped")
    if type(value) is not float or not 0 < value <= 1:
        raise PacketError(f"packet: damped is {value!r}, wanted a number in (0, 1]")
    return value
