"""Who answers: the first so many living workers of an order, found by asking and not by the clock of anyone else."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Ping:
    """One question: when it was asked, and whether it was asked again."""

    asked: float
    again: bool = False


class Probe:
    """Finds the first ``wanted`` of ``order`` that answer; ``me`` needs no question.

    The first ``wanted`` are asked at once. Who has not answered after ``resend`` seconds is asked again, and after
    ``timeout`` given up, and the next of the order is asked in its place. It has ended when so many have answered, or
    nobody is left.

    Source: MoDeST, arXiv:2302.13837, the sampling of live nodes.
    """

    def __init__(
        self, order: Iterable[int], wanted: int, me: int, gone: Iterable[int], timeout: float, resend: float
    ) -> None:
        lost = set(gone)
        self._rest = deque(rank for rank in order if rank not in lost)
        self._wanted, self._me, self._timeout, self._resend = wanted, me, timeout, resend
        self._asked: dict[int, Ping] = {}
        self.alive: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be asked."""
        return not self._asked and (len(self.alive) >= self._wanted or not self._rest)

    @property
    def deadline(self) -> float:
        """When it has something to do again; only while somebody has been asked."""
        return min(
            p.asked + (self._timeout if p.again else min(self._resend, self._timeout)) for p in self._asked.values()
        )

    def ask(self, now: float) -> list[int]:
        """Whom to ask now, so that enough are asked."""
        asking = []
        while self._rest and len(self.alive) + len(self._asked) < self._wanted:
            rank = self._rest.popleft()
            if rank == self._me:
                self.alive.append(rank)
            else:
                self._asked[rank] = Ping(now)
                asking.append(rank)
        return asking

    def answered(self, rank: int) -> None:
        """``rank`` has answered."""
        if self._asked.pop(rank, None) is not None:
            self.alive.append(rank)

    def lost(self, rank: int) -> None:
        """``rank`` is gone, and will not answer."""
        self._asked.pop(rank, None)
        self._rest = deque(other for other in self._rest if other != rank)
        self.alive = [other for other in self.alive if other != rank]

    def late(self, now: float) -> list[int]:
        """Give up who is silent for too long; whom to ask again."""
        again = []
        for rank, ping in list(self._asked.items()):
            if now >= ping.asked + self._timeout:
                del self._asked[rank]
            elif not ping.again and now >= ping.asked + self._resend:
                ping.again = True
                again.append(rank)
        return again
