"""All workers in one process, a thread each: for tests, and for a rehearsal before a run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from laconic.errors import ConfigError, PeerError, PeerLost, PeerTimeout
from laconic.links.base import PATIENCE, Link
from laconic.links.mailbox import Mailbox
from laconic.packet import Message, from_bytes, message_nbytes, to_bytes

Result = TypeVar("Result")
_GONE = object()


class MemoryLink(Link):
    """A link through queues. What crosses it is encoded and decoded as on a wire, except ``meta`` tensors."""

    def __init__(
        self,
        rank: int,
        queues: list[list[queue.SimpleQueue[Any]]],
        timeout: float,
        mailboxes: list[Mailbox] | None = None,
    ) -> None:
        super().__init__(rank, len(queues), timeout)
        self._queues = queues
        self._mailboxes = [self._mailbox] if mailboxes is None else mailboxes
        self._mailbox = self._mailboxes[rank]

    def send(self, message: Message, to: int, channel: int = 0) -> None:
        """Put the message in ``to``'s queue; never blocks."""
        if to == self.rank:
            self._to_myself(message, channel)
            return
        on_meta = any(t.device.type == "meta" for packet in message for t in packet.tensors.values())
        body = message if on_meta else to_bytes(message)
        if channel:
            self._mailboxes[to].put(channel, self.rank, body)
        else:
            self._queues[self.rank][to].put(body)
        self.meter.sent(message_nbytes(message))

    def recv(self, source: int, timeout: float | None = None) -> Message:
        """Take the next message that ``source`` sent here."""
        patience = self.timeout if timeout is None else timeout
        try:
            with self._waiting():
                item = self._queues[source][self.rank].get(timeout=patience)
        except queue.Empty:
            raise PeerTimeout(f"worker {self.rank}: nothing from worker {source} for {patience:g} s", source) from None
        if item is _GONE:
            self._queues[source][self.rank].put(_GONE)
            raise PeerLost(f"worker {self.rank}: worker {source} is gone", source)
        return self._opened(source, item)

    def _opened(self, source: int, body: Any) -> Message:
        message: Message = body if isinstance(body, list) else from_bytes(body)
        self.meter.received(message_nbytes(message))
        return message

    def close(self) -> None:
        """Tell the peers that nothing more comes."""
        super().close()
        for to in self.peers():
            self._queues[self.rank][to].put(_GONE)
            self._mailboxes[to].lose(self.rank, "it closed its link")


def alone() -> MemoryLink:
    """The link of the only worker."""
    return MemoryLink(0, [[queue.SimpleQueue()]], PATIENCE)


def run(workers: int, fn: Callable[[Link], Result], *, timeout: float = 60.0) -> list[Result]:
    """Run ``fn(link)`` once a worker, each in its own thread, and return the results in rank order.

    If a worker raises, its peers see it gone, and its error is raised here.

    Raises: ConfigError unless ``workers >= 1``.
    """
    if workers < 1:
        raise ConfigError(f"memory.run: workers must be at least 1, got {workers}")
    queues: list[list[queue.SimpleQueue[Any]]] = [[queue.SimpleQueue() for _ in range(workers)] for _ in range(workers)]
    mailboxes = [Mailbox(rank) for rank in range(workers)]
    results: list[Any] = [None] * workers
    errors: dict[int, BaseException] = {}

    def work(rank: int) -> None:
        with MemoryLink(rank, queues, timeout, mailboxes) as link:
            try:
                results[rank] = fn(link)
            except BaseException as error:  # raised again below, in the caller's thread
                errors[rank] = error

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"worker-{rank}", daemon=True) for rank in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        own = [rank for rank, error in errors.items() if not isinstance(error, PeerError)]
        raise errors[min(own or errors)]
    return results
