"""When bytes leave, and when they are there: a network's uplinks, pairs and downlinks, reckoned and not waited for."""

from __future__ import annotations

from bisect import insort

from laconic.links.network import Connection, Network

KEPT = 64  # stretches of time that a downlink remembers; who asks for what came before them finds the line free


class Lines:
    """The state of all lines of ``network``.

    A message occupies its sender's uplink and then the line of the pair, each with one message at a time in the order
    they are sent, as :mod:`laconic.links.paced` holds them; the latency comes on top. It occupies the receiver's
    downlink for its bytes at that line's rate, at the earliest free time from when it began to come: in the order in
    which the receiver asks for messages, but one that is late holds up none that is there.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._up_free = [0.0] * network.workers
        self._pair_free: dict[tuple[int, int], float] = {}
        self._pairs: dict[tuple[int, int], Connection] = {}
        self._busy: list[list[tuple[float, float]]] = [[] for _ in range(network.workers)]

    def depart(self, sender: int, receiver: int, nbytes: int, asked: float) -> tuple[float, float, float]:
        """When the last byte has left the sender, and when the first and the last are at the receiver's end."""
        pair = self._pairs.get((sender, receiver))
        if pair is None:
            pair = self._pairs[sender, receiver] = self.network.link(sender, receiver)
        start = max(asked, self._up_free[sender])
        self._up_free[sender] = gone = start + nbytes / self.network.connections[sender].up
        begin = max(start, self._pair_free.get((sender, receiver), 0.0))
        left = max(gone, begin + nbytes / pair.up)
        self._pair_free[sender, receiver] = left
        return left, begin + pair.latency, left + pair.latency

    def arrive(self, receiver: int, nbytes: int, due: float) -> float:
        """When the receiver has taken in a message whose last byte is at its end at ``due``."""
        taking = nbytes / self.network.connections[receiver].down
        if taking == 0.0:
            return due
        busy = self._busy[receiver]
        start = due - taking
        if not busy or busy[-1][1] < start:  # nothing before it is still coming
            busy.append((start, start + taking))
            del busy[:-KEPT]
            return due
        for a, b in busy:
            if a >= start + taking:
                break
            start = max(start, b)
        before = next((i for i in range(len(busy) - 1, -1, -1) if busy[i][1] == start), None)
        if before is None:
            insort(busy, (start, start + taking))
        else:  # it follows the one before without a gap
            busy[before] = (busy[before][0], start + taking)
        del busy[:-KEPT]
        return start + taking
