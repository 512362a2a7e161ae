"""Real processes and real bytes, held to a stated bandwidth and latency, in user space, without root.

The sender reckons when a message would have left a connection of the stated rate, given what left before it, and
writes the moment of its arrival on the envelope; the receiver hands it over no sooner. So a rate is held to the
microseconds of a sleep, not to the size of a bucket, and it costs no processor time. The clock is the machine's
monotonic one: all workers must be on one machine (on several, the network is what it is).
"""

from __future__ import annotations

import threading
from typing import Any

from laconic.errors import ConfigError
from laconic.links.base import PATIENCE
from laconic.links.network import Network
from laconic.links.tcp import TcpLink

NANO = 1e9


class PacedLink(TcpLink):
    """A :class:`TcpLink` whose bytes take as long as ``network`` says.

    A message occupies the sender's uplink, the link of the pair, and the receiver's downlink, each busy with one
    message at a time; the slowest sets the pace, and the latency comes on top. Rates hold for all the bytes that
    the meter counts; TCP's and Ethernet's own headers are left out.

    Raises: ConfigError if the network is for another number of workers.
    """

    network: Network
    buffered = False
    _hold = 24 * 3600 * 10**9

    def __init__(self, rank: int, size: int, store: Any, network: Network, *, timeout: float = PATIENCE) -> None:
        if network.workers != size:
            raise ConfigError(f"paced: a network of {network.workers} workers for {size}")
        self.network = network
        self._up_free = 0.0  # when my uplink, each pair's link and my downlink have done with what came before
        self._pair_free = [0.0] * size
        self._down_free = 0.0
        self._reckoning = threading.Lock()
        super().__init__(rank, size, store, timeout=timeout, host="127.0.0.1")

    def _departure(self, to: int, nbytes: int, asked: int) -> tuple[int, int]:
        mine, pair = self.network.connections[self.rank], self.network.link(self.rank, to)
        with self._reckoning:
            start = max(asked, self._up_free)
            self._up_free = start + nbytes / mine.up * NANO
            begin = max(start, self._pair_free[to])
            self._pair_free[to] = max(self._up_free, begin + nbytes / pair.up * NANO)
            left = self._pair_free[to]
        return int(left), max(1, int(left + pair.latency * NANO))

    def _arrival(self, source: int, nbytes: int, due: int) -> int:
        # The first byte came one transfer time before the last: only what else came down meanwhile delays it.
        taking = nbytes / self.network.connections[self.rank].down * NANO
        with self._reckoning:
            self._down_free = max(float(due), self._down_free + taking)
            return int(self._down_free)


def paced(network: Network, *, timeout: float = PATIENCE) -> PacedLink:
    """This worker's link in ``network``; rank, size and rendezvous from the environment that torchrun sets.

    Raises: ConfigError without that environment, or if ``network`` is for another number of workers.
    """
    from laconic.links.rendezvous import rendezvous

    rank, size, store = rendezvous(timeout)
    return PacedLink(rank, size, store, network, timeout=timeout)
