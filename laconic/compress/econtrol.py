"""EControl: EF21 with a measured share of error feedback, for unlike data and noisy gradients both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import Compressor, accumulate, still
from laconic.compress.changes import changes, reader, told_more
from laconic.compress.topk import topk
from laconic.errors import ConfigError
from laconic.packet import Packet
from laconic.state import checkpointed

MOST = 0.1


@checkpointed
class EControlState(NamedTuple):
    """``error`` (the paper's e_i): the sum of my tensors less that of what the peers held of them.

    ``told`` (h_i), ``mean`` (h), ``started`` and ``inner``: as in EF21State. The tensors are of at least float32.
    """

    started: bool
    error: Tensor
    told: Tensor
    mean: Tensor
    inner: Any


def econtrol(compressor: Compressor | None = None, eta: float | None = None, start: str = "zero") -> Compressor:
    """Send the difference to what the peers hold, and a share ``eta`` of all that they have missed.

    In the paper's letters, with h the mean that everyone steps with: ``D_i = C(eta e_i + g_i - h_i)``,
    ``e_i <- e_i + g_i - h_i - D_i`` (the old h_i), ``h_i <- h_i + D_i``, ``h <- h + mean D_i``. Unlike data leaves no
    floor, and the noise of small batches averages out as in plain SGD.

    Wire:   the compressor's, as with :func:`error_feedback`; with ``start="dense"`` the first tensor goes whole.
    Law:    the sum of all ``told`` after each step, plus ``error``, is the sum of all tensors. With ``eta=0`` it is
            :func:`ef21`; with identity the mean of the tensors, for any ``eta``.
    Needs:  a fixed group, as :func:`ef21`; an ``eta`` not far above the share of a tensor's square that the compressor
            keeps. Larger ones diverge, and ``eta=1`` is not :func:`error_feedback`. By default it is the compressor's
            ``delta``, at most 0.1.
    Raises: as :func:`ef21`; ConfigError also unless ``0 <= eta <= 1``, and for no ``eta`` around a sparse compressor
            that states no ``delta``.
    Source: Gao, Islamov and Stich 2023, arXiv:2311.05645, algorithm 1.
    """
    inner = compressor if compressor is not None else topk()
    delta = inner.delta
    if eta is None and delta is None and inner.sparse:
        raise ConfigError(
            f"econtrol: {inner.name} does not say what share of a tensor it keeps, so eta must be given; about its "
            "density is safe, and much more diverges"
        )
    if eta is not None and not 0 <= eta <= 1:
        raise ConfigError(f"econtrol: eta must be in [0, 1], got {eta}; it is the share of the error that is sent anew")

    def init(like: Tensor) -> EControlState:
        return EControlState(False, still(like), still(like), still(like), inner.init(like))

    def step(x: Tensor, state: EControlState, send: Callable[..., tuple[Packet, Any]]) -> tuple[Packet, EControlState]:
        share = eta if eta is not None else MOST if delta is None else min(MOST, delta(x.numel()))
        news = x.to(state.told.dtype) - state.told
        packet, after = send(news.add(state.error, alpha=share) if share else news, x, state)
        # Not in place: the packet of a compressor that changes nothing (identity) may be the memory of ``news``.
        error = state.error + news
        accumulate(reader(packet, inner), packet, error, -1.0)
        return packet, EControlState(True, error, told_more(state.told, packet, inner), state.mean, after)

    return changes("econtrol", inner, start, init, step)
