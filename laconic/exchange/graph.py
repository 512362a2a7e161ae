"""Neighbours in a graph: each worker mixes its tensors with those of the few it is joined to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor, accumulate, count, needs_values
from laconic.compress.identity import identity
from laconic.errors import ClashError, PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.mixing import Given, keeping_the_mean, mean_matrix, settled, told
from laconic.exchange.topology import shape
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.state import checkpointed


@checkpointed
class GraphState(NamedTuple):
    """The round, which says whose turn it is, and one compressor's state for each tensor."""

    round: int
    inner: list[Any]


def graph(
    compressor: Compressor | None = None, topology: str = "ring", weights: Given = "metropolis", seed: int = 0
) -> Exchange:
    """Mix my tensors with my neighbours': ``x_i + sum_j W_ij (x_j - x_i)``.

    ``topology`` is a graph as :func:`laconic.exchange.topology.shape` reads it; ``weights`` are ``metropolis`` or a
    matrix of the user's, whose rows and columns sum to 1. A compressor that is not exact stands for the tensors in both
    places, so that what it misses cancels in the mean over the workers.

    Wire:   one message of the packets' bytes to each neighbour.
    Law:    the mean over the workers stays as it was, whatever the compressor; deviations from it shrink by the second
            largest eigenvalue of W, down to what the compressor cannot tell apart.
    Raises: ConfigError for a graph that is not connected or does not fit, weights that would move the mean; ClashError
            for a compressor that leaves out parts of the tensors.
    Source: Lian et al. 2017, arXiv:1705.09056; the difference form: Koloskova et al. 2019, arXiv:1902.00340.
    """
    count("graph", seed, "seed", None)
    inner = compressor if compressor is not None else identity()
    plan, mixing = shape(topology, seed), keeping_the_mean(weights)
    on = settled(plan, mixing)
    whole_values("graph", inner)

    def init(tensors: Tensors) -> GraphState:
        return GraphState(0, states("graph", inner, tensors))

    def run(tensors: Tensors, state: GraphState, link: Link) -> tuple[list[Tensor], GraphState]:
        here = on(link.size)
        with link.meter.compressing():
            sent = [inner.compress(t, s) for t, s in zip(tensors, state.inner, strict=True)]
        mine = [packet for packet, _ in sent]
        sources = here.sources(link.rank, state.round)
        heard = swap(mine, here.targets(link.rank, state.round), sources, link)
        with link.meter.compressing():
            shares = [mixing.of(here, link.rank, source, state.round) for source in sources]
            mixed = [_mixed(inner, t, mine[i], [m[i] for m in heard], shares) for i, t in enumerate(tensors)]
        return mixed, GraphState(state.round + 1, [after for _, after in sent])

    own = "" if mixing.name == "metropolis" else f", {mixing.name}"
    return Exchange(
        init,
        run,
        equal=False,
        name=f"graph({inner.name}, {plan.name}{own})",
        momentum=inner.momentum,
        among=lambda size: told(plan, mixing, size, mean_matrix),
    )


def swap(mine: Message, targets: list[int], sources: list[int], link: Link) -> list[Message]:
    """Send mine to all targets, and return what each source sent, in their order.

    Raises: PacketError for a message of another number of packets; PeerTimeout, PeerLost.
    """
    # Those that come next after me first, so that not everyone queues at one worker.
    for to in sorted(targets, key=lambda rank: (rank - link.rank) % link.size):
        link.send(mine, to)
    heard = [link.recv(source) for source in sources]
    for source, message in zip(sources, heard, strict=True):
        if len(message) != len(mine):
            raise PacketError(f"worker {source} sent {len(message)} packets, wanted {len(mine)}")
    return heard


def whole_values(what: str, compressor: Compressor) -> None:
    """Refuse a compressor that leaves out parts of what it is given, where that is weights and no change of them.

    Raises: ClashError.
    """
    needs_values(what, compressor, "neighbours hold different ones; use everyone(...), or int8 or half here")
    if compressor.sparse:
        raise ClashError(
            f"{what}: sends whole weights, and {compressor.name} would leave most of them out, which pulls neighbours "
            "towards zero; use int8 or half"
        )


def states(what: str, compressor: Compressor, tensors: Tensors) -> list[Any]:
    """The compressor's states, for weights that will be mixed again and again.

    Raises: ClashError for random rounding whose error may be as large as the weights: mixed in anew each round, it
            would grow without bound (measured: ``docs/methods/d-psgd.md``).
    """
    for tensor in tensors:
        numel = tensor.numel()
        if numel and compressor.omega is not None and compressor.omega(numel) >= 1:
            raise ClashError(
                f"{what}: {compressor.name} misses a tensor of {numel} entries by up to {compressor.omega(numel):.3g} "
                "times its square, and mixing that in each round would carry the weights away; use int8 or half"
            )
    return [compressor.init(t) for t in tensors]


def _mixed(inner: Compressor, mine: Tensor, own: Packet, heard: list[Packet], shares: list[float]) -> Tensor:
    """``mine + sum_j share_j (heard_j - own)``; with equal tensors everywhere it is mine, to the bit."""
    dtype = torch.promote_types(mine.dtype, torch.float32)
    mixed = mine.detach().to(dtype, copy=True)
    if not heard:
        return mixed.to(mine.dtype)
    told_own = inner.decompress(own.to(mine.device)).to(dtype)
    for packet, share in zip(heard, shares, strict=True):
        check_shape(packet, mine)
        apart = -told_own
        accumulate(inner, packet.to(mine.device), apart)
        mixed.add_(apart, alpha=share)
    return mixed.to(mine.dtype)
