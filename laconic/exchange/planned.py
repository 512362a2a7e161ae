"""Everyone with everyone by a plan: rings, stars, trees, sites and whatever suits the links, in one-pass sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from laconic.aggregate.mean import Rule
from laconic.compress.base import Compressor
from laconic.compress.identity import identity
from laconic.errors import ClashError, PacketError
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone_by
from laconic.links.base import Link
from laconic.links.network import Network, of_cluster
from laconic.packet import Message, Packet, need
from laconic.plan.choosing import options, plan_of
from laconic.plan.cluster import read_cluster
from laconic.plan.rounds import Plan
from laconic.plan.turns import Span, turns

IN_CACHE = 1 << 14  # elements that are summed at a time: few enough that the sum stays in the nearest cache
SIZES = {"4 kB": 4e3, "1 MB": 1e6, "100 MB": 1e8}  # for which ``auto`` says what it takes
NARROW = (torch.float16, torch.bfloat16)


def planned(
    compressor: Compressor | None = None, plan: str = "auto", cluster: str = "", combine: Rule | None = None
) -> Exchange:
    """:func:`ring`, but by any plan: where links are uneven, fast inside a site and slow between, by sites.

    ``plan`` is one of :data:`laconic.plan.choosing.NAMES`. ``auto`` takes the cheapest for the bytes at hand. Plans are
    made for the network of ``cluster`` (a shipped one or a file); without it for the one that the link is held to, if
    it is paced or simulated; and else for even links.

    Wire:   the plan's: a message for each pair of workers in a round, and in all ``2 (n-1)/n`` times the packets' bytes
            out of each of n workers by ring, rhd (of a power of two), cps, hcps and even sites.
    Law:    all workers hold the same bits. Sums are taken in rank order, of 16-bit values in 32 bits, rounded once a
            round.
    Raises: ClashError for a compressor whose packets cannot be added in flight; ConfigError for an unknown plan or
            cluster, and for groups that do not hold as many workers as there are.
    Source: docs/collectives.md has each plan's.
    """
    inner = compressor if compressor is not None else identity()
    if not inner.summable:
        raise ClashError(
            f"planned: needs summable packets, and {inner.name}'s are not; use everyone({inner.name}) or "
            "planned(random_k())"
        )
    machines = read_cluster(cluster) if cluster else None
    plan_of(plan, 1, 0.0)  # refuses a name that nobody knows

    @lru_cache(maxsize=4)
    def network_of(size: int) -> Network | None:
        return None if machines is None else of_cluster(machines, size)

    def all_reduce(link: Link, flat: Tensor) -> Tensor:
        if link.size == 1:
            return flat
        network = network_of(link.size) or link.network
        nbytes = flat.numel() * flat.element_size()
        return carried(_plan(plan, link.size, nbytes, None if network is None else _Same(network)), flat, link)

    def among(size: int) -> str:
        network = network_of(size)
        if plan != "auto" or size == 1:
            made = plan_of(plan, size, SIZES["1 MB"], network)
            return f"{made.name}: {len(made.rounds)} rounds, {max(made.messages())} messages at most from one worker"
        best = [f"{text} by {options(size, nbytes, network)[0].plan.name}" for text, nbytes in SIZES.items()]
        return f"{', '.join(best)}{'' if network else ' if links are even (100 Mbit/s)'}"

    exchange = everyone_by(all_reduce, inner, combine, inner)
    return exchange._replace(name=f"planned({inner.name}{'' if plan == 'auto' else ', ' + plan})", among=among)


class _Same:
    """A network by which plans are remembered: the one itself, for comparing large ones takes longer than a round."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def __hash__(self) -> int:
        return id(self.network)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.network is self.network


@lru_cache(maxsize=64)
def _plan(text: str, size: int, nbytes: int, known: _Same | None) -> Plan:
    return plan_of(text, size, float(nbytes), None if known is None else known.network)


# -- running a plan ------------------------------------------------------------------------------------------------


def carried(plan: Plan, tensor: Tensor, link: Link) -> Tensor:
    """The sum of everyone's ``tensor`` by ``plan``; ``tensor`` itself may become it.

    Raises: PeerTimeout, PeerLost; PacketError for what is no part of this sum.
    """
    flat = tensor.detach().reshape(-1)

    def places(span: Span) -> slice:
        return slice(*(flat.numel() * block // plan.blocks for block in span))

    with link.together():
        for turn in filter(None, turns(plan)[link.rank]):
            for to, spans in turn.sends:
                parts = [flat[places(span)] for span in spans]
                if any(part.numel() for part in parts):
                    link.send([Packet({"x": parts[0] if len(parts) == 1 else torch.cat(parts)})], to)
            came: dict[int, dict[Span, Tensor]] = {}
            for source, spans in turn.takes:
                sizes = [flat[places(span)].numel() for span in spans]
                if any(sizes):
                    body = _body(link.recv(source), flat, sum(sizes), source)
                    came[source] = dict(zip(spans, body.split(sizes), strict=True))
            for span, sources in turn.sums:
                into = flat[places(span)]
                if into.numel():
                    theirs = {source: _part(came[source], span, places) for source in sources}
                    sum_in_one_pass([part for _, part in sorted((theirs | {link.rank: into}).items())], into)
            for span, source in turn.copies:
                if flat[places(span)].numel():
                    flat[places(span)] = came[source][span]
    return flat.reshape(tensor.shape)


def sum_in_one_pass(parts: list[Tensor], into: Tensor) -> None:
    """Write the sum of ``parts``, added in their order, to ``into``, which may be one of them.

    Each is read from memory once, and the sum is written once: ``len(parts) + 1`` touches, where adding one after the
    other takes ``3 (len(parts) - 1)``. Sums of 16-bit values are taken in 32 bits and rounded once.
    """
    if len(parts) == 2 or not into.numel():
        torch.add(parts[0], parts[1], out=into)
        return
    step = min(IN_CACHE, into.numel()) if into.device.type == "cpu" else into.numel()
    total = torch.empty(step, dtype=torch.float32 if into.dtype in NARROW else into.dtype, device=into.device)
    for at in range(0, into.numel(), step):
        sums = total[: min(step, into.numel() - at)]
        sums.copy_(parts[0][at : at + step])
        for part in parts[1:]:
            sums += part[at : at + step]
        into[at : at + step] = sums


def _part(came: dict[Span, Tensor], span: Span, places: Callable[[Span], slice]) -> Tensor:
    """The blocks of ``span`` out of the piece that holds them."""
    if span in came:
        return came[span]
    whole = next(piece for piece in came if piece[0] <= span[0] and span[1] <= piece[1])
    start, wanted = places(whole).start, places(span)
    return came[whole][wanted.start - start : wanted.stop - start]


def _body(message: Message, like: Tensor, numel: int, source: int) -> Tensor:
    if len(message) != 1:
        raise PacketError(f"worker {source} sent {len(message)} packets, wanted 1; do all workers run one plan?")
    return need(message[0], "x", (like.dtype,), numel).to(like.device)
