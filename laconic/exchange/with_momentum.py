"""Momentum before the exchange: each worker sends the running mean of its gradients in their place."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import finite, still
from laconic.errors import ClashError, ConfigError
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.state import checkpointed


@checkpointed
class MomentumState(NamedTuple):
    """``mean``: for each tensor the running mean, of at least float32; ``inner``: the exchange's own state."""

    mean: list[Tensor]
    inner: Any


def with_momentum(exchange: Exchange | None = None, momentum: float = 0.9) -> Exchange:
    """Exchange ``m_i <- b m_i + (1 - b) x_i`` in place of each worker's own ``x_i``, with ``b = momentum``.

    What a compressor forgets of one gradient, its size say, is told by the mean of many: with signs and a majority
    vote this is Signum. The result holds momentum already: the optimizer must have none.

    Wire:   the exchange's.
    Law:    with ``momentum=0`` it is the exchange; where that is linear, the result is the running mean of its results.
    Raises: NotANumber if a mean holds NaN or infinity, which would stay; ConfigError unless ``0 <= momentum < 1``;
            ClashError for an exchange that carries momentum itself.
    Source: Bernstein et al. 2018, arXiv:1802.04434 (Signum).
    """
    talk = exchange if exchange is not None else everyone()
    if not 0 <= momentum < 1:
        raise ConfigError(f"with_momentum: momentum must be in [0, 1), got {momentum}")
    if talk.momentum:
        raise ClashError(f"with_momentum: {talk.name} carries momentum itself; use one of the two")

    def init(tensors: Tensors) -> MomentumState:
        return MomentumState([still(t) for t in tensors], talk.init(tensors))

    def run(tensors: Tensors, state: MomentumState, link: Link) -> tuple[list[Tensor], MomentumState]:
        with link.meter.compressing():
            means = [m.lerp(t.detach().to(m.dtype), 1 - momentum) for m, t in zip(state.mean, tensors, strict=True)]
            for mean in means:
                finite("with_momentum", mean)
            given = [m.to(t.dtype) for m, t in zip(means, tensors, strict=True)]
        combined, inner = talk.run(given, state.inner, link)
        return combined, MomentumState(means, inner)

    decayed = talk.decayed
    return talk._replace(
        init=init,
        run=run,
        name=f"with_momentum({talk.name}, momentum={momentum:g})",
        momentum=momentum > 0,
        decayed=None if decayed is None else lambda state: state._replace(inner=decayed(state.inner)),
    )
