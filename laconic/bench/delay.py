"""The relay: holds each frame that leaves a delayed worker for the seconds its link is long.

A delayed worker's ``eth0`` is a tap device, and so is its port at the switch; the relay stands between. What the
worker sends is read after the worker's own shaper has let it pass, kept until its deadline, and written to the
port; what comes back is passed on at once, because it was delayed where it left. The kernel hands over segments
of up to 64 kB in one piece with a virtio header that says how to cut them, so a bulk flow costs few reads.

It is run by the keeper (:mod:`laconic.bench.netns`), by path, with the standard library alone, and ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import select
import signal
import struct
import sys
from collections import deque
from time import monotonic
from typing import NamedTuple

VIRTIO_HEADER = 10  # bytes before each frame; the destination's hardware address follows
LARGEST = 1 << 17  # bytes asked of a read: a 64 kB segment, its headers, and room
AT_ONCE = 32  # frames taken from one device before the deadlines are looked at again
STATS = struct.Struct("QQddQ")  # frames held, frames passed on, sum and worst of seconds too late, frames lost


class Stats(NamedTuple):
    """What the relay has done: frames ``held``, ``passed`` on at once and ``lost``, and seconds past deadlines."""

    held: int = 0
    passed: int = 0
    late_sum: float = 0.0
    late_worst: float = 0.0
    lost: int = 0

    @property
    def late_mean(self) -> float:
        """Seconds by which a frame left after its deadline, on average."""
        return self.late_sum / self.held if self.held else 0.0


class _Queue(NamedTuple):
    """Frames of one worker that are held for the same time, so they leave in the order they came."""

    port: int
    seconds: float
    frames: deque[tuple[float, bytes]]


class _Relay:
    def __init__(self, hosts: list[dict]) -> None:
        self.stats = Stats()
        self.poll = select.epoll()
        self.buffer = bytearray(LARGEST)  # read into and copied from: a new object of the largest size costs more
        self.view = memoryview(self.buffer)
        self.outward: dict[int, tuple[_Queue, dict[bytes, _Queue]]] = {}
        self.inward: dict[int, int] = {}
        self.queues: list[_Queue] = []
        for host in hosts:
            near, far = host["near"], host["far"]
            by_delay: dict[float, _Queue] = {}
            for seconds in (host["all"], *host["some"].values()):
                if seconds not in by_delay:
                    by_delay[seconds] = _Queue(far, seconds, deque())
            some = {bytes.fromhex(mac): by_delay[seconds] for mac, seconds in host["some"].items()}
            self.outward[near] = (by_delay[host["all"]], some)
            self.inward[far] = near
            self.queues += by_delay.values()
            for fd in (near, far):
                self.poll.register(fd, select.EPOLLIN)

    def run(self, share: mmap.mmap) -> None:
        while True:
            self.release()
            deadline = min((queue.frames[0][0] for queue in self.queues if queue.frames), default=None)
            # epoll waits in whole milliseconds, select in microseconds; select watches the epoll, so any number goes
            select.select([self.poll], [], [], None if deadline is None else max(0.0, deadline - monotonic()))
            for fd, event in self.poll.poll(0):
                if event & (select.EPOLLERR | select.EPOLLHUP) and not event & select.EPOLLIN:
                    return  # the device is gone
                self.take(fd)
            STATS.pack_into(share, 0, *self.stats)

    def take(self, fd: int) -> None:
        outward = self.outward.get(fd)
        for _ in range(AT_ONCE):
            try:
                size = os.readv(fd, [self.buffer])
            except BlockingIOError:
                return
            if outward is None:
                self.write(self.inward[fd], self.view[:size])
                self.stats = self.stats._replace(passed=self.stats.passed + 1)
                continue
            usual, some = outward
            frame = bytes(self.view[:size])
            queue = some.get(frame[VIRTIO_HEADER : VIRTIO_HEADER + 6], usual) if some else usual
            queue.frames.append((monotonic() + queue.seconds, frame))

    def release(self) -> None:
        now, held, late_sum, worst = monotonic(), 0, 0.0, self.stats.late_worst
        for queue in self.queues:
            frames = queue.frames
            while frames and frames[0][0] <= now:
                deadline, frame = frames.popleft()
                self.write(queue.port, frame)
                late = now - deadline
                held, late_sum, worst = held + 1, late_sum + late, max(worst, late)
        if held:
            old = self.stats
            self.stats = old._replace(held=old.held + held, late_sum=old.late_sum + late_sum, late_worst=worst)

    def write(self, fd: int, frame: bytes | memoryview) -> None:
        try:
            os.write(fd, frame)
        except OSError:  # the device is down, or the kernel is out of memory for frames: a wire loses frames too
            self.stats = self.stats._replace(lost=self.stats.lost + 1)


def _main() -> int:
    keeper, stats = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the relay ends when the keeper does
    if os.getppid() != keeper:
        return 1
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)  # a wire does not wait for a busy processor
    hosts = json.loads(sys.stdin.readline())
    gc.disable()  # nothing here makes cycles, and a collection would be a hiccup on every link
    _Relay(hosts).run(mmap.mmap(stats, 64))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
