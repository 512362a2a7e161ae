"""Messages taken as they come, whoever sent them: what :meth:`Link.recv_any` reads.

Each channel has an order of its own, so that a protocol which runs beside training is never handed a message of an
exchange, nor an exchange one of the protocol's.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from laconic.errors import ConfigError, PeerLost, PeerTimeout

CHANNELS = 256  # and channel 0 is what ``recv`` reads, from one peer at a time


class Letter(NamedTuple):
    """One message: when it may be delivered (nanoseconds of the monotonic clock, 0 for now), in which order it came."""

    due: int
    number: int
    source: int
    body: Any


class Mailbox:
    """What has come for one worker on the channels from 1 on; any thread may put, and one a channel takes."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._changed = threading.Condition()
        self._letters: dict[int, list[Letter]] = {}
        self._count = itertools.count()
        self._gone: dict[int, str] = {}
        self._told: set[tuple[int, int]] = set()
        self._closed = False

    def put(self, channel: int, source: int, body: Any, due: int = 0) -> None:
        """Deliver a message, once it is due."""
        with self._changed:
            self._letters.setdefault(channel, []).append(Letter(due, next(self._count), source, body))
            self._changed.notify_all()

    def lose(self, source: int, why: str) -> None:
        """Nothing more comes from ``source``."""
        with self._changed:
            self._gone.setdefault(source, why)
            self._changed.notify_all()

    def close(self) -> None:
        """Let go whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, channel: int, sources: Iterable[int], patience: float) -> tuple[int, Any]:
        """The next message of ``channel`` from any of ``sources``, and who sent it.

        Raises: PeerTimeout after ``patience`` seconds without one; PeerLost once for each source that is gone, after
                its last message, and at every call when all of them are; ConfigError once the mailbox is closed.
        """
        wanted = set(sources)
        deadline = time.monotonic_ns() + int(patience * 1e9)
        with self._changed:
            while True:
                if self._closed:
                    raise ConfigError(f"worker {self._rank}: the link is closed, and nothing comes any more")
                letters = self._letters.get(channel, [])
                first = min((letter for letter in letters if letter.source in wanted), default=None)
                now = time.monotonic_ns()
                if first is not None and first.due <= now:
                    letters.remove(first)
                    return first.source, first.body
                self._tell(channel, wanted, {letter.source for letter in letters})
                if now >= deadline:
                    among = f"worker {min(wanted)}" if len(wanted) == 1 else f"any of {len(wanted)} workers"
                    raise PeerTimeout(
                        f"worker {self._rank}: nothing from {among} for {patience:g} s", min(wanted, default=self._rank)
                    )
                until = deadline if first is None else min(deadline, first.due)
                self._changed.wait(min((until - now) / 1e9, threading.TIMEOUT_MAX))

    def _tell(self, channel: int, wanted: set[int], speaking: set[int]) -> None:
        """Say who is gone: each once, and all of them for ever."""
        silent = [peer for peer in sorted(wanted) if peer in self._gone and peer not in speaking]
        for peer in silent:
            if (channel, peer) not in self._told or len(silent) == len(wanted):
                self._told.add((channel, peer))
                raise PeerLost(f"worker {self._rank}: worker {peer} is gone: {self._gone[peer]}", peer)
