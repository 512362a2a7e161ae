"""Everyone with everyone: all-reduce where packets can be added in flight, all-gather where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic import kernels
from laconic.aggregate.mean import Rule, mean
from laconic.compress.base import Compressor, accumulate, needs_values
from laconic.compress.identity import identity
from laconic.errors import ClashError, PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.state import checkpointed


@checkpointed
class EveryoneState(NamedTuple):
    """One compressor's state for each tensor."""

    inner: list[Any]


def everyone(
    compressor: Compressor | None = None, combine: Rule | None = None, small: Compressor | None = None
) -> Exchange:
    """Combine every worker's tensors; all get the same bits.

    Tensors of fewer than two dimensions (biases, norms: few bytes, and much hangs on them) go by ``small``, by
    default the compressor itself if its packets are summable, and uncompressed if not. Every compressor works on
    one parameter at a time, so results do not depend on how parameters share messages.

    A compressor that sends changes (:func:`ef21`, :func:`econtrol`) needs a linear rule, a group that stays the same
    and weights that do too: what was told before is not weighed again.

    Wire:   summable packets: one all-reduce, ``2 (n-1)/n`` times their bytes out of each of n workers (and the
            weights beforehand, if they are weighted and of 16 bits).
            Others: one all-gather, ``(n-1)`` times their bytes.
    Raises: ClashError for changes under a rule that is not linear.
    """
    return everyone_by(lambda link, flat: link.all_reduce(flat), compressor, combine, small)


def everyone_by(
    all_reduce: Callable[[Link, Tensor], Tensor],
    compressor: Compressor | None = None,
    combine: Rule | None = None,
    small: Compressor | None = None,
) -> Exchange:
    """:func:`everyone`, whose packets are summed, where they can be, by ``all_reduce(link, flat)``."""
    main = compressor if compressor is not None else identity()
    rule = combine if combine is not None else mean()
    minor = small if small is not None else (main if main.summable else identity())
    summed = main.summable and minor.summable and rule.linear
    if not rule.linear:
        for part in (main, minor):
            needs_values("everyone", part, f"the {rule.name} of changes is no change of a {rule.name}; use mean()")

    def choose(tensor: Tensor) -> Compressor:
        return main if tensor.dim() > 1 else minor

    def init(tensors: Tensors) -> EveryoneState:
        return EveryoneState([choose(t).init(t) for t in tensors])

    def run(tensors: Tensors, state: EveryoneState, link: Link) -> tuple[list[Tensor], EveryoneState]:
        with link.meter.compressing():
            packets, inner = [], []
            for tensor, before in zip(tensors, state.inner, strict=True):
                packet, after = choose(tensor).compress(tensor, before)
                packets.append(packet)
                inner.append(after)
        if summed:
            packets = _all_reduce(packets, rule, link, all_reduce)
            with link.meter.compressing():
                combined = [choose(t).decompress(p) for t, p in zip(tensors, packets, strict=True)]
        else:
            lead = [Packet({}, {"weight": rule.weight})] if rule.weighted else []
            heard = link.all_gather([*lead, *packets])
            with link.meter.compressing():
                weights = [_weight(message, len(packets), rule) for message in heard]
                bodies = [message[-len(packets) :] if packets else [] for message in heard]
                combined = []
                for i, tensor in enumerate(tensors):
                    for body in bodies:
                        check_shape(body[i], tensor)
                    # In rank order, mine decompressed too: adding mine as it was would be more exact, and the workers
                    # would drift apart.
                    heard_here = [body[i] for body in bodies]
                    combined.append(_combine(rule, choose(tensor), heard_here, weights, tensor))
        with link.meter.compressing():
            for i, tensor in enumerate(tensors):
                integrate = choose(tensor).integrate
                if integrate is not None:
                    combined[i], inner[i] = integrate(combined[i], inner[i])
                combined[i] = combined[i].to(tensor.dtype)
        return combined, EveryoneState(inner)

    name = f"everyone({main.name})" if rule.name == "mean" else f"everyone({main.name}, {rule.name})"
    return Exchange(init, run, equal=True, name=name, sparse=main.sparse, momentum=main.momentum)


def ring(compressor: Compressor | None = None, combine: Rule | None = None) -> Exchange:
    """:func:`everyone`, but only ever by all-reduce: refuses what would have to be gathered.

    Raises: ClashError for a compressor whose packets cannot be added in flight.
    """
    inner = compressor if compressor is not None else identity()
    if not inner.summable:
        raise ClashError(
            f"ring: needs summable packets, and {inner.name}'s are not; use everyone({inner.name}) or ring(random_k())"
        )
    exchange = everyone(inner, combine, inner)
    return exchange._replace(name=f"ring({inner.name})")


def _combine(rule: Rule, compressor: Compressor, packets: list[Packet], weights: list[float], like: Tensor) -> Tensor:
    """What ``rule`` makes of everyone's packets for one tensor; a linear rule needs no dense tensor for each.

    A linear rule's result is of at least float32, rounded only once changes have been added up.
    """
    if not rule.linear:
        return rule.combine([compressor.decompress(p.to(like.device)) for p in packets], weights)
    # In at least float32: a sum of many has more digits than each of them.
    dtype = torch.promote_types(like.dtype, torch.float32)
    total = kernels.zeros(like.shape, dtype, like.device)
    for packet, weight in zip(packets, weights, strict=True):
        accumulate(compressor, packet.to(like.device), total, weight)
    return total.div_(sum(weights))


def _all_reduce(
    packets: list[Packet], rule: Rule, link: Link, all_reduce: Callable[[Link, Tensor], Tensor]
) -> list[Packet]:
    """Sum packets in flight, all tensors of one dtype in one all-reduce, and divide by the sum of the weights."""
    tensors = [(i, name, t) for i, packet in enumerate(packets) for name, t in packet.tensors.items()]
    summed: dict[tuple[int, str], Tensor] = {}
    weighted = rule.weighted
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[int, str, Tensor]]] = {}
    for entry in tensors:
        groups.setdefault((entry[2].dtype, entry[2].device), []).append(entry)
    total = float(link.size)
    if weighted and any(dtype.itemsize == 2 for dtype, _ in groups):
        # A weight may not fit into 16 bits, nor what it multiplies: these learn the sum of the weights first.
        total = sum(_weight(message, 0, rule) for message in link.all_gather([Packet({}, {"weight": rule.weight})]))
    for (dtype, device), group in groups.items():
        parts = [t.reshape(-1) for _, _, t in group]
        divide = weighted and dtype.itemsize > 2
        if divide:
            parts.append(torch.ones(1, dtype=dtype, device=device))
        flat = torch.cat(parts)
        # Before the sum and not after: the sum of many half-precision values may not fit where their mean does.
        flat.mul_(rule.weight if divide else rule.weight / total)
        flat = all_reduce(link, flat)
        if divide:
            flat = flat[:-1] / flat[-1]
        for (i, name, t), part in zip(group, flat.split([t.numel() for _, _, t in group]), strict=True):
            summed[i, name] = part.reshape(t.shape)
    return [Packet({n: summed[i, n] for n in p.tensors}, p.header) for i, p in enumerate(packets)]


def _weight(message: Message, packets: int, rule: Rule) -> float:
    if len(message) == packets and not rule.weighted:
        return 1.0
    weight = message[0].header.get("weight") if len(message) == packets + 1 and rule.weighted else None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise PacketError(f"message: {len(message)} packets came, wanted {packets}; do all workers run one method?")
    return float(weight)
