"""Tokens passed from neighbour to neighbour: each carries a model, and is issued again if its holder is lost.

Once a round neighbours send each other a few words, and with them a token that is moving. Who passed one on keeps a
copy until its receiver has passed it on too; should that be lost meanwhile, the token goes on from the copy.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor
from laconic.errors import PacketError, PeerLost
from laconic.exchange.base import Tensors
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape, need
from laconic.state import checkpointed


@checkpointed
class Token(NamedTuple):
    """A model on its way: ``number`` names it, ``hops`` counts its visits, ``visits`` is where they were (x).

    ``epoch`` counts how often it was issued again; ``source`` is who sent it here, and has a copy. ``weights`` are
    empty while it is trained: then they are the model's.
    """

    number: int
    hops: int
    epoch: int
    source: int
    visits: Tensor
    weights: list[Tensor]


@checkpointed
class Holding(NamedTuple):
    """``here`` are the tokens at this worker; ``kept`` copies of those sent on, and ``sent_to`` to whom they went.

    ``epochs``: the newest issue seen of each token. ``degrees``: the neighbours that are there still, and how many
    neighbours each has.
    """

    here: dict[int, Token]
    kept: dict[int, Token]
    sent_to: dict[int, int]
    epochs: dict[int, int]
    degrees: dict[int, int]


def pass_on(holding: Holding, leaving: dict[int, Token], like: Tensors, compressor: Compressor, link: Link) -> Holding:
    """One round with the neighbours: send each its token, if any, and take what they send.

    Raises: PeerLost once no neighbour is left; PeerTimeout, PacketError.
    """
    kept = holding.kept | {token.number: token._replace(source=link.rank) for token in leaving.values()}
    sent_to = holding.sent_to | {token.number: to for to, token in leaving.items()}
    passed: dict[int, list[int]] = {}
    for token in leaving.values():
        passed.setdefault(token.source, []).append(token.number)
    lost = _tell(holding.degrees, leaving, passed, compressor, link)
    after = holding._replace(here=dict(holding.here), kept=kept, sent_to=sent_to, epochs=dict(holding.epochs))
    after = after._replace(degrees=dict(holding.degrees))
    for source in sorted(set(holding.degrees) - lost):
        try:
            message = link.recv(source)
        except PeerLost:
            lost.add(source)
            continue
        _hear(message, source, after, like, compressor, link)
    for peer in sorted(lost):
        del after.degrees[peer]
        _issue_again(peer, after, link.rank)
    if lost and not after.degrees:
        raise PeerLost(f"worker {link.rank}: no neighbour in the graph is left", min(lost))
    return after


def _tell(
    degrees: dict[int, int],
    leaving: dict[int, Token],
    passed: dict[int, list[int]],
    compressor: Compressor,
    link: Link,
) -> set[int]:
    """Send to every neighbour; those that are gone."""
    lost = set()
    # Tokens first: who keeps a copy is told that its token went on once it has.
    for to in sorted(degrees, key=lambda to: (to not in leaving, to)):
        message = [Packet({}, {"degree": len(degrees), "passed": passed.get(to, [])})]
        if to in leaving:
            token = leaving[to]
            with link.meter.compressing():
                body = [compressor.compress(w, compressor.init(w))[0] for w in token.weights]
            header = {"token": token.number, "hops": token.hops, "epoch": token.epoch}
            message += [Packet({"visits": token.visits}, header), *body]
        try:
            link.send(message, to)
        except PeerLost:
            lost.add(to)
    return lost


def _hear(message: Message, source: int, into: Holding, like: Tensors, compressor: Compressor, link: Link) -> None:
    """Note what a neighbour says in ``into``, whose dictionaries are this round's own."""
    header: dict[str, Any] = message[0].header if message else {}
    degree, passed = header.get("degree"), header.get("passed")
    if type(degree) is not int or not 1 <= degree < link.size or not isinstance(passed, list) or not _whole(passed):
        raise PacketError(f"worker {source} sent {str(header)[:80]}, wanted its number of neighbours and its notes")
    token = _opened(message, source, len(into.epochs), like, compressor, link) if len(message) > 1 else None
    into.degrees[source] = degree
    for number in passed:
        if into.sent_to.get(number) == source:
            del into.sent_to[number], into.kept[number]
    # An older issue of one that was thought lost, and came out after all, goes no further.
    if token is not None and token.epoch >= into.epochs[token.number]:
        into.here[token.number] = token
        into.epochs[token.number] = token.epoch


def _whole(said: list[Any]) -> bool:
    return all(type(number) is int for number in said)


def _opened(message: Message, source: int, count: int, like: Tensors, compressor: Compressor, link: Link) -> Token:
    lead = message[1].header if len(message) == len(like) + 2 else {}
    numbers = [lead.get(key) for key in ("token", "hops", "epoch")]
    number, hops, epoch = (n if type(n) is int else -1 for n in numbers)
    if not 0 <= number < count or hops < 0 or epoch < 0:
        raise PacketError(f"worker {source} sent {len(message)} packets that are no token: {str(lead)[:80]}")
    visits = need(message[1], "visits", (torch.float32,), link.size).cpu().clone()
    if not bool((visits > 0).all()) or not bool(torch.isfinite(visits).all()):
        raise PacketError(f"worker {source} sent a token whose visits are not all positive")
    weights = []
    with link.meter.compressing():
        for packet, param in zip(message[2:], like, strict=True):
            check_shape(packet, param)
            weights.append(compressor.decompress(packet.to(param.device)).clone())
    return Token(number, hops, epoch, source, visits, weights)


def _issue_again(peer: int, into: Holding, me: int) -> None:
    for number in [n for n, to in into.sent_to.items() if to == peer]:
        copy = into.kept.pop(number)
        del into.sent_to[number]
        epoch = into.epochs[number] = max(copy.epoch, into.epochs[number]) + 1
        into.here[number] = copy._replace(epoch=epoch, source=me)
        warnings.warn(
            f"worker {me}: worker {peer} is gone, and token {number} with it after {copy.hops} visits; it goes on from "
            f"the copy here",
            stacklevel=2,
        )
