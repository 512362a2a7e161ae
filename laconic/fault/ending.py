"""When a run ends: all workers stop after the same round, though none knows how far the others are.

A round is a step; where workers take unequal numbers of steps, it is as many as each takes between two exchanges. Any
worker may ask for the end (its time is up, it was interrupted). Each then states the round it is in, and begins no
other until all have stated theirs; the run ends after the largest. No one can be left waiting for a peer that stopped
sooner, and no message is exchanged until somebody asks.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from typing import Any

FOR_EVER = timedelta(days=365)


class Ending:
    """Agreement on the last round, over two connections to the store: one waits, and meanwhile it serves nothing."""

    def __init__(self, asking: Any, waiting: Any, rank: int, size: int) -> None:
        self._asking, self._store, self._rank, self._size = asking, waiting, rank, size
        self._lock = threading.RLock()  # a signal's handler may ask while the main thread holds it
        self._begun = 0
        self._asked = False
        self._last: int | None = None
        self._agreed = threading.Event()
        self.reason: str | None = None
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
            self._last = max(int(self._store.get(f"ending/{rank}")) for rank in range(self._size))
        except RuntimeError:
            self._last = self._begun  # the store is gone, and so is the run: stop at once
        finally:
            self._agreed.set()
