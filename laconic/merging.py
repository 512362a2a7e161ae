"""The mean of workers whose weights differ: what it is, how far they are from it, and statistics that fit it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from laconic.attached import Attached
from laconic.links.base import Link


def merged(attached: Attached) -> dict[str, Tensor]:
    """The mean of all workers' weights, by name; nobody's are touched. All workers call it.

    Wire:   an all-reduce of the weights, in at least float32.
    Raises: PeerTimeout, PeerLost.
    """
    link = attached.link
    own = attached.weights()

    def mean() -> dict[str, Tensor]:
        wide = {n: w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for n, w in own.items()}
        return {n: link.all_reduce(w).div_(link.size).to(own[n].dtype) for n, w in wide.items()}

    made: dict[str, Tensor] = link.start(mean).result()
    return made


def distance(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The square of the distance between two sets of weights; its mean over the workers is the consensus error."""
    return sum(float((w.double() - others[name].double()).square().sum()) for name, w in weights.items())


@contextmanager
def standing_in(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other weights (and buffers) into the model, and put back all it held after: those, and the mode."""
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    try:
        with torch.no_grad():
            for name, value in weights.items():
                places[name].copy_(value)
        yield
    finally:
        model.load_state_dict(kept)
        for module, training in modes:
            module.training = training


def normalisations(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics of what passes through them."""
    return [module for module in model.modules() if getattr(module, "running_mean", None) is not None]


@torch.no_grad()
def reestimate(
    model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any], link: Link | None = None
) -> int:
    """Estimate the statistics of normalisation layers anew, for the weights that the model holds now.

    ``forward(batch)`` runs the model; nothing is learned. With a ``link``, which all workers give, the statistics are
    those of everyone's batches together: the variance also counts how the workers' means differ. The number of layers
    is returned; without any, nothing is run.
    """
    layers = normalisations(model)
    if not layers:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    counted = [layer.num_batches_tracked.clone() for layer in layers]
    model.eval()  # no dropout: statistics are of what evaluation will see
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    try:
        for batch in batches:
            forward(batch)
    finally:
        for layer, momentum, count in zip(layers, momenta, counted, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
        for module, training in modes:
            module.training = training
    if link is not None and link.size > 1:
        link.start(_together, layers, link).result()
    return len(layers)


def _together(layers: list[Any], link: Link) -> None:
    for layer in layers:
        moments = torch.stack([layer.running_mean, layer.running_var + layer.running_mean.square()]).float()
        mean, square = link.all_reduce(moments).div_(link.size)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((square - mean.square()).clamp_(min=0))
