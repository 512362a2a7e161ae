"""What one machine does by itself: a training step, copying and summing, compressing, and bytes to itself.

Workers on one machine measure at the same time, as they would train: what they share, each has its part of.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laconic import compress
from laconic.errors import ConfigError, LaconicError, WorkloadError, unknown
from laconic.pace import operations
from laconic.packet import message_nbytes
from laconic.plan.measured import KEPT, MachineMeasured, Speed, Spread
from laconic.workloads import Workload, load

COMPRESSORS = ("half", "int8", "topk", "sign", "qsgd")
ELEMENTS = 1 << 20  # of the tensor that is compressed: a layer of some size
COPIED = 1 << 26  # bytes: far over any cache
SUMMED = 1 << 24  # bytes of each tensor that is summed
SUMS = (2, 4, 8)
LOOPED = 1 << 25  # bytes to this machine itself
WARM_UPS = 2
MOST = 15  # times that something is timed
STEPS_SHARE = 0.5  # of the seconds, for training steps; the rest is divided by what there is to do


def look(
    workload: str,
    options: Mapping[str, Any],
    compressors: Sequence[str],
    seconds: float,
    sharing: int = 1,
    rank: int = 0,
    workers: int = 1,
) -> MachineMeasured:
    """Measure this machine in about ``seconds``, what ``sharing`` workers on it leave to each.

    Raises: WorkloadError, ConfigError: a workload that fails, a compressor that is none.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // sharing))
    found = _step(load(workload, dict(options)), seconds * STEPS_SHARE, rank, workers)
    each = seconds * (1 - STEPS_SHARE) / (2 + len(SUMS) + len(compressors))
    there, back = torch.ones(COPIED, dtype=torch.uint8), torch.empty(COPIED, dtype=torch.uint8)
    copied = timed(lambda: back.copy_(there), each)
    del there, back
    return MachineMeasured(
        memory=memory() / sharing,
        copy=per_second(COPIED, copied),
        sums={number: summing(number, each) for number in SUMS},
        loopback=per_second(LOOPED, timed(loopback, each)),
        compressors={name: compressing(name, each) for name in compressors},
        **found,
    )


def timed(run: Callable[[], Any], seconds: float, warm_ups: int = WARM_UPS) -> list[float]:
    """Seconds of each run, 15 at most; once ``seconds`` are over none is begun.

    The first ``warm_ups`` do not count, where there are others: what takes longer than its time is run once.
    """
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or (len(times) < warm_ups + MOST and time.perf_counter() < until):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return times[min(warm_ups, len(times) - 1) :]


def per_second(amount: float, times: Sequence[float]) -> Spread:
    """So much a second, for each of the times."""
    return Spread(tuple(amount / seconds for seconds in times)[-KEPT:])


def compressor(name: str) -> compress.Compressor:
    """The compressor of that name, at its defaults.

    Raises: ConfigError for a name that is no compressor.
    """
    if name not in compress.__all__ or name == "Compressor":
        raise unknown("compressor", name, [n for n in compress.__all__ if n != "Compressor"])
    return getattr(compress, name)()


def compressing(name: str, seconds: float) -> Speed:
    """A compressor on a float32 tensor, in its state as after a few rounds."""
    chosen = compressor(name)
    x = torch.randn(1024, ELEMENTS // 1024, generator=torch.Generator().manual_seed(0))
    state = chosen.init(x)
    for _ in range(WARM_UPS):
        packet, state = chosen.compress(x, state)
    there = timed(lambda: chosen.compress(x, state), seconds / 2, 0)
    back = timed(lambda: chosen.decompress(packet), seconds / 2, 1)
    nbytes = 4 * ELEMENTS
    return Speed(per_second(nbytes, there), per_second(nbytes, back), message_nbytes([packet]) / nbytes)


def summing(number: int, seconds: float) -> Spread:
    """Seconds a byte of each tensor, of summing so many into one in a single pass over memory, as far as torch can."""
    elements = SUMMED // 4 // number * 2  # as large in all, whatever the number
    tensors = torch.ones(number, elements)
    out = torch.empty(elements)
    return Spread(tuple(t / (4 * elements) for t in timed(lambda: torch.sum(tensors, 0, out=out), seconds)))


def loopback() -> None:
    """Send bytes from this machine to itself, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        block = bytes(1 << 20)

        def pour() -> None:
            with socket.create_connection(server.getsockname()) as sender:
                for _ in range(LOOPED // len(block)):
                    sender.sendall(block)

        pouring = threading.Thread(target=pour, daemon=True)
        pouring.start()
        receiver, _ = server.accept()
        with receiver:
            buffer, got = bytearray(1 << 20), 0
            while got < LOOPED:
                got += receiver.recv_into(buffer)
        pouring.join()


# -- a training step ------------------------------------------------------------------------------------------------


def _step(workload: Workload, seconds: float, rank: int, workers: int) -> dict[str, Any]:
    """A step's seconds, forward and backward apart, its operations and what it takes of memory."""
    workload.check(rank, workers)
    work = counted(workload)
    before = _resident(peak=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = workload.make_model()
        optimizer = workload.make_optimizer(model)
        batches = workload.batches("train", rank, workers, 0)
        forward, backward, whole = [], [], []

        def step() -> None:
            batch = next(batches)
            begun = time.perf_counter()
            optimizer.zero_grad()
            loss = workload.loss(model, batch)
            middle = time.perf_counter()
            loss.backward()
            behind = time.perf_counter()
            optimizer.step()
            whole.append(time.perf_counter() - begun)
            forward.append(middle - begun)
            backward.append(behind - middle)

        _forget_peak()
        try:
            times = len(timed(step, seconds))
        except LaconicError:
            raise
        except Exception as error:
            raise WorkloadError(f"{workload.name}: a training step failed: {type(error).__name__}: {error}") from error
    kept = slice(-min(times, KEPT), None)
    return {
        "workload": workload.name,
        "operations": work,
        "tokens": workload.tokens(next(batches)),
        "peak": max(0.0, _resident(peak=True) - before),
        "step": Spread(tuple(whole[kept])),
        "forward": Spread(tuple(forward[kept])),
        "backward": Spread(tuple(backward[kept])),
    }


def counted(workload: Workload) -> float:
    """Operations of a step, forward and backward.

    Raises: ConfigError if none are counted.
    """
    try:
        work = operations(workload)
    except ConfigError:
        raise ConfigError(
            f"{workload.name}: no matrix product, convolution or attention is counted in its step, so what a machine "
            "reaches in training cannot be said by it; probe with another workload"
        ) from None
    return work.forward + work.backward


# -- memory ---------------------------------------------------------------------------------------------------------


def memory() -> float:
    """Bytes that processes of this machine, or of the container that it is, may take."""
    found = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            found = min(found, float(Path(path).read_text()))
    return found


def clock() -> str:
    """What machines have in common whose clocks count from one moment: the same kernel, started once."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {os.getpid()}"


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident(peak: bool) -> float:
    """Bytes that this process takes, or took at most since the peak was forgotten."""
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM" if peak else "VmRSS"))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
