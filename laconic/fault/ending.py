"""When a run ends: all workers stop after the same round, though none knows how far the others are.

A round is a step; where workers take unequal numbers of steps, it is as many as each takes between two exchanges. Any
worker may ask for the end (its time is up, it was interrupted). Each then states the round it is in, and begins no
other until all have stated theirs; the run ends after the largest. No one can be left waiting for a peer that stopped
sooner, and no message is exchanged until somebody asks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from laconic.links.base import PATIENCE

FOR_EVER = timedelta(days=365)
GLANCE = 0.01  # seconds between looks for a round that a peer has not stated yet


class Ending:
    """Agreement on the last round, over two connections to the store: one waits, and meanwhile it serves nothing.

    Where ``gone(rank)`` says that a worker will not state its round any more, or one has not for ``timeout`` seconds,
    nobody waits for it: this worker stops where it is, and the next message that it waits for tells who is gone.
    """

    def __init__(
        self,
        asking: Any,
        waiting: Any,
        rank: int,
        size: int,
        gone: Callable[[int], bool] = lambda rank: False,
        timeout: float = PATIENCE,
    ) -> None:
        self._gone, self._timeout = gone, timeout
        self._asking, self._store, self._rank, self._size = asking, waiting, rank, size
        self._lock = threading.RLock()  # a signal's handler may ask while the main thread holds it
        self._begun = 0
        self._asked = False
        self._last: int | None = None
        self._agreed = threading.Event()
        self.reason: str | None = None
        self.behind = 0.0  # once agreed: rounds that the slowest worker still had to take, for each that it had taken
        if size > 1:
            threading.Thread(target=self._watch, name="laconic-ending", daemon=True).start()

    def ask(self, reason: str) -> None:
        """Ask for the end; safe to call from any thread and from a signal's handler, any number of times.

        Whoever asks takes no further step before the agreement, so a run of so many rounds has exactly as many.
        """
        with self._lock:
            self._asked = True
            if self._size == 1:
                self._last, self.reason = self._begun, self.reason or reason
        if self._size > 1:
            with contextlib.suppress(RuntimeError):  # the store is gone: the watcher sees it too, and ends the run
                self._asking.set("ending/asked", reason)

    def may_begin(self, round: int) -> bool:
        """Whether to take a step in round number ``round`` (from 1); waits while there is an agreement to be reached.

        It is asked before every step: a round may have several.
        """
        with self._lock:
            if not self._asked and self._last is None:
                self._begun = round
                return True
        if self._size > 1:
            self._agreed.wait()
            if self._last is not None and round <= self._last:
                self._begun = round
        return self._last is not None and round <= self._last

    def _watch(self) -> None:
        try:
            self._store.wait(["ending/asked"], FOR_EVER)
            with self._lock:
                self._asked = True
                mine = self._begun
            self.reason = self._store.get("ending/asked").decode()
            self._store.set(f"ending/{self._rank}", str(mine))
            stated = self._stated()
            self._last = self._begun if stated is None else max(stated)
            self.behind = 0.0 if stated is None else max(stated) / max(1, min(stated)) - 1
        except RuntimeError:
            self._last = self._begun  # the store is gone, and so is the run: stop at once
        finally:
            self._agreed.set()

    def _stated(self) -> list[int] | None:
        """The round of each worker; None as soon as one will not state its own."""
        stated = []
        deadline = time.monotonic() + self._timeout
        for rank in range(self._size):
            while not self._store.check([f"ending/{rank}"]):
                if self._gone(rank) or time.monotonic() > deadline:
                    return None
                time.sleep(GLANCE)
            stated.append(int(self._store.get(f"ending/{rank}")))
        return stated
