"""Warm-up: a compressor whose density starts high and falls to its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress import base
from laconic.compress.base import Compressor, needs_values, share
from laconic.compress.topk import topk
from laconic.errors import ConfigError
from laconic.packet import Packet
from laconic.state import checkpointed


@checkpointed
class WarmUpState(NamedTuple):
    """How many tensors have been sent, and the compressor's own state."""

    step: int
    inner: Any


def warm_up(
    kind: Callable[[float], Compressor] = topk, density: float = 0.001, start: float = 0.25, steps: int = 100
) -> Compressor:
    """Compress with ``kind(density)``, but begin at ``start`` and fall to it exponentially over ``steps`` tensors.

    Five levels, as the paper's five epochs have: at its defaults 25 %, 6.3 %, 1.6 %, 0.4 %, then 0.1 %.

    Wire:   ``kind``'s, at the density of the moment.
    Raises: ConfigError unless ``0 < density <= start <= 1`` and ``steps >= 0``.
    Source: Lin et al. 2018, arXiv:1712.01887, section 3.3.
    """
    share("warm_up", density)
    share("warm_up", start, "start")
    base.count("warm_up", steps, "steps", 0)
    if start < density:
        raise ConfigError(f"warm_up: start ({start}) must be at least density ({density})")
    needs_values("warm_up", kind(density), "put the warm-up inside it, ef21(warm_up(...)) say")
    count = 4 if steps else 0
    levels = [kind(start * (density / start) ** (i / 4)) for i in range(count)] + [kind(density)]

    def init(like: Tensor) -> WarmUpState:
        return WarmUpState(0, levels[-1].init(like))

    def level(step: int) -> Compressor:
        return levels[min(step * count // steps, count) if steps else 0]

    def compress(x: Tensor, state: WarmUpState) -> tuple[Packet, WarmUpState]:
        packet, inner = level(state.step).compress(x, state.inner)
        return packet, WarmUpState(state.step + 1, inner)

    def carry(x: Tensor, residual: Tensor, state: WarmUpState) -> tuple[Packet, Tensor, WarmUpState]:
        packet, left, inner = base.carry(level(state.step), x, residual, state.inner)
        return packet, left, WarmUpState(state.step + 1, inner)

    return levels[-1]._replace(init=init, compress=compress, carry=carry, name=f"warm_up({levels[-1].name})")
