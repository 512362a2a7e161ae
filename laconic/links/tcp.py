"""Messages over TCP: a connection for each pair of workers, and a thread that reads each.

Reading never waits for the program, so two workers that send to each other at once cannot block one another, and
a connection that closes is known at once. Each message travels in an envelope of 16 bytes: its length and channel, and
the moment it may be delivered (only :mod:`laconic.links.paced` sets one).
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from laconic.errors import ConfigError, PacketError, PeerError, PeerLost, PeerTimeout
from laconic.links.base import PATIENCE, Link
from laconic.links.mailbox import CHANNELS, Mailbox
from laconic.packet import MAX_MESSAGE, Message, from_bytes, raw_bytes, to_bytes

ENVELOPE = struct.Struct("<QQ")  # bytes that follow (channel << 48 above), nanoseconds of the monotonic clock (0: now)
CHANNEL_BIT = 48
PING, PONG, BYE = (1 << 64) - 1, (1 << 64) - 2, (1 << 64) - 3  # lengths that no message has
GLANCE = 0.2  # seconds between looks at the other peers while a collective waits for one
HELLO = struct.Struct("<8sI16s")
HELLO_MAGIC = b"laconic1"
ROLL_CALL = 3.0


class Peer:
    """One connection, and what came over it."""

    def __init__(
        self,
        rank: int,
        connection: socket.socket,
        mailbox: Mailbox | None = None,
        latest: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rank = rank
        self.latest = latest  # the last moment that a message may be held back to
        self.connection = connection
        self.mailbox = mailbox if mailbox is not None else Mailbox(rank)
        self.inbox: queue.SimpleQueue[tuple[torch.Tensor, int] | None] = queue.SimpleQueue()
        self.sending = threading.Lock()
        self.heard = time.monotonic()  # the last moment at which any byte came
        self.answered = threading.Event()
        self.lost: str | None = None
        self.lost_at = 0.0
        self.round = 0  # how many native collectives it had begun when it last answered
        self.left = False  # it said goodbye: it is gone, but not because something broke

    def read(self, round_here: Callable[[], int] = lambda: 0) -> None:
        """Read messages until the connection ends; runs on a thread of its own."""
        try:
            while True:
                length, due = ENVELOPE.unpack(raw_bytes(self._take(ENVELOPE.size)))
                if length == PING:
                    with self.sending:
                        self.connection.sendall(ENVELOPE.pack(PONG, round_here()))
                elif length == PONG:
                    self.round = due
                    self.answered.set()
                elif length == BYE:
                    self.left = True
                else:
                    channel, nbytes = length >> CHANNEL_BIT, length & ((1 << CHANNEL_BIT) - 1)
                    if channel >= CHANNELS or nbytes > MAX_MESSAGE:
                        raise PacketError(f"it announced a message of {length} bytes")
                    if due > self.latest():
                        raise PacketError("it announced a message for a moment that this link would not set")
                    body = self._take(nbytes)
                    if channel:
                        self.mailbox.put(channel, self.rank, (body, due), due)
                    else:
                        self.inbox.put((body, due))
        except (OSError, PacketError, MemoryError, RuntimeError) as error:  # torch says RuntimeError for no memory
            self.lost_at = time.monotonic()
            self.lost = str(error) or type(error).__name__
            self.inbox.put(None)
            self.mailbox.lose(self.rank, self.lost)

    def _take(self, nbytes: int) -> torch.Tensor:
        buffer = torch.empty(nbytes, dtype=torch.uint8)
        view = raw_bytes(buffer)
        at = 0
        while at < nbytes:
            got = self.connection.recv_into(view[at:], min(nbytes - at, 1 << 20))
            if not got:
                raise ConnectionResetError("its connection closed")
            at += got
            self.heard = time.monotonic()
        return buffer


class TcpLink(Link):
    """A link over TCP between processes, on one machine or many.

    ``store`` is torch's key-value store, by which the workers find each other; only those that read the run's
    secret from it are let in.

    Raises: PeerTimeout, naming the peer, if one has not come within ``timeout`` seconds; ConfigError for a ``host`` (by
            default :func:`own_address`) that is no address of this machine.
    """

    _hold = 0  # nanoseconds for which a message may be held back; only a paced link holds any
    _round = 0  # native collectives begun, which a roll call tells the peers

    def __init__(self, rank: int, size: int, store: Any, *, timeout: float = PATIENCE, host: str | None = None) -> None:
        super().__init__(rank, size, timeout)
        self._peers: dict[int, Peer] = {}
        self._closed = False
        self._store = store  # worker 0's may be the server, which others still ask when worker 0 has met everyone
        self._together = False  # in a collective, where any one worker's end is the end for all
        if size > 1:
            self._meet(store, host or own_address())

    # -- meeting ---------------------------------------------------------------------------------------------

    def _meet(self, store: Any, host: str) -> None:
        try:
            listener = socket.create_server((host, 0), backlog=self.size)
        except (OSError, UnicodeError) as error:  # UnicodeError: what can be no name at all
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"worker {self.rank}: {host} is no address of this machine: {why}; set LACONIC_ADDRESS to one"
            ) from None
        listener.settimeout(self.timeout)
        try:
            if self.rank == 0:
                store.set("laconic/secret", secrets.token_bytes(16).hex())
            store.set(f"laconic/address/{self.rank}", f"{host} {listener.getsockname()[1]}")
            secret = bytes.fromhex(store.get("laconic/secret").decode())
            for other in range(self.rank):
                address, port = store.get(f"laconic/address/{other}").decode().rsplit(" ", 1)
                connection = socket.create_connection((address, int(port)), timeout=self.timeout)
                connection.sendall(HELLO.pack(HELLO_MAGIC, self.rank, secret))
                self._join(other, connection)
            while len(self._peers) < self.size - 1:
                connection, _ = listener.accept()
                connection.settimeout(5.0)
                with contextlib.suppress(OSError):  # a stranger who hangs up is not our concern
                    magic, other, offered = HELLO.unpack(_exactly(connection, HELLO.size))
                    if magic == HELLO_MAGIC and secrets.compare_digest(offered, secret) and other < self.size:
                        self._join(other, connection)
                        continue
                connection.close()
        except (OSError, RuntimeError) as error:  # the store's own timeout is a RuntimeError
            missing = next(p for p in range(self.size) if p != self.rank and p not in self._peers)
            raise PeerTimeout(
                f"worker {self.rank}: worker {missing} did not join within {self.timeout:g} s ({error})", missing
            ) from None
        finally:
            listener.close()

    def _join(self, rank: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = struct.pack("ll", int(self.timeout), int(self.timeout % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        peer = self._peers[rank] = Peer(rank, connection, self._mailbox, self._latest)
        reading = threading.Thread(
            target=peer.read, args=(lambda: self._round,), name=f"laconic-read-{rank}", daemon=True
        )
        reading.start()

    # -- messages --------------------------------------------------------------------------------------------

    def send(self, message: Message, to: int, channel: int = 0) -> None:
        """Send a message; returns once the operating system (or the paced link) has taken all of it."""
        if to == self.rank:
            self._to_myself(message, channel)
            return
        asked = time.monotonic_ns()
        with self.meter.compressing():
            body = to_bytes(message)
        nbytes = ENVELOPE.size + body.numel()
        left, due = self._departure(to, nbytes, asked)
        peer = self._peers[to]
        try:
            with peer.sending:
                peer.connection.sendall(ENVELOPE.pack(channel << CHANNEL_BIT | body.numel(), due))
                peer.connection.sendall(raw_bytes(body))
        except BlockingIOError:
            peer.connection.close()  # half a message is out: the rest of this connection means nothing
            raise PeerTimeout(f"worker {self.rank}: worker {to} took nothing for {self.timeout:g} s", to) from None
        except OSError as error:
            raise PeerLost(f"worker {self.rank}: worker {to} is gone: {peer.lost or error}", to) from None
        self.meter.sent(nbytes)
        if left:
            with self._waiting():
                _sleep_until(left)

    def recv(self, source: int, timeout: float | None = None) -> Message:
        """The next message from ``source``; bytes still coming are not silence."""
        patience = self.timeout if timeout is None else timeout
        peer = self._peers[source]
        with self._waiting():
            asked = time.monotonic()
            while True:
                left = max(asked, peer.heard) + patience - time.monotonic()
                try:
                    item = peer.inbox.get(timeout=max(0.001, min(left, GLANCE) if self._together else left))
                    break
                except queue.Empty:
                    if self._together and self._crashed():
                        raise PeerLost(f"worker {self.rank}: worker {source} does not go on", source) from None
                    if time.monotonic() - max(asked, peer.heard) >= patience:
                        raise PeerTimeout(
                            f"worker {self.rank}: nothing from worker {source} for {patience:g} s", source
                        ) from None
            if item is None:
                peer.inbox.put(None)
                raise PeerLost(f"worker {self.rank}: worker {source} is gone: {peer.lost}", source)
        return self._opened(source, item)

    def _opened(self, source: int, body: Any) -> Message:
        raw, due = body
        nbytes = ENVELOPE.size + raw.numel()
        ready = self._arrival(source, nbytes, due) if due else 0
        with self.meter.compressing():
            try:
                message = from_bytes(raw)
            except PacketError as error:
                raise PacketError(f"worker {self.rank}: from worker {source}: {error}") from None
        if ready:
            with self._waiting():
                _sleep_until(ready)
        self.meter.received(nbytes)
        return message

    def connection(self, peer: int) -> socket.socket:
        """The socket to a peer, for those who ask the kernel about it: what is read or written there is lost."""
        return self._peers[peer].connection

    def _latest(self) -> int:
        return time.monotonic_ns() + self._hold if self._hold else 0

    def _departure(self, to: int, nbytes: int, asked: int) -> tuple[int, int]:
        """When my end has sent it, and when it may be delivered; nanoseconds of the monotonic clock, 0 for now."""
        return 0, 0

    def _arrival(self, source: int, nbytes: int, due: int) -> int:
        """When my end has taken in all of it."""
        return due

    # -- collectives -----------------------------------------------------------------------------------------

    def all_gather(self, message: Message) -> list[Message]:
        """Everyone's message, in rank order, mine as it is."""
        with self._naming():
            return super().all_gather(message)

    def all_to_all(self, messages: Sequence[Message]) -> list[Message]:
        """What each worker has for me, in rank order, mine as it is."""
        with self._naming():
            return super().all_to_all(messages)

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of everyone's ``tensor``, by a ring."""
        with self._naming():
            return super().all_reduce(tensor)

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        """Name who is gone: in a ring that may be another than the neighbour, who waits in vain just as I do."""
        if self._together:
            yield
            return
        self._together = True
        try:
            yield
        except PeerError as error:
            crashed = self._crashed()
            if crashed is not None:
                raise PeerLost(
                    f"worker {self.rank}: worker {crashed.rank} is gone: {crashed.lost}", crashed.rank
                ) from error
            missing = self.roll_call() if isinstance(error, PeerTimeout) else {}
            if missing and error.peer not in missing:
                peer, why = min(missing.items())
                raise PeerTimeout(f"worker {self.rank}: nothing from worker {peer}: {why}", peer) from error
            raise
        finally:
            self._together = False

    def _crashed(self) -> Peer | None:
        """The peer that was the first to go without a goodbye."""
        crashed = [peer for peer in self._peers.values() if peer.lost and not peer.left]
        return min(crashed, key=lambda peer: peer.lost_at, default=None)

    def together(self) -> contextlib.AbstractContextManager[None]:
        """Around rounds of messages that end for all workers when they end for one: names who is gone."""
        return self._naming()

    # -- faults ----------------------------------------------------------------------------------------------

    def gone(self, peer: int) -> bool:
        """Whether a peer's connection has ended without a goodbye."""
        there = self._peers.get(peer)
        return there is not None and there.lost is not None and not there.left

    def roll_call(self) -> dict[int, str]:
        """The peers that are gone or do not answer within 3 s, and why; by the connections' own threads."""
        missing: dict[int, str] = {}
        for peer in self._peers.values():
            peer.answered.clear()
            try:
                if peer.sending.acquire(timeout=ROLL_CALL):
                    try:
                        peer.connection.sendall(ENVELOPE.pack(PING, 0))
                    finally:
                        peer.sending.release()
            except OSError as error:
                missing[peer.rank] = peer.lost or str(error)
        deadline = time.monotonic() + ROLL_CALL
        for peer in self._peers.values():
            if peer.rank in missing:
                continue
            while not peer.answered.wait(0.02) and not peer.lost and time.monotonic() < deadline:
                pass
            if not peer.answered.is_set():
                missing[peer.rank] = peer.lost or f"no answer for {ROLL_CALL:g} s"
        return missing

    def close(self) -> None:
        """Close every connection; what was sent still arrives."""
        super().close()
        if self._closed:
            return
        self._closed = True
        for peer in self._peers.values():
            if peer.sending.acquire(blocking=False):  # else a message is half out, and a goodbye would be part of it
                with contextlib.suppress(OSError):
                    peer.connection.send(ENVELOPE.pack(BYE, 0), socket.MSG_DONTWAIT)
                peer.sending.release()
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.connection.close()


def own_address() -> str:
    """The address that peers reach this machine by: of ``LACONIC_ADDRESS``, or of the route to ``MASTER_ADDR``.

    Raises: ConfigError if there is no route. That the address is this machine's shows when a link listens at it.
    """
    address = os.environ.get("LACONIC_ADDRESS")
    if address:
        return address
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # a datagram socket sends nothing here; it only looks up the route
            return str(probe.getsockname()[0])
        except OSError as error:
            raise ConfigError(f"no route to MASTER_ADDR {master}: {error}; set LACONIC_ADDRESS to my address") from None


def _exactly(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        got = connection.recv(nbytes - len(data))
        if not got:
            raise ConnectionResetError("it hung up")
        data += got
    return data


def _sleep_until(moment: int) -> None:
    while (left := moment - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)
