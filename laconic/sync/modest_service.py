"""MoDeST's protocol under way: a thread beside training that hears, answers and sends what a :class:`Node` says.

It is the one live object of the method. Its worker and it talk by messages to oneself on the link, so that a simulated
link orders them as it does all others, and neither touches what the other holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from laconic.errors import ConfigError, PacketError, PeerError, PeerLost, PeerTimeout
from laconic.exchange.views import View, read_view, view_packet
from laconic.links.background import Handle
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.sync.modest_node import CARRIERS, KINDS, Adopt, Model, Node, Over, Send

LONG = 1e6  # seconds: for ever
CHANNELS = 100  # services of one link that follow one another are not handed one another's messages
MODELS = ("trained", "model", "last")
FIELDS: dict[str, dict[str, type]] = {
    "pong": {"busy": bool, "held": int},
    "trained": {"number": int},
    "end": {"stays": bool},
}

_begun: WeakKeyDictionary[Link, int] = WeakKeyDictionary()  # services on each link, which all its workers begin alike


class Service:
    """The protocol under way at this worker, on a thread of its own; a checkpoint leaves it out."""

    transient = True

    def __init__(self, link: Link, node: Node, like: Sequence[Tensor]) -> None:
        _begun[link] = session = _begun.get(link, 0) + 1
        self.outside, self.inside = 1 + 2 * (session % CHANNELS), 2 + 2 * (session % CHANNELS)
        lane = link.lane(f"modest {session}")
        self.handle: Handle = lane.start(serve, link, node, like, self.inside, self.outside)

    def tell(self, link: Link, kind: str, round: int = 0, model: Model | None = None) -> None:
        """Say something to the service, as its own worker."""
        link.send([Packet({}, {"kind": kind, "round": round}), *(model or [])], link.rank, self.outside)


def next_word(service: Service, link: Link, patience: float) -> tuple[dict[str, Any], Model]:
    """What the service says next to its own worker.

    Raises: PeerTimeout; what the service failed by.
    """
    _, message = link.recv_any([link.rank], patience, service.inside)
    words = message[0].header
    if words["kind"] == "failed":
        service.handle.result()
    return words, message[1:]


# -- the service's thread ------------------------------------------------------------------------------------


def serve(link: Link, node: Node, shapes: list[Tensor], inside: int, outside: int) -> View:
    """Run ``node`` on ``link`` until it is done; what its worker is told goes to channel ``inside``."""
    try:
        return _served(link, node, shapes, inside, outside)
    except ConfigError:  # the link was closed
        return node.view
    except BaseException:
        link.send([Packet({}, {"kind": "failed"})], link.rank, inside)
        raise


def _served(link: Link, node: Node, shapes: list[Tensor], inside: int, outside: int) -> View:
    while True:
        for action in node.out:
            if isinstance(action, Send):
                packets = [view_packet(action.view)] if action.view is not None else []
                message = [Packet({}, action.words), *packets, *action.model]
                lane = "modest models" if action.model else "modest words"  # a question does not wait for a model
                link.lane(lane).start(post, link, message, action.to, outside)
            elif isinstance(action, Adopt):
                words = {"kind": "adopt", "round": action.round, "among": action.among, "view": node.view}
                link.send([Packet({}, words), *action.model], link.rank, inside)
            elif isinstance(action, Over):
                if action.stopped:
                    for lane in ("modest models", "modest words"):  # what was promised still leaves
                        link.lane(lane).start(int).result()
                link.send([Packet({}, {"kind": "stopped" if action.stopped else "over"})], link.rank, inside)
                if action.stopped:
                    return node.view
        node.out = []
        deadline = node.deadline
        try:
            patience = LONG if deadline is None else max(0.0, deadline - link.now())
            source, message = link.recv_any(None, patience, outside)
        except PeerTimeout:
            node.tick(link.now())
        except PeerLost as lost:
            node.lost(lost.peer, link.now())
        else:
            _heard(link, node, source, message, shapes)
            deadline = node.deadline
            if deadline is not None and link.now() >= deadline:
                node.tick(link.now())


def _heard(link: Link, node: Node, source: int, message: Message, shapes: list[Tensor]) -> None:
    now = link.now()
    if source == link.rank:
        words = message[0].header
        if words["kind"] == "mine" and words["round"] == node.adopted:
            node.trained(message[1:], now)
        elif words["kind"] == "finish":
            node.end(now)
        elif words["kind"] == "leave":
            node.leave(now)
        elif words["kind"] == "lost":
            node.lost(words["peer"], now)
        return
    try:
        words, view, model = read(message, link.size, shapes)
    except PacketError as error:
        raise PacketError(f"worker {link.rank}: from worker {source}: {error}") from None
    node.hear(source, words, model, view, now)


def post(link: Link, message: Message, to: int, outside: int) -> None:
    """Send, and report to the service who is gone: no peer's end is the end for the others."""
    try:
        link.send(message, to, outside)
    except PeerError as error:
        link.send([Packet({}, {"kind": "lost", "peer": error.peer})], link.rank, outside)


def read(message: Message, size: int, shapes: Sequence[Tensor]) -> tuple[dict[str, Any], View | None, Model]:
    """The words, the view and the model of a message, checked before anything is done with them.

    Raises: PacketError.
    """
    words = dict(message[0].header) if message else {}
    kind = words.get("kind")
    if kind not in KINDS:
        raise PacketError(f"modest: {str(kind)[:40]!r} is nothing that is said; do all workers run one method?")
    wanted = {"round": int, "counter": int} | FIELDS.get(kind, {})
    for name, of in wanted.items():
        if type(words.get(name)) is not of or (of is int and not 0 <= words[name] < 1 << 31):
            raise PacketError(f"modest: {kind} says {name}={str(words.get(name))[:40]}")
    if kind in (*CARRIERS, "end"):
        ranks = words.get("among")
        if not isinstance(ranks, list) or not all(type(rank) is int and 0 <= rank < size for rank in ranks):
            raise PacketError(f"modest: {kind} names {str(ranks)[:40]} among {size} workers")
    rest = message[1:]
    view = read_view(rest.pop(0), size) if kind in CARRIERS and rest else None
    if len(rest) != (len(shapes) if kind in MODELS else 0):
        raise PacketError(f"modest: {kind} came with {len(rest)} tensors, the model here has {len(shapes)}")
    for packet, like in zip(rest, shapes, strict=False):
        check_shape(packet, like)
    return words, view, rest
