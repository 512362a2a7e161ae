"""Momentum correction: a compressor's feedback that accumulates velocity, as Deep Gradient Compression does."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import KEEPS, Compressor, carry, needs_feedback, still
from laconic.compress.topk import topk
from laconic.errors import ConfigError
from laconic.packet import Packet
from laconic.state import checkpointed


@checkpointed
class MomentumCorrectionState(NamedTuple):
    """``momentum`` (the paper's u) and ``velocity`` (v), both of at least float32, and the compressor's own state."""

    momentum: Tensor
    velocity: Tensor
    inner: Any


def momentum_correction(
    compressor: Compressor | None = None, momentum: float = 0.9, masking: bool = True, nesterov: bool = False
) -> Compressor:
    """Accumulate momentum before compressing, so that entries sent late arrive with the momentum they would have had.

    In the paper's letters: ``u <- m u + g``, ``v <- v + u``, send the largest of v, and clear v (and u, if
    ``masking``) where it was sent. What is sent already holds the momentum: the optimizer must have none.

    Law:    the sum of all that was sent, plus the velocity kept, is the sum of all u.
            With ``momentum=0`` it is :func:`error_feedback`; at density 1 without masking, momentum SGD.
            What counts as sent is where the packet decompresses to something other than 0.
    Raises: ConfigError unless ``0 <= momentum < 1``; NotANumber if the velocity holds NaN or infinity; ClashError as
            :func:`error_feedback`.
    Source: Lin et al. 2018, arXiv:1712.01887 (Deep Gradient Compression), sections 3.1 and 3.2.
    """
    inner = compressor if compressor is not None else topk(0.001)
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum_correction: momentum must be in [0, 1), got {momentum}")
    needs_feedback("momentum_correction", inner)

    def init(like: Tensor) -> MomentumCorrectionState:
        needs_feedback("momentum_correction", inner, like.numel())
        return MomentumCorrectionState(still(like), still(like), inner.init(like))

    def compress(x: Tensor, state: MomentumCorrectionState) -> tuple[Packet, MomentumCorrectionState]:
        x = x.detach()
        u = (state.momentum + x).mul_(momentum) if nesterov else (state.momentum * momentum).add_(x)
        packet, velocity, after = carry(inner, u + x if nesterov else u, state.velocity, state.inner, x.dtype)
        if masking:
            u = u.masked_fill_(inner.decompress(packet) != 0, 0)
        return packet, MomentumCorrectionState(u, velocity, after)

    return inner._replace(
        init=init,
        compress=compress,
        name=f"momentum_correction({inner.name})",
        momentum=momentum > 0,
        carry=None,
        delta=None,
        omega=None,
        no_feedback=KEEPS,
    )
