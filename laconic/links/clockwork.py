"""A virtual clock for many threads: who may act, and in which order, so that nothing depends on the operating system.

Every thread of a simulation is a :class:`Fibre` with a clock of its own. It runs until it needs something that another
must do first. What crosses between fibres carries its own moment, so a fibre that knows from whom it will hear need not
know how far the others are: it comes to the same result whatever ran first. The rest (a silence that ends, whoever
comes first, a line that two fibres of a worker share) is decided when no fibre can run: then the earliest of all the
moments waited for is the next thing that happens, since whatever is done later happens later.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

NEVER = math.inf
STALE = 16  # moments kept for each fibre before those that have passed are thrown away
READY, RUNNING, WAITING, IDLE = "ready", "running", "waiting", "idle"


class Over(BaseException):
    """The simulation has ended: unwinds a thread that nobody waits for any more."""


def shut() -> threading.Lock:
    """A gate that is closed."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class Fibre:
    """One thread of one worker: its main one, number 0, or a lane."""

    def __init__(self, rank: int, number: int, body: Callable[[], None]) -> None:
        self.rank, self.number, self.body = rank, number, body
        self.clock = 0.0
        self.state = IDLE
        self.sources: tuple[int, ...] = ()  # from whom it waits to hear, and on which channel
        self.channel = 0
        self.behind: Fibre | None = None  # the lane whose answer it waits for
        self.patient = False  # it waits for as long as links do by default
        self.gates = [shut()]  # one for each thread that runs it: its own, and one that waits for its answer
        self.thread: threading.Thread | None = None
        self.ticket = 0  # what was put into a heap before it last changed its state does not count
        self.fired: float | None = None  # the moment that came, if it was not woken


class Clockwork:
    """The fibres of a simulation, of which ``seats`` run at a time.

    All methods but :meth:`current` are called with ``mutex`` held, by the fibre itself. With ``seeded`` each worker has
    the generators of torch, Python and numpy to itself, as a process has; that needs a single seat.
    """

    def __init__(self, workers: int, *, seats: int = 1, seeded: bool = False) -> None:
        assert seats == 1 or not seeded, "the generators are the process's, and not a thread's"
        self.mutex = threading.Lock()
        self.fibres: list[list[Fibre]] = [[] for _ in range(workers)]
        self.followers: list[list[Fibre]] = [[] for _ in range(workers)]  # who looks at a worker's clocks
        self.over = False
        self._here = threading.local()
        self._seats, self._running = seats, 0
        self._ready: list[tuple[float, int, int, int, Fibre]] = []
        self._moments: list[tuple[float, int, int, int, int, Fibre]] = []
        self._count = itertools.count()
        self._threads = torch.get_num_threads()
        self._random: list[tuple[Any, ...] | None] | None = [None] * workers if seeded else None
        self._owner: int | None = None

    # -- fibres ----------------------------------------------------------------------------------------------

    def add(self, rank: int, body: Callable[[], None]) -> Fibre:
        """A new fibre, idle until :meth:`ready`; its thread starts when it first runs."""
        fibre = Fibre(rank, len(self.fibres[rank]), body)
        self.fibres[rank].append(fibre)
        return fibre

    def current(self) -> Fibre:
        """The fibre that this thread runs."""
        return self._here.fibre

    def become(self, fibre: Fibre) -> None:
        """Let this thread run another fibre, whose seat it has."""
        self._here.fibre = fibre

    def ready(self, fibre: Fibre) -> None:
        """Let ``fibre`` run when there is a seat; whoever is furthest behind first."""
        fibre.state = READY
        fibre.ticket += 1
        heapq.heappush(self._ready, (fibre.clock, fibre.rank, fibre.number, fibre.ticket, fibre))
        if self._running < self._seats:
            self._next()

    def block(self, fibre: Fibre, moment: float = NEVER) -> float | None:
        """Wait until woken (None), or until nothing else can happen before ``moment`` or a sooner one: that one."""
        fibre.state, fibre.fired = WAITING, None
        fibre.ticket += 1
        self._promise(fibre, moment)
        if fibre.behind is not None:
            self.changed(fibre.rank)
        self.leave()
        self._enter(fibre)
        return fibre.fired

    def sooner(self, fibre: Fibre, moment: float) -> None:
        """Let a waiting fibre go on at an earlier moment than it said."""
        self._promise(fibre, moment)

    def wake(self, fibre: Fibre) -> None:
        """Let a waiting fibre look again."""
        if fibre.state == WAITING and fibre.behind is None:
            self.ready(fibre)

    def advance(self, fibre: Fibre, moment: float) -> None:
        """Set a fibre's clock, if it is behind."""
        if moment > fibre.clock:
            fibre.clock = moment
            self.changed(fibre.rank)

    def changed(self, rank: int) -> None:
        """Let those look again who follow a worker's clocks."""
        if followers := self.followers[rank]:
            self.followers[rank] = []
            for fibre in followers:
                self.wake(fibre)

    def rest(self, fibre: Fibre) -> None:
        """Wait, as one that has nothing to do: until :meth:`ready`."""
        fibre.state = IDLE
        self.changed(fibre.rank)
        self.leave()
        self._enter(fibre)

    def end(self, fibre: Fibre) -> None:
        """Give the seat up for ever."""
        fibre.state = IDLE
        fibre.clock = NEVER
        self.changed(fibre.rank)
        self.leave()

    def leave(self) -> None:
        """Give the seat up."""
        self._running -= 1
        self._next()

    def stop(self) -> None:
        """End every thread that waits."""
        self.over = True
        for fibre in itertools.chain.from_iterable(self.fibres):
            for gate in fibre.gates:
                if gate.locked():
                    gate.release()

    # -- order -----------------------------------------------------------------------------------------------

    def in_turn(self, fibre: Fibre) -> None:
        """Wait until no other fibre of the same worker can act before this one: they share its lines."""
        mine = (fibre.clock, fibre.number)
        for other in self.fibres[fibre.rank]:
            while other is not fibre and not (
                other.state == IDLE or other.behind is not None or (other.clock, other.number) > mine
            ):
                self.followers[fibre.rank].append(fibre)
                if self.block(fibre, fibre.clock) is not None:
                    return

    def after(self, fibre: Fibre, ranks: Sequence[int]) -> None:
        """Wait until the main fibres of ``ranks`` have passed this one's moment: what they did before it is done."""
        mine = (fibre.clock, fibre.rank)
        for rank in ranks:
            other = self.fibres[rank][0]
            while other is not fibre and (other.clock, rank) <= mine:
                self.followers[rank].append(fibre)
                if self.block(fibre, fibre.clock) is not None:
                    return

    def listening(self) -> list[Fibre]:
        """The fibres that wait to hear from others."""
        every = itertools.chain.from_iterable(self.fibres)
        return [fibre for fibre in every if fibre.state == WAITING and fibre.sources]

    # -- seats -----------------------------------------------------------------------------------------------

    def _promise(self, fibre: Fibre, moment: float) -> None:
        if moment < NEVER:
            entry = (moment, fibre.rank, fibre.number, next(self._count), fibre.ticket, fibre)
            heapq.heappush(self._moments, entry)
            if len(self._moments) > STALE * (len(self.fibres) + 64):
                self._moments = [e for e in self._moments if e[4] == e[5].ticket and e[5].state == WAITING]
                heapq.heapify(self._moments)

    def _next(self) -> None:
        while self._running < self._seats and self._ready:
            *_, ticket, fibre = heapq.heappop(self._ready)
            if ticket == fibre.ticket:
                self._grant(fibre)
        while not self._running and self._moments and not self.over:  # nobody can run: the earliest moment comes
            moment, *_, ticket, fibre = heapq.heappop(self._moments)
            if ticket == fibre.ticket and fibre.state == WAITING:
                fibre.fired = moment
                self._grant(fibre)
                return
        if not self._running and not self.over:
            stuck = [f for fibres in self.fibres for f in fibres if f.state == WAITING and f.behind is None]
            if stuck:  # they wait for what nobody will do, and set no end to it
                stuck[0].fired = NEVER
                self._grant(stuck[0])

    def _grant(self, fibre: Fibre) -> None:
        fibre.state = RUNNING
        fibre.ticket += 1
        self._running += 1
        if fibre.thread is None and len(fibre.gates) == 1:
            name = f"worker-{fibre.rank}" if fibre.number == 0 else f"worker-{fibre.rank}-lane-{fibre.number}"
            fibre.thread = threading.Thread(target=self._body, args=(fibre,), name=name, daemon=True)
            fibre.thread.start()
        else:
            fibre.gates[-1].release()

    def _body(self, fibre: Fibre) -> None:
        torch.set_num_threads(self._threads)  # a new thread starts with all cores, whatever its parent had
        self._here.fibre = fibre
        try:
            self._own(fibre)
            fibre.body()
        except Over:
            pass

    def _enter(self, fibre: Fibre) -> None:
        gate = fibre.gates[-1]
        self.mutex.release()
        gate.acquire()
        self.mutex.acquire()
        if self.over:
            raise Over
        self._own(fibre)

    def _own(self, fibre: Fibre) -> None:
        """Put this worker's random state in the place of the one who ran before."""
        if self._random is None or self._owner == fibre.rank:
            return
        if self._owner is not None:
            self._random[self._owner] = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._owner = fibre.rank
        if (mine := self._random[fibre.rank]) is not None:
            torch.set_rng_state(mine[0])
            random.setstate(mine[1])
            np.random.set_state(mine[2])
