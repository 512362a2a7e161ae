"""Holds a worker back, so that workers of unequal speed can be tried on one machine.

A worker that is to be four times slower idles for three times as long as it has computed. Computing is what its main
thread takes of a processor: what it waits for the network, or compresses beside, is not stretched.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence

from laconic.errors import ConfigError


def factors(slow: Sequence[str], workers: int) -> list[float]:
    """How many times slower each worker is to be, from texts such as ``1:4``.

    Raises: ConfigError for text that is none, a worker that does not exist or is named twice, and a factor under 1.
    """
    found = [1.0] * workers
    named: set[int] = set()
    for text in slow:
        match = re.fullmatch(r"\s*(\d+)\s*:\s*([0-9.]+)\s*x?\s*", text)
        try:
            rank, factor = int(match[1]), float(match[2])  # type: ignore[index]
        except (TypeError, ValueError):
            raise ConfigError(f"slow {text!r}: write WORKER:FACTOR, as in 1:4") from None
        if rank >= workers:
            raise ConfigError(f"slow {text!r}: worker {rank} of {workers}; they count from 0")
        if rank in named:
            raise ConfigError(f"slow {text!r}: worker {rank} is named twice")
        if not 1 <= factor < math.inf:
            raise ConfigError(f"slow {text!r}: the factor must be at least 1; no worker can be made faster")
        named.add(rank)
        found[rank] = factor
    return found


class Drag:
    """Idles for ``factor - 1`` times what this thread has computed since the last time."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._computed = time.thread_time()

    def pull(self) -> None:
        """Idle now. Between forward and backward, nothing of the step has left yet."""
        if self.factor == 1.0:
            return
        now = time.thread_time()
        time.sleep((self.factor - 1) * (now - self._computed))
        self._computed = time.thread_time()
