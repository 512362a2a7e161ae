"""Exchanges beside the computation, in virtual time: :mod:`laconic.links.background` for a simulated link."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from laconic.errors import ConfigError
from laconic.links.background import Handle, Lane
from laconic.links.clockwork import IDLE, NEVER, READY, RUNNING, WAITING, Clockwork, Fibre, Over, shut
from laconic.links.meter import Meter


class Errand(Handle):
    """Something that runs on a simulated lane, from the moment at which it was started."""

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], meter: Meter, lane: VirtualLane) -> None:
        super().__init__(run, args, meter)
        self.lane = lane
        self.asked = lane.clockwork.current().clock
        self.ended = NEVER
        self.waiters: list[Fibre] = []

    def done(self) -> bool:
        """Whether :meth:`result` would return (or raise) at this moment of the caller's clock."""
        clockwork = self.lane.clockwork
        fibre = clockwork.current()
        with clockwork.mutex:
            while not self._finished.is_set() and self.lane.fibre.clock <= fibre.clock:
                clockwork.followers[fibre.rank].append(fibre)
                if clockwork.block(fibre, fibre.clock) is not None:
                    break
        return self.ended <= fibre.clock

    def wait(self) -> None:
        """Wait until it has ended; the virtual time waited counts as waiting on the link's meter."""
        clockwork = self.lane.clockwork
        fibre = clockwork.current()
        if fibre is self.lane.fibre and not self._finished.is_set():
            raise ConfigError("link: what runs on the lane cannot wait for what is queued behind it")
        if not self._finished.is_set() and not self.lane.run_here(fibre, self):
            with clockwork.mutex:
                while not self._finished.is_set():
                    self.waiters.append(fibre)
                    fibre.behind = self.lane.fibre
                    clockwork.block(fibre)
                    fibre.behind = None
        if self.ended > fibre.clock:
            if fibre.number == 0:
                self._meter.waited(fibre.clock, self.ended)
            with clockwork.mutex:
                clockwork.advance(fibre, self.ended)

    def result(self) -> Any:
        """What the run returned, or raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result


class VirtualLane(Lane):
    """A lane whose thread is a fibre; whoever waits for what has not begun runs it itself."""

    def __init__(self, rank: int, meter: Meter, clockwork: Clockwork) -> None:
        self.meter, self.clockwork = meter, clockwork
        self.fibre = clockwork.add(rank, self._serve)
        self._errands: deque[Errand] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._between = True  # no errand has begun that has not ended

    def start(self, run: Callable[..., Any], *args: Any) -> Errand:
        """Queue ``run(*args)``.

        Raises: ConfigError once the lane is closed.
        """
        if self._closed:
            raise ConfigError("link: it is closed, and carries nothing any more; close it after the last step")
        errand = Errand(run, args, self.meter, self)
        with self.clockwork.mutex:
            self._errands.append(errand)
            if self.fibre.state == IDLE:
                self.fibre.clock = max(self.fibre.clock, errand.asked)
                self.clockwork.ready(self.fibre)
        return errand

    def close(self) -> None:
        """Take nothing more; what is queued still runs."""
        self._closed = True

    def run_here(self, caller: Fibre, errand: Errand) -> bool:
        """Run the lane on the caller's thread up to ``errand``, if it has not begun; whether it has been done."""
        clockwork, fibre = self.clockwork, self.fibre
        with clockwork.mutex:
            if fibre.state != READY or not self._between or caller is fibre:
                return False
            fibre.state, caller.state, caller.behind = RUNNING, WAITING, fibre
            fibre.ticket += 1
            caller.ticket += 1
            clockwork.changed(caller.rank)
        fibre.gates.append(shut())
        clockwork.become(fibre)
        try:
            while not errand._finished.is_set():
                self._one()
        finally:
            clockwork.become(caller)
            with clockwork.mutex:
                fibre.gates.pop()
                caller.state, caller.behind = RUNNING, None
                if self._errands:
                    clockwork.ready(fibre)
                else:
                    fibre.state = IDLE
                    clockwork.changed(fibre.rank)
        return True

    def _one(self) -> None:
        errand, clockwork = self._errands.popleft(), self.clockwork
        with clockwork.mutex:
            clockwork.advance(self.fibre, errand.asked)
        self._between = False
        if self._error is None:
            errand._work()
            self._error = errand._error
        else:  # what was queued behind a failed exchange would read that exchange's late messages as its own
            errand._error = self._error
            errand._finished.set()
        self._between = True
        if isinstance(errand._error, Over):
            raise errand._error
        with clockwork.mutex:
            errand.ended = self.fibre.clock
            for waiter in errand.waiters:
                waiter.behind = None
                clockwork.wake(waiter)

    def _serve(self) -> None:
        while True:
            self._one()
            if not self._errands:
                with self.clockwork.mutex:
                    if not self._errands:
                        self.clockwork.rest(self.fibre)
