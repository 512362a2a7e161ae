"""Top-k sparsification: send the entries of largest magnitude, with their places."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress import places as places_
from laconic.compress.base import FLOATS, Compressor, finite, promised, share, stateless
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet, need

MOST = (1 << 31) - 1  # places are int32

Picked = tuple[Tensor, Tensor]


def topk(density: float = 0.01) -> Compressor:
    """Keep the ``k = ceil(density * numel)`` entries of largest magnitude; of equal ones, the first.

    Wire:   k values in the tensor's dtype, and their places in about ``log2(1/density) + 1.5`` bits each
            (:mod:`laconic.compress.places`): 5 bytes an entry at 1 % of float32.
    Error:  ``|x - decompress(compress(x))|^2 <= (1 - k/numel) |x|^2``. Biased, so wrap it in
            :func:`error_feedback`; without it SGD may not converge.
    Raises: ConfigError unless ``0 < density <= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: Stich et al. 2018, arXiv:1809.07599, section 2 (k-contraction). The guess from a sample: Lin et al. 2018,
            arXiv:1712.01887 (hierarchical selection).
    """
    share("topk", density)

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        flat = x.detach().reshape(-1)
        places, values = largest(flat, _count(density, flat.numel()))
        return sparse_packet(places, values, x), state

    def carry(x: Tensor, residual: Tensor, state: tuple) -> tuple[Packet, Tensor, tuple]:
        flat, kept = x.detach().reshape(-1), residual.reshape(-1)
        k = _count(density, flat.numel())
        loops = kernels.loops("select", flat, kept)
        if loops is None or not k:
            wanted = flat + kept
            places, values = largest(wanted, k)
            left = wanted.index_fill(0, places.long(), 0)
        else:
            places, values, left = loops.pick(flat, kept, k)
            finite("topk", values)
        return sparse_packet(places, values, x), left.reshape(x.shape), state

    return Compressor(
        stateless,
        compress,
        scatter,
        name="topk",
        refines="values",
        sparse=True,
        carry=carry,
        add=add,
        delta=lambda numel: _count(density, numel) / max(1, numel),
        sized=False,
    )


def _count(density: float, numel: int) -> int:
    if numel > MOST:
        raise ConfigError(f"topk: a tensor of {numel} entries; places are 31 bits, so split it into parts")
    return math.ceil(density * numel)


def sparse_packet(places: Tensor, values: Tensor, x: Tensor) -> Packet:
    """The packet of the entries of ``x`` at rising ``places``."""
    data, low = places_.encode(places, x.numel())
    return Packet({"values": values, "places": data}, {"shape": list(x.shape), "low": low})


def entries(packet: Packet) -> Picked:
    """The places and values of a sparse packet, checked.

    Raises: PacketError.
    """
    numel = promised(packet)[1]
    values = need(packet, "values", FLOATS)
    return places_.decode(packet, numel, values.numel()), values


def scatter(packet: Packet) -> Float[Tensor, "*shape"]:
    """A dense tensor from a packet of values and places, zero elsewhere."""
    shape, numel = promised(packet)
    places, values = entries(packet)
    if values.dtype == torch.float32 and values.device.type == "cpu":
        dense = kernels.zeros((numel,), values.dtype, values.device)
        _add_at(dense, places, values, 1.0)
    else:
        dense = values.new_zeros(numel).scatter_(0, places.long(), values)
    return dense.reshape(shape)


def add(packet: Packet, into: Tensor, weight: float) -> None:
    """Add ``weight`` times a sparse packet's entries to a tensor of its shape; what was not sent is not touched."""
    places, values = entries(packet)
    if promised(packet)[0] != tuple(into.shape):
        raise PacketError(f"packet: it promises shape {promised(packet)[0]}, the tensor here has {tuple(into.shape)}")
    flat = into.view(-1)
    _add_at(flat, places.to(into.device), values.to(into), weight)


def _add_at(flat: Tensor, places: Tensor, values: Tensor, weight: float) -> None:
    loops = kernels.loops("select", flat, values)
    if loops is None:
        flat.index_add_(0, places.long(), values if weight == 1.0 else values * weight)
    else:
        loops.add_at(flat, places, values, weight)


def largest(flat: Float[Tensor, " n"], k: int) -> Picked:
    """Places (rising) and values of the ``k`` largest magnitudes; exact, the first of equal ones.

    Raises: NotANumber if there is NaN or infinity.
    """
    single = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    loops = kernels.loops("select", single)
    if flat.device.type == "meta":
        return flat.new_empty(k, dtype=torch.int32), flat.new_empty(k)
    if loops is None or not k:
        finite("topk", flat)
        places = _first_largest(flat.abs(), k)
    else:
        places, values, _ = loops.pick(single, None, k)
        finite("topk", values)  # these are larger than all others
    return places.int(), flat[places]


def _first_largest(magnitudes: Tensor, k: int) -> Tensor:
    """Places of the ``k`` largest, rising; of equal ones the first."""
    if not k:
        return magnitudes.new_empty(0, dtype=torch.int64)
    limit = magnitudes.topk(k).values[-1]
    above = (magnitudes > limit).nonzero().squeeze(1)
    ties = (magnitudes == limit).nonzero().squeeze(1)[: k - above.numel()]
    return torch.cat((above, ties)).sort().values
