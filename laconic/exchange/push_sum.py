"""Push-sum: each worker deals out what it has; on any graph, also one-way, changing or lossy, the mean comes out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor, count, finite
from laconic.compress.identity import identity
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.counters import Counters, Held, get, give, no_counters
from laconic.exchange.graph import states, whole_values
from laconic.exchange.mixing import Given, keeping_the_sum, settled, sum_matrix, told
from laconic.exchange.topology import Topology, shape
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.state import checkpointed

FLOOR = 1 / 64  # a worker whose weight is under this keeps what it has: a share of next to nothing is mostly rounding


@checkpointed
class PushSumState(NamedTuple):
    """``mass`` (x) and ``weight`` (w) are this worker's; ``mass / weight`` (z) is what it was told last.

    ``flying``: by round, the messages that their receivers take later, to be sent again after a restart; ``sender`` is
    None then. ``counters`` are for links that lose messages.
    """

    round: int
    mass: list[Tensor]
    weight: float
    inner: list[Any]
    flying: dict[int, Any]
    sender: Any
    counters: Counters


class Sender:
    """Stands in a state for the process that sent what is flying; a checkpoint leaves it out."""

    transient = True

    def __deepcopy__(self, memo: object) -> Sender:
        return self


HERE = Sender()


def push_sum(
    compressor: Compressor | None = None,
    topology: str = "one-peer",
    weights: Given = "uniform",
    late: int = 0,
    patience: float | None = None,
    seed: int = 0,
) -> Exchange:
    """Deal out shares of what I hold, and of a weight that began as 1; the quotient of the two tends to the mean.

    What changed in my tensors since the last answer is added to the mass I hold. ``late``: a message is taken so many
    rounds after it was sent, so that it may be on its way meanwhile; its weight is late as well. ``patience``: for
    links that lose messages. A round goes on without a message that has not come after so many seconds, and each
    message says all that was ever dealt out to its receiver, so that the next makes up for it.

    Wire:   one message of the packets' bytes to each whom the graph says, and a few bytes for the weight.
    Law:    masses and weights sum to the same over the workers and what is under way, round by round, whatever the
            compressor; with a graph that is strongly connected over its rounds each quotient tends to the mean.
    Raises: ConfigError for a graph that is not strongly connected, columns that do not sum to 1; ClashError for a
            compressor that leaves out parts, or any where messages may be lost; NotANumber.
    Source: Kempe, Dobra and Gehrke 2003; Assran et al. 2019, arXiv:1811.10792; running sums: Vaidya, Hadjicostis and
            Dominguez-Garcia 2011, arXiv:1109.1812.
    """
    count("push_sum", seed, "seed", None)
    count("push_sum", late, "late", 0)
    inner = compressor if compressor is not None else identity()
    whole_values("push_sum", inner)
    if patience is not None and not 0 <= patience < math.inf:
        raise ConfigError(f"push_sum: patience must be at least 0 seconds, got {patience}")
    if patience is not None and inner.name != "identity":
        raise ClashError(f"push_sum: with patience it sends exact sums, and {inner.name} would blur them; use only one")
    plan, shares = shape(topology, seed), keeping_the_sum(weights)
    on = settled(plan, shares)

    def init(tensors: Tensors) -> PushSumState:
        mass = [t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for t in tensors]
        return PushSumState(0, mass, 1.0, states("push_sum", inner, mass), {}, HERE, no_counters(len(mass)))

    def run(tensors: Tensors, state: PushSumState, link: Link) -> tuple[list[Tensor], PushSumState]:
        here, number = on(link.size), state.round
        state = state._replace(mass=_moved(tensors, state))
        keeps = state.weight < FLOOR
        part = {to: 0.0 if keeps else shares.of(here, to, link.rank, number) for to in here.targets(link.rank, number)}
        sources = here.sources(link.rank, number - late) if number >= late else []
        if patience is not None:
            held = give(Held(state.mass, state.weight, state.counters), part, number, link)
            held = get(held, sources, number - late, patience, link)
            after = state._replace(mass=held.mass, weight=held.weight, counters=held.counters)
        else:
            after = _take(_deal(state, part, here, link), sources, number - late, inner, link)
        now = [(m / after.weight).to(t.dtype) for m, t in zip(after.mass, tensors, strict=True)]
        return now, after._replace(round=number + 1, sender=HERE)

    def _deal(state: PushSumState, part: dict[int, float], here: Topology, link: Link) -> PushSumState:
        if state.sender is None:  # after a restart
            for old in sorted(state.flying):
                for to in here.targets(link.rank, old):
                    link.send(_again(state.flying[old], to, old), to)
        with link.meter.compressing():
            sent = [inner.compress(m, s) for m, s in zip(state.mass, state.inner, strict=True)]
        packets = [packet for packet, _ in sent]
        for to in sorted(part, key=lambda rank: (rank - link.rank) % link.size):
            link.send([_lead(state.round, part[to], state.weight), *packets], to)
        gone = math.fsum(part.values())
        mass = state.mass
        if gone:
            with link.meter.compressing():
                # What leaves is what the receivers will add: as it was compressed, and not as it was.
                mass = [m.sub(inner.decompress(p).to(m), alpha=gone) for m, p in zip(mass, packets, strict=True)]
        flying = {old: kept for old, kept in state.flying.items() if old > state.round - late}
        if late:
            frozen = [{"tensors": dict(p.tensors), "header": dict(p.header)} for p in packets]
            flying[state.round] = {"shares": part, "weight": state.weight, "packets": frozen}
        weight = state.weight * (1 - gone)
        return state._replace(mass=mass, weight=weight, inner=[after for _, after in sent], flying=flying)

    own = "" if shares.name == "uniform" else f", {shares.name}"
    behind = (f", late={late}" if late else "") + ("" if patience is None else f", patience={patience:g}")
    return Exchange(
        init,
        run,
        equal=False,
        name=f"push_sum({inner.name}, {plan.name}{own}{behind})",
        momentum=inner.momentum,
        among=lambda size: told(plan, shares, size, sum_matrix),
    )


def _moved(tensors: Tensors, state: PushSumState) -> list[Tensor]:
    """The mass, with what changed in the tensors since the last answer."""
    for tensor in tensors:
        finite("push_sum", tensor)
    if not state.round:  # the tensors themselves: a sum with a difference would be off by a rounding
        return [t.detach().to(m.dtype) for t, m in zip(tensors, state.mass, strict=True)]
    return [(t.detach().to(m.dtype) - m / state.weight).add_(m) for t, m in zip(tensors, state.mass, strict=True)]


def _take(state: PushSumState, sources: list[int], number: int, inner: Compressor, link: Link) -> PushSumState:
    mass, weight = list(state.mass), state.weight
    for source in sources:
        message = link.recv(source)
        share, whole = _opened(message, source, len(mass), number)
        weight += share * whole
        with link.meter.compressing():
            for i, packet in enumerate(message[1:]):
                check_shape(packet, mass[i])
                mass[i] = mass[i].add(inner.decompress(packet.to(mass[i].device)).to(mass[i]), alpha=share)
    return state._replace(mass=mass, weight=weight)


def _lead(round: int, share: float, weight: float) -> Packet:
    return Packet({}, {"round": round, "share": share, "weight": weight})


def _again(flying: dict[str, Any], to: int, round: int) -> Message:
    packets = [Packet(p["tensors"], p["header"]) for p in flying["packets"]]
    return [_lead(round, flying["shares"][to], flying["weight"]), *packets]


def _opened(message: Message, source: int, count: int, round: int) -> tuple[float, float]:
    """The share that a message brings, and of which weight, checked.

    Raises: PacketError.
    """
    header = message[0].header if message else {}
    if len(message) != count + 1 or header.get("round") != round:
        raise PacketError(
            f"worker {source} sent {len(message)} packets of round {header.get('round')}, wanted {count + 1} of round "
            f"{round}; where links lose messages, set patience"
        )
    share, weight = header.get("share"), header.get("weight")
    if not isinstance(share, float | int) or not 0 <= share <= 1:
        raise PacketError(f"worker {source} sent a share of {share!r}, wanted one in [0, 1]")
    if not isinstance(weight, float | int) or not 0 < weight < math.inf:
        raise PacketError(f"worker {source} sent a weight of {weight!r}, wanted a positive number")
    return float(share), float(weight)
