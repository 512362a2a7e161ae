"""EF21: send how the gradient differs from what the peers hold of it, so that unlike data leaves no floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import Compressor, still
from laconic.compress.changes import changes, told_more
from laconic.compress.topk import topk
from laconic.errors import ConfigError
from laconic.packet import Packet
from laconic.state import checkpointed


@checkpointed
class EF21State(NamedTuple):
    """``told`` (the paper's h_i): what my peers hold of me; ``mean`` (h): the mean of everyone's, the same everywhere.

    ``velocity``: the running average of my tensors, ``None`` without one; ``started``: whether a tensor was sent yet;
    ``inner``: the compressor's state. The tensors are of at least float32.
    """

    started: bool
    velocity: Tensor | None
    told: Tensor
    mean: Tensor
    inner: Any


def ef21(compressor: Compressor | None = None, start: str = "zero") -> Compressor:
    """Send the compressed difference between the tensor and what the peers hold of it.

    In the paper's letters, with h the mean that everyone steps with: ``D_i = C(g_i - h_i)``, ``h_i <- h_i + D_i``,
    ``h <- h + mean D_i``. On unlike data full gradients converge to the optimum, where :func:`error_feedback` stops at
    a floor. Noise of small batches is amplified: there :func:`econtrol` or :func:`ef21_sgdm` is better.

    Wire:   the compressor's, as with :func:`error_feedback`; with ``start="dense"`` the first tensor goes whole.
    Law:    the result is the mean of what everyone's ``told`` holds. With identity it is the mean of the tensors.
    Raises: NotANumber if the difference holds NaN or infinity; ClashError for a compressor with feedback of its own,
            or one that sends more than it was given; ConfigError for another start.
    Needs:  the mean over a fixed group. A worker that joins or leaves, or whose weight changes, makes h another mean
            than that of the h_i, for ever.
    Source: Richtárik et al. 2021, arXiv:2106.05203, algorithm 2.
    """
    return _ef21("ef21", compressor, None, start)


def ef21_sgdm(compressor: Compressor | None = None, a: float = 0.1, start: str = "zero") -> Compressor:
    """:func:`ef21` on a running average of the tensors, which evens out the noise of small batches.

    ``velocity <- (1 - a) velocity + a g``, begun at the first tensor; then as :func:`ef21`, with the velocity in the
    gradient's place. It is momentum of ``1 - a``: the optimizer must have none, and vectors that an exchange sends by
    another compressor have none either unless that is ``ef21_sgdm(identity(), a)``.

    Wire, Needs, Raises: as :func:`ef21`; ConfigError also unless ``0 < a <= 1``.
    Law:    with ``a=1`` it is :func:`ef21`.
    Source: Fatkhullin et al. 2023, arXiv:2305.15155, algorithm 1.
    """
    if not 0 < a <= 1:
        raise ConfigError(f"ef21_sgdm: a must be in (0, 1], got {a}; it is the newest gradient's share in the average")
    return _ef21("ef21_sgdm", compressor, a, start)


def _ef21(name: str, compressor: Compressor | None, a: float | None, start: str) -> Compressor:
    inner = compressor if compressor is not None else topk()

    def init(like: Tensor) -> EF21State:
        return EF21State(False, None if a is None else still(like), still(like), still(like), inner.init(like))

    def step(x: Tensor, state: EF21State, send: Callable[..., tuple[Packet, Any]]) -> tuple[Packet, EF21State]:
        target, velocity = x.to(state.told.dtype), None
        if a is not None and state.velocity is not None:
            velocity = target = state.velocity.lerp(target, a) if state.started else target.clone()
        packet, after = send(target - state.told, x, state)
        return packet, EF21State(True, velocity, told_more(state.told, packet, inner), state.mean, after)

    return changes(name, inner, start, init, step, momentum=a is not None and a < 1)
