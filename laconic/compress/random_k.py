"""Random-k: send the same randomly chosen entries from every worker, so that no places are sent."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, finite, promised, share, whole
from laconic.errors import PacketError
from laconic.packet import Packet, need
from laconic.state import checkpointed


@checkpointed
class RandomKState(NamedTuple):
    """How many tensors have been sent: the choice of entries is a function of the seed and this."""

    step: int


def random_k(density: float = 0.01, scaled: bool = False, seed: int = 0) -> Compressor:
    """Keep ``k = ceil(density * numel)`` entries that the shared ``seed`` and the step choose.

    Every worker chooses the same, so packets are summable and carry no places. The entries are an arithmetic
    sequence modulo numel with a random start and stride: each is chosen with probability k/numel.

    Wire:   k values in the tensor's dtype.
    Error:  ``E|x - decompress(compress(x))|^2 = (1 - k/numel) |x|^2``; biased, so wrap it in :func:`error_feedback`.
            ``scaled`` multiplies by numel/k instead: unbiased, to be used without feedback.
    Raises: ConfigError unless ``0 < density <= 1``; NotANumber if the tensor holds NaN or infinity.
    Source: Stich et al. 2018, arXiv:1809.07599; Wangni et al. 2018, arXiv:1710.09854.
    """
    share("random_k", density)

    def init(like: Tensor) -> RandomKState:
        return RandomKState(0)

    def compress(x: Float[Tensor, "*shape"], state: RandomKState) -> tuple[Packet, RandomKState]:
        flat = x.detach().reshape(-1)
        finite("random_k", flat)
        k = math.ceil(density * flat.numel())
        values = flat[chosen(flat.numel(), k, seed, state.step, flat.device)]
        if scaled and k:
            values = values * (flat.numel() / k)
        header = {"shape": list(x.shape), "seed": seed, "step": state.step}
        return Packet({"values": values}, header), RandomKState(state.step + 1)

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        values = need(packet, "values", FLOATS)
        k = values.numel()
        if k > numel:
            raise PacketError(f"packet: {k} values for a tensor of {numel} entries")
        step = whole(packet, "step", 0, 1 << 62)
        places = chosen(numel, k, whole(packet, "seed", -(1 << 62), 1 << 62), step, values.device)
        return values.new_zeros(numel).scatter_(0, places, values).reshape(shape)

    return Compressor(
        init,
        compress,
        decompress,
        summable=True,
        name="random_k",
        refines="values",
        sparse=True,
        no_feedback="(scaled) sends more than it was given" if scaled else "",
        delta=None if scaled else lambda numel: math.ceil(density * numel) / max(1, numel),
        omega=(lambda numel: numel / max(1, math.ceil(density * numel)) - 1 if numel else 0.0) if scaled else None,
    )


def chosen(numel: int, k: int, seed: int, step: int, device: torch.device) -> Tensor:
    """The ``k`` places of ``numel`` that (seed, step) choose, all different."""
    draw = random.Random(f"random_k/{seed}/{step}")
    start, stride = (draw.randrange(numel), draw.randrange(1, numel + 1)) if numel else (0, 1)
    while math.gcd(stride, max(numel, 1)) != 1:
        stride += 1
    return (torch.arange(k, device=device) * stride + start) % max(numel, 1)
