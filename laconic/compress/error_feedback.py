"""Error feedback: what a compressor drops is added to the next tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import KEEPS, Compressor, carry, needs_feedback, still
from laconic.compress.topk import topk
from laconic.packet import Packet
from laconic.state import checkpointed


@checkpointed
class ErrorFeedbackState(NamedTuple):
    """``residual``, of at least float32: what the peers have not been told yet; ``inner``: the compressor's state."""

    residual: Tensor
    inner: Any


def error_feedback(compressor: Compressor | None = None) -> Compressor:
    """Carry what ``compressor`` drops into the next tensor: nothing is lost, only late.

    Law:    ``decompress(packet) + new residual == x + old residual``.
    Raises: NotANumber if that sum holds NaN or infinity; ClashError for a compressor that has feedback of its own
            already, or sends more than it was given, or, once the tensor is known, misses by more (``omega >= 1``): the
            residual would grow without bound.
    Source: Karimireddy et al. 2019, arXiv:1901.09847 (EF-SGD).
    """
    inner = compressor if compressor is not None else topk()
    needs_feedback("error_feedback", inner)

    def init(like: Tensor) -> ErrorFeedbackState:
        needs_feedback("error_feedback", inner, like.numel())
        return ErrorFeedbackState(still(like), inner.init(like))

    def compress(x: Tensor, state: ErrorFeedbackState) -> tuple[Packet, ErrorFeedbackState]:
        packet, residual, after = carry(inner, x.detach(), state.residual, state.inner)
        return packet, ErrorFeedbackState(residual, after)

    name = f"error_feedback({inner.name})"
    return inner._replace(
        init=init,
        compress=compress,
        name=name,
        carry=None,
        delta=None,
        omega=None,
        no_feedback=KEEPS,
    )
