"""A worker's end of the network: send, receive, and the collectives made of them.

A link serves one fixed set of peers. Its calls block; whoever wants overlap runs a whole exchange on the link's
lane (:mod:`laconic.links.background`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from laconic.errors import ConfigError, PacketError
from laconic.links.background import Handle, Lane
from laconic.links.mailbox import CHANNELS, Mailbox
from laconic.links.meter import Meter
from laconic.packet import Message, Packet, need

if TYPE_CHECKING:
    from laconic.links.network import Network

SMALL = 1 << 13  # bytes under which an all-reduce is one round of whole tensors: latency costs more than volume
PATIENCE = 120.0


class Link:
    """My end of the network: ``rank`` of ``size`` workers, and a ``meter``.

    A subclass gives :meth:`send` and :meth:`recv` (and :meth:`close`); the collectives are built from these, and
    a subclass whose engine has native ones overrides them. All workers must call the collectives in one order.
    ``exact``: the meter counts what is sent, and does not reckon it.
    ``buffered``: what was sent may still be on its way when :meth:`send` returns.
    """

    exact = True
    network: Network | None = None  # what it is held to, or runs on, where that is known
    buffered = True

    def __init__(self, rank: int, size: int, timeout: float = PATIENCE) -> None:
        if not 0 <= rank < size:
            raise ConfigError(f"link: rank {rank} of {size} workers; ranks count from 0")
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self.meter = Meter()
        self._lanes: dict[str, Lane] = {}
        self._mailbox = Mailbox(rank)

    def send(self, message: Message, to: int, channel: int = 0) -> None:
        """Send a message to one peer, or on a channel above 0 to myself: that crosses nothing, and is not counted.

        Channel 0 is read by :meth:`recv`, the others by :meth:`recv_any`.

        Raises: PeerTimeout if it takes none of it for ``timeout`` seconds; PeerLost if it is gone.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot send")

    def recv(self, source: int, timeout: float | None = None) -> Message:
        """The next message from one peer; ``timeout`` seconds of silence (default: the link's) end the wait.

        Raises: PeerTimeout, PeerLost, PacketError.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot receive")

    def recv_any(
        self, sources: Sequence[int] | None = None, timeout: float | None = None, channel: int = 1
    ) -> tuple[int, Message]:
        """Who spoke next on ``channel``, of ``sources`` (default: all, and myself), and what it said.

        One thread reads a channel. ``timeout`` seconds without a message (default: the link's) end the wait. A peer
        that is gone is reported once on each channel, after its last message: the others are heard on. When all of
        ``sources`` are gone, every call says so.

        Raises: PeerTimeout, PeerLost, PacketError; ConfigError once the link is closed.
        """
        wanted = range(self.size) if sources is None else sources
        with self._waiting():
            source, body = self._mailbox.take(channel, wanted, self.timeout if timeout is None else timeout)
        return source, body if source == self.rank else self._opened(source, body)

    def gone(self, peer: int) -> bool:
        """Whether a peer is known to be gone though it had not finished; a link that cannot tell says no."""
        return False

    def _opened(self, source: int, body: Any) -> Message:
        """The message in what lay in the mailbox, counted by the meter."""
        raise NotImplementedError(f"{type(self).__name__} cannot receive")

    def _to_myself(self, message: Message, channel: int) -> None:
        if not 0 < channel < CHANNELS:
            raise ConfigError(f"worker {self.rank}: to myself I send on channels 1 to {CHANNELS - 1}, got {channel}")
        self._mailbox.put(channel, self.rank, message)

    def close(self) -> None:
        """Let go of the network; safe to call twice."""
        self._mailbox.close()
        for lane in list(self._lanes.values()):
            lane.close()

    def now(self) -> float:
        """Seconds on this link's clock, from any moment on: what a method decides by time, it decides by this.

        A simulated link's clock is virtual, and so is every time that its meter shows.
        """
        return time.perf_counter()

    def compute(self, seconds: float) -> None:
        """Say that what is computed next takes so long; a simulated link's clock goes on by it, any other by itself."""

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- overlap ---------------------------------------------------------------------------------------------

    def start(self, run: Callable[..., Any], *args: Any) -> Handle:
        """Run ``run(*args)`` on this link's lane, after all that was started before, and return a handle at once.

        Exchanges started on one link run one at a time in the order started, so if every worker starts them in
        the same order their messages cannot be taken for one another's.
        """
        return self.lane().start(run, *args)

    def lane(self, name: str = "") -> Lane:
        """The lane of that name, made when it is first asked for; what runs on one does not wait for another.

        What runs beside the lane of exchanges, ``""``, may only send on channels of its own.
        """
        if name not in self._lanes:
            self._lanes[name] = Lane(self.meter)
        return self._lanes[name]

    def in_turn(self, run: Callable[..., Any], *args: Any) -> Any:
        """``run(*args)`` once what was started on the lane has ended: side by side they would mix up their messages."""
        if "" not in self._lanes or threading.current_thread() is self._lanes[""].thread:
            return run(*args)
        return self.start(run, *args).result()

    def _waiting(self) -> AbstractContextManager[None]:
        here = threading.current_thread()
        on_lane = any(here is lane.thread for lane in list(self._lanes.values()))
        return nullcontext() if on_lane else self.meter.waiting()

    # -- collectives -----------------------------------------------------------------------------------------

    def peers(self) -> list[int]:
        """The other ranks, the next one first: workers that start with different peers do not queue at one."""
        return [(self.rank + hop) % self.size for hop in range(1, self.size)]

    def all_gather(self, message: Message) -> list[Message]:
        """Everyone's message, in rank order, mine as it is."""
        heard: list[Message] = [message] * self.size
        for to in self.peers():
            self.send(message, to)
        for source in reversed(self.peers()):
            heard[source] = self.recv(source)
        return heard

    def all_to_all(self, messages: Sequence[Message]) -> list[Message]:
        """What each worker has for me, in rank order, mine as it is; ``messages[rank]`` is what I have for each."""
        heard = list(messages)
        for to in self.peers():
            self.send(messages[to], to)
        for source in reversed(self.peers()):
            heard[source] = self.recv(source)
        return heard

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of everyone's ``tensor``, the same bits on every worker; ``tensor`` itself becomes the sum.

        Wire: a ring, ``2 (size-1)/size`` times the tensor's bytes out of each worker; under 8 kB one round of
              whole tensors.
        """
        if self.size == 1:
            return tensor
        flat = tensor.detach().reshape(-1)
        if flat.numel() * flat.element_size() <= SMALL:
            heard = [only(m, flat) for m in self.all_gather([Packet({"x": flat})])]
            return tensor.copy_(_sum(heard).reshape(tensor.shape))
        parts = list(flat.clone().tensor_split(self.size))
        right, left = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for step in range(self.size - 1):  # reduce-scatter: my part grows as it passes
            out, into = (self.rank - step) % self.size, (self.rank - step - 1) % self.size
            self.send([Packet({"x": parts[out]})], right)
            parts[into] += only(self.recv(left), parts[into])
        for step in range(self.size - 1):  # all-gather: the finished parts go round
            out, into = (self.rank + 1 - step) % self.size, (self.rank - step) % self.size
            self.send([Packet({"x": parts[out]})], right)
            parts[into] = only(self.recv(left), parts[into])
        return tensor.copy_(torch.cat(parts).reshape(tensor.shape))

    def broadcast(self, tensors: Sequence[Tensor], root: int = 0) -> list[Tensor]:
        """``root``'s tensors, on every worker; the others' are copied into and returned."""
        if self.rank == root:
            message = [Packet({"x": t.detach().reshape(-1)}) for t in tensors]
            for to in self.peers():
                self.send(message, to)
        else:
            message = self.recv(root)
            if len(message) != len(tensors):
                raise PacketError(
                    f"worker {self.rank}: worker {root} has {len(message)} tensors, I have {len(tensors)}; "
                    "do all workers build the same model?"
                )
            with torch.no_grad():
                for mine, packet in zip(tensors, message, strict=True):
                    mine.copy_(need(packet, "x", (mine.dtype,), mine.numel()).reshape(mine.shape))
        return list(tensors)

    def together(self) -> AbstractContextManager[None]:
        """Around rounds of messages that end for all workers when they end for one.

        A link that can tell then names who is gone, and not a neighbour that waits in vain just as I do.
        """
        return nullcontext()

    def barrier(self) -> None:
        """Return once every worker has called it, and what each had started on its lane before has ended."""
        self.in_turn(self.all_gather, [Packet({})])


def only(message: Message, like: Tensor) -> Tensor:
    """The one tensor of a message of an all-reduce, if it is as ``like``.

    Raises: PacketError.
    """
    if len(message) != 1:
        raise PacketError(f"all-reduce: a message of {len(message)} packets came, wanted 1")
    return need(message[0], "x", (like.dtype,), like.numel()).to(like.device)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total
