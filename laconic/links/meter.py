"""The meter of a link: what left, what came, and where the seconds went."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Counts of one worker's end of the network; bytes and seconds, from the start of the link.

    ``bytes_out`` counts whole messages where they are handed to the transport (their frames and headers
    included, TCP's and Ethernet's not). ``seconds_waiting`` is the time that the training thread stood still for
    the network: a transfer hidden behind computation adds nothing. ``seconds_compressing`` is the time spent in
    compressors, on whichever thread. Both are by ``clock``, the link's.
    """

    bytes_out: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    messages_in: int = 0
    seconds_waiting: float = 0.0
    seconds_compressing: float = 0.0
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)
    _spans: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=4096), repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def sent(self, nbytes: int, messages: int = 1) -> None:
        """Count what leaves."""
        with self._lock:
            self.bytes_out += nbytes
            self.messages_out += messages

    def received(self, nbytes: int, messages: int = 1) -> None:
        """Count what comes."""
        with self._lock:
            self.bytes_in += nbytes
            self.messages_in += messages

    @contextmanager
    def compressing(self) -> Iterator[None]:
        """Count the time inside as spent compressing."""
        start = self.clock()
        try:
            yield
        finally:
            end = self.clock()
            with self._lock:
                self.seconds_compressing += end - start
                self._spans.append((start, end))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as spent waiting, less what another thread of this link compressed meanwhile."""
        start = self.clock()
        try:
            yield
        finally:
            self.waited(start, self.clock())

    def waited(self, start: float, end: float) -> float:
        """Count the time from ``start`` to ``end`` as waiting, less what was compressed meanwhile: those seconds."""
        with self._lock:
            busy = 0.0
            for a, b in reversed(self._spans):
                if b <= start:
                    break
                busy += max(0.0, min(b, end) - max(a, start))
            self.seconds_waiting += max(0.0, end - start - busy)
        return min(busy, end - start)

    def reading(self) -> dict[str, float]:
        """The counts as plain numbers."""
        names = ["bytes_out", "bytes_in", "messages_out", "messages_in", "seconds_waiting", "seconds_compressing"]
        return {name: getattr(self, name) for name in names}
