"""Everyone with everyone by a plan: rings, stars, trees, sites and whatever suits the links, in one-pass sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from laconic.aggregate.mean import Rule
from laconic.compress.base import Compressor
from laconic.compress.identity import identity
from laconic.errors import ClashError, PacketError
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone_by
from laconic.kernels import loops
from laconic.links.base import Link
from laconic.links.network import Network, of_cluster
from laconic.packet import Message, Packet, need
from laconic.plan.choosing import plan_of
from laconic.plan.cluster import read_cluster
from laconic.plan.ports import BUFFERS
from laconic.plan.rounds import Plan
from laconic.plan.turns import Span, turns

SIZES = {"4 kB": 4_000, "1 MB": 1_000_000, "100 MB": 100_000_000}  # for which ``auto`` says what it takes
WORTH = 1 << 17  # elements from which one pass is quicker than several: fewer fit the cache anyway
NARROW = (torch.float16, torch.bfloat16)


def planned(
    compressor: Compressor | None = None, plan: str = "auto", cluster: str = "", combine: Rule | None = None
) -> Exchange:
    """:func:`ring`, but by any plan: where links are uneven, fast inside a site and slow between, by sites.

    ``plan`` is one of :data:`laconic.plan.choosing.NAMES`. ``auto`` takes the cheapest for about the bytes at hand.
    Plans are made for the network of ``cluster`` (a shipped one or a file); without it for the link's own, where that
    is known: if it is paced or simulated, on the testbed, or made from a recipe that says what the links are; and else
    for even links.

    Wire:   the plan's: a message for each pair of workers in a round, and in all ``2 (n-1)/n`` times the packets' bytes
            out of each of n workers by ring, rhd (of a power of two), cps, hcps and even sites.
    Law:    all workers hold the same bits. Sums of 16-bit values are taken in 32 bits and rounded once a round.
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
    plan_of(plan, 1, 0.0)  # refuses a name that nobody knows
    if cluster:
        read_cluster(cluster)

    def all_reduce(link: Link, flat: Tensor) -> Tensor:
        if link.size == 1:
            return flat
        known = _known(cluster, link.size) or (None if link.network is None else _Same(link.network))
        ahead = BUFFERS if link.buffered else 0.0
        nbytes = _about(flat.numel() * flat.element_size())
        return carried(_plan(plan, link.size, nbytes, known, ahead), flat, link)

    def among(size: int) -> str:
        made = {text: _plan(plan, size, nbytes, _known(cluster, size), BUFFERS) for text, nbytes in SIZES.items()}
        if plan != "auto" or size == 1:
            one = made["1 MB"]
            return f"{one.name}: {len(one.rounds)} rounds, {max(one.messages())} messages at most from one worker"
        best = ", ".join(f"{text} by {each.name}" for text, each in made.items())
        return best if cluster else f"{best} if links are even (100 Mbit/s)"

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


def _known(cluster: str, size: int) -> _Same | None:
    if not cluster:
        return None
    path = Path(cluster)
    return _read(cluster, path.stat().st_mtime_ns if path.is_file() else 0, size)


@lru_cache(maxsize=8)
def _read(cluster: str, changed: int, size: int) -> _Same:
    """A cluster's network: one for all workers of a process, so that its plans are made once."""
    return _Same(of_cluster(read_cluster(cluster), size))


def _about(nbytes: int) -> int:
    """The nearest power of two: buckets of about one size share a plan, and finding one takes a while."""
    return 1 << round(math.log2(max(1, nbytes)))


@lru_cache(maxsize=64)
def _plan(text: str, size: int, nbytes: int, known: _Same | None, ahead: float) -> Plan:
    return plan_of(text, size, float(nbytes), None if known is None else known.network, ahead=ahead)


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
                if into.numel():  # mine first, then by rank: each block is summed at one worker, or swapped by two
                    sum_in_one_pass(into, [_part(came[source], span, places) for source in sources])
            for span, source in turn.copies:
                if flat[places(span)].numel():
                    flat[places(span)] = came[source][span]
    return flat.reshape(tensor.shape)


def sum_in_one_pass(into: Tensor, others: list[Tensor]) -> None:
    """Add ``others`` to ``into``, in their order.

    Long ones are read from memory once, and up to seven at a time are added in one pass: ``k + 1`` touches for a sum of
    ``k <= 8``, where adding one after the other takes ``3 (k - 1)``. Sums of 16-bit values are taken in 32 bits and
    rounded once.
    """
    if into.dtype in NARROW and len(others) > 1:
        total = into.to(torch.float32)
        for other in others:
            total += other
        into.copy_(total)
        return
    fast = loops("sums", into, *others) if len(others) > 1 and into.numel() >= WORTH else None
    if fast is not None:
        fast.add_all(into, others)
        return
    for other in others:
        into += other


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
