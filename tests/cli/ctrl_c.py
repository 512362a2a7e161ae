"""Ctrl-C for a command that runs in this process: once something has happened, and never after its end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest


@contextlib.contextmanager
def ctrl_c(*moments, patience=60.0):
    """Press Ctrl-C as soon as each of the ``moments`` in turn is there, as long as the block runs.

    A moment is a function that says whether it has come; after ``patience`` seconds nobody waits for it any more.
    """
    over, pressing = threading.Event(), threading.Lock()

    def press():
        for come in moments:
            deadline = time.monotonic() + patience
            while not come() and time.monotonic() < deadline:
                if over.wait(0.02):
                    return
            with pressing:
                if over.is_set():
                    return
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    try:
        thread.start()
        yield
        with pressing:  # from here on none is pressed, and one that was is heard here
            over.set()
    except KeyboardInterrupt:
        pytest.fail("the command had ended before Ctrl-C came")
    finally:
        over.set()
        thread.join()
