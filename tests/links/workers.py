"""Real worker processes for the tests of links: one server imports torch once, each worker is a fork of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import socket
import time

import torch

from laconic.errors import PeerError
from laconic.links.network import parse
from laconic.links.paced import PacedLink
from laconic.links.process_group import process_group
from laconic.links.rendezvous import rendezvous
from laconic.links.tcp import TcpLink

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.links.workers"])


def connect(kind, timeout=20.0, network=None):
    """This worker's link of that kind."""
    if kind == "process_group":
        return process_group("gloo", timeout=timeout)
    rank, size, store = rendezvous(timeout)
    if kind == "tcp":
        return TcpLink(rank, size, store, timeout=timeout)
    return PacedLink(rank, size, store, network or parse("1gbit,1ms", size), timeout=timeout)


def _work(rank, size, port, fn, args, pipe):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    start = time.monotonic()
    try:
        answer = ("ok", fn(*args))
    except PeerError as error:
        answer = ("peer", type(error).__name__, error.peer, str(error), time.monotonic() - start)
    except Exception as error:
        answer = ("error", type(error).__name__, str(error), repr(error.__cause__))
    pipe.send(answer)
    with contextlib.suppress(EOFError):
        pipe.recv()  # stay, with the link open, until the test has heard from everyone
    os._exit(0)


def free_port():
    """A port that nobody listens on, outside the range from which the workers' own listeners get theirs."""
    for port in random.sample(range(20_000, 30_000), 50):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port")


def run(size, fn, *args, patience=40.0, silent=()):
    """``fn(*args)`` in so many processes; what each answered, or ``("died",)`` or ``("silent",)``, in rank order.

    Nothing is awaited from the ranks that are to be ``silent``.
    """
    port = free_port()
    pipes, workers = [], []
    for rank in range(size):
        mine, theirs = SERVER.Pipe()
        worker = SERVER.Process(target=_work, args=(rank, size, port, fn, args, theirs), daemon=True)
        worker.start()
        theirs.close()
        pipes.append(mine)
        workers.append(worker)
    answers = []
    deadline = time.monotonic() + patience
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(0 if rank in silent else max(0.0, deadline - time.monotonic())):
                answers.append(("silent",))
                continue
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(("died",))
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join(0.5)
            if worker.is_alive():
                worker.kill()  # a stopped one does not notice that its pipe closed
                worker.join(5)
    return answers


def fine(answers):
    """The workers' results, all of which must be there."""
    assert all(answer[0] == "ok" for answer in answers), answers
    return [answer[1] for answer in answers]


def vanish(how):
    """End this process as a crash does, or stop it as an overloaded machine does."""
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
