"""Exchanges beside the computation: one thread a link, first in, first out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

from laconic.errors import ConfigError
from laconic.links.meter import Meter


class Handle:
    """Something that runs on a lane; :meth:`result` waits for it."""

    transient = True  # a checkpoint leaves it out: what was sent is kept there, and is sent again

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], meter: Meter) -> None:
        self._run, self._args, self._meter = run, args, meter
        self._finished = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether :meth:`result` would return (or raise) at once."""
        return self._finished.is_set()

    def result(self) -> Any:
        """What the run returned, or raised; the time waited counts as waiting on the link's meter."""
        if not self._finished.is_set():
            with self._meter.waiting():
                self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def _work(self) -> None:
        try:
            self._result = self._run(*self._args)
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error
        finally:
            del self._run, self._args  # what it held, a snapshot perhaps, goes now and not with the handle
            self._finished.set()


class Lane:
    """One thread that runs what it is given, in order.

    After an error it runs nothing more: what was queued behind a failed exchange would read that exchange's late
    messages as its own, so its handles raise the same error.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self._queue: queue.SimpleQueue[Handle | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = torch.get_num_threads()
        self.thread = threading.Thread(target=self._serve, name="laconic-lane", daemon=True)
        self.thread.start()

    def start(self, run: Callable[..., Any], *args: Any) -> Handle:
        """Queue ``run(*args)``.

        Raises: ConfigError once the lane is closed: nobody would run it, and its result be awaited for ever.
        """
        if self._closed:
            raise ConfigError("link: it is closed, and carries nothing any more; close it after the last step")
        handle = Handle(run, args, self.meter)
        self._queue.put(handle)
        return handle

    def close(self) -> None:
        """Stop after what is queued."""
        self._closed = True
        self._queue.put(None)
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout=1.0)

    def _serve(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread starts with all cores, whatever its parent had
        error: BaseException | None = None
        while (handle := self._queue.get()) is not None:
            if error is None:
                handle._work()
                error = handle._error
            else:
                handle._error = error
                handle._finished.set()
