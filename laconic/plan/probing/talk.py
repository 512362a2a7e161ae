"""One worker's part in an experiment: to send, to hear, and to say what came when.

Worker 0 orders and the others obey: an order and its answer are a message each, of a header and no tensors. A flow is
messages of growing size until the receiver has heard for long enough, or the sender has sent what it may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from laconic.links import kernel
from laconic.links.base import Link
from laconic.links.paced import PacedLink
from laconic.links.tcp import TcpLink
from laconic.packet import Packet, message_nbytes
from laconic.plan.probing.curve import POINTS, thinned
from laconic.plan.probing.schedule import PINGS, WARM_UPS, Pair

STOP = 1  # the channel on which a receiver tells that it has heard enough
ENVELOPE = 16  # bytes around a message
LEAST_CHUNK, MOST_CHUNK = 1 << 10, 1 << 20
FIRST_CHUNK = 1 << 12
CHUNK_SECONDS = 0.02  # that a message should take: a curve has fifty points then, and a late thread idles no link
CHUNKS = 16  # of a thread's part of a flow, at least
STREAMS = 2  # threads that send to one peer: while a message leaves, the next is ready, or the link would idle
UNSENT = 1 << 16  # bytes that may wait in the sender's kernel
SILENCE = 300.0  # seconds for which a worker may be busy with itself: loops are compiled on their first day
GRACE = 30.0  # seconds beyond a probe's own, for which a worker is waited for once links are measured

Order = dict[str, Any]
Answer = dict[str, Any]


def say(link: Link, to: int, what: dict[str, Any]) -> None:
    """Send an order or an answer."""
    link.send([Packet({}, what)], to)


def heard(link: Link, source: int, timeout: float | None = None) -> dict[str, Any]:
    """The next order or answer from a worker."""
    return dict(link.recv(source, timeout)[0].header)


def serve(link: Link, look: Callable[[Order], Answer]) -> None:
    """Do what worker 0 orders until it says that it is over; ``look`` measures this machine."""
    ready(link)
    while True:
        order = heard(link, 0)
        if order["do"] == "end":
            return
        link.timeout = float(order.get("patience", link.timeout))
        say(link, 0, obey(link, order, look))


def ready(link: Link) -> None:
    """Prepare this worker's connections for flows that can be stopped, and for peers that are long silent."""
    link.timeout = max(link.timeout, SILENCE)
    if isinstance(link, TcpLink):
        for peer in link.peers():
            kernel.keep_little_unsent(link.connection(peer), UNSENT)


def obey(link: Link, order: Order, look: Callable[[Order], Answer]) -> Answer:
    """Carry out one order; its answer."""
    if order["do"] == "look":
        return look(order)
    if order["do"] == "ping":
        return ping(link, order["peer"], order["leads"], order["seconds"])
    return flows(link, order["send"], order["hear"], order["nbytes"], order["seconds"])


# -- latency --------------------------------------------------------------------------------------------------------


def ping(link: Link, peer: int, leads: bool, seconds: float) -> Answer:
    """Small messages there and back; the one who leads knows, by each one's own clock, how long each took.

    Once ``seconds`` are over none is begun. The first two are warm-ups, where there are others.
    """
    there: list[float] = []
    back: list[float] = []
    around: list[float] = []
    if not leads:
        while not heard(link, peer).get("end"):
            came = link.now()
            say(link, peer, {"came": came, "left": link.now()})
        return {"there": there, "back": back, "around": around}
    begun = link.now()
    while not around or (len(around) < PINGS and link.now() - begun < seconds):
        left = link.now()
        say(link, peer, {"left": left})
        answer, came = heard(link, peer), link.now()
        there.append(answer["came"] - left)
        back.append(came - answer["left"])
        around.append((came - left) - (answer["left"] - answer["came"]))
    say(link, peer, {"end": True})
    first = min(WARM_UPS, len(around) - 1)
    return {"there": there[first:], "back": back[first:], "around": around[first:]}


# -- flows ----------------------------------------------------------------------------------------------------------


def flows(link: Link, to: list[int], sources: list[int], nbytes: int, seconds: float) -> Answer:
    """Send to some and hear others, all at once; what came when, and what was sent, by the peer's rank."""
    halted: set[int] = set()
    before = {peer: wire(link, peer) for peer in to}
    hearing = {source: link.lane(f"hear {source}").start(listen, link, source, seconds) for source in sources}
    stopping = link.lane("stops").start(await_stops, link, to, halted) if to else None
    sending = {
        peer: [link.lane(f"send {peer} {i}").start(pour, link, peer, nbytes // STREAMS, halted) for i in range(STREAMS)]
        for peer in to
    }
    points = max(12, min(POINTS, 256 // max(1, len(sources))))
    came = {str(source): thinned(handle.result(), points) for source, handle in hearing.items()}
    sent = {}
    for peer, handles in sending.items():
        nbytes_sent, after = sum(handle.result() for handle in handles), wire(link, peer)
        again = after.resent - before[peer].resent
        sent[str(peer)] = {"nbytes": nbytes_sent, "again": again, "frames": after.frames}
    if stopping is not None:
        stopping.result()
    return {"came": came, "sent": sent}


def pour(link: Link, to: int, most: int, halted: set[int]) -> int:
    """Send until told to stop, or ``most`` bytes; messages of a size that takes a few milliseconds each. Bytes sent."""
    noise = torch.randint(0, 256, (min(MOST_CHUNK, max(LEAST_CHUNK, most // CHUNKS)),), dtype=torch.uint8)
    chunk, sent = min(FIRST_CHUNK, noise.numel()), 0
    while to not in halted:
        message = [Packet({"x": noise[:chunk]})]
        nbytes = ENVELOPE + message_nbytes(message)
        if sent + nbytes > most:
            break
        begun = link.now()
        link.send(message, to)
        sent += nbytes
        pace = STREAMS * CHUNK_SECONDS / max(1e-6, link.now() - begun)
        chunk = int(min(noise.numel(), max(LEAST_CHUNK, chunk * min(2.0, max(0.5, pace)))))
    say(link, to, {"end": True})
    return sent


def listen(link: Link, source: int, seconds: float) -> list[tuple[float, float]]:
    """What came from a worker until it ended, as moments and bytes; after ``seconds`` it is told to stop."""
    curve: list[tuple[float, float]] = []
    nbytes, told, running = 0, False, STREAMS
    while running:
        message = link.recv(source)
        if message[0].header.get("end"):
            running -= 1
            continue
        nbytes += ENVELOPE + message_nbytes(message)
        curve.append((link.now(), float(nbytes)))
        if not told and curve[-1][0] - curve[0][0] >= seconds:
            told = True
            link.send([Packet({})], source, STOP)
    if not told:
        link.send([Packet({})], source, STOP)
    return curve


def await_stops(link: Link, peers: Iterable[int], halted: set[int]) -> None:
    """Note who has heard enough, until all have."""
    left = set(peers)
    while left:
        peer, _ = link.recv_any(sorted(left), channel=STOP)
        left.remove(peer)
        halted.add(peer)


def wire(link: Link, peer: int) -> kernel.Connection:
    """What the kernel says of the connection to a peer; of a paced link's nothing, for its rates are of messages."""
    if isinstance(link, TcpLink) and not isinstance(link, PacedLink):
        return kernel.connection(link.connection(peer))
    return kernel.Connection(0, 0, 0, 0)


def partners(pairs: Iterable[Pair], rank: int) -> tuple[list[int], list[int]]:
    """To whom a worker sends, and whom it hears, in an experiment of these flows."""
    return [b for a, b in pairs if a == rank], [a for a, b in pairs if b == rank]
