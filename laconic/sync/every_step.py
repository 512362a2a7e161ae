"""Every step: combine gradients, as data-parallel training does."""

from __future__ import annotations

import math
from typing import Any

import torch

from laconic.errors import ConfigError
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.sync.base import Params, Sync, named, needs_equal


def every_step(exchange: Exchange | None = None, clip: float | None = None) -> Sync:
    """Step with the combined gradient; with :func:`everyone` and no compression, exactly data-parallel training.

    ``clip`` bounds the norm of each worker's own gradient before it is sent, at ``clip * sqrt(size)``: the mean of
    ``size`` independent gradients then has a norm of about ``clip``. A clip needs the whole gradient, so nothing
    leaves before backward ends.

    Raises: ClashError for an exchange that leaves workers with different gradients; ConfigError unless ``clip > 0``.
    Source: local clipping: Lin et al. 2018, arXiv:1712.01887, section 3.2.
    """
    talk = exchange if exchange is not None else everyone()
    needs_equal("every_step", talk, "use noloco(), or every_step(everyone(...))")
    if clip is not None and not clip > 0:
        raise ConfigError(f"every_step: clip must be positive, got {clip}; leave it out for none")

    def init(params: Any) -> Any:
        return talk.init(list(named(params).values()))

    def after_backward(grads: Params, state: Any, link: Link) -> tuple[list[torch.Tensor], Any]:
        if clip is not None:
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads]))
            scale = (clip * math.sqrt(link.size) / (norm + 1e-12)).clamp(max=1.0)
            grads = [g * scale for g in grads]
        return talk.run(grads, state, link)

    return Sync(
        init,
        after_backward,
        by_bucket=clip is None,
        momentum=talk.momentum,
        name=f"every_step({talk.name})",
        decayed=talk.decayed,
        clip=clip,
        exchange=talk,
    )
