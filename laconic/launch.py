"""Starts the workers of a run, watches them, and leaves nothing running.

Workers run under torchrun, or each in its own host of a testbed. They die with the process that started them, whatever
ends it. What they print goes to ``log.txt`` in the run folder; their errors come back as a sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from laconic.errors import ConfigError, RunFailed
from laconic.fault import points
from laconic.recipe import SIMULATED, Recipe
from laconic.workloads import load

POLL_SECONDS = 0.1
COMPILED_SECONDS = 4.0  # a rehearsal that takes longer has compiled something
FULL = 1 << 20  # bytes under which a disk has no room for another line
WORKER_BYTES = 350 << 20  # what a worker takes before its model: the interpreter and torch
MODEL_COPIES = 10  # of the parameters: gradients, the optimizer, a method's state, messages under way
STARTER = "LACONIC_STARTER"  # the environment variable with the pid of who starts the workers
PER_CORE = 16  # workers on one core: beyond that they spend their time taking turns
MOST_SIMULATED = 2048  # each is a thread or two

Watch = Callable[[dict[str, Any]], None]
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # found before any fork: a child may not look for it


def prepare(recipe: Recipe, tell: Callable[[str], None] = lambda sentence: None) -> int:
    """Refuse, before anything is started, what cannot run here; return the model's number of parameters.

    The method is rehearsed, so that loops are compiled once and not by every worker; ``tell`` hears of it.

    Raises: ConfigError, WorkloadError: a sentence each.
    """
    _countable(recipe)
    recipe.checked()
    if recipe.on == SIMULATED:
        from laconic.pace import paces

        paces(recipe, load(recipe.workload, recipe.options))  # refuses a step of which nobody knows how long it takes
    begun = time.monotonic()
    parameters = _tried(recipe)
    if time.monotonic() - begun > COMPILED_SECONDS:
        tell(f"{recipe.method}: compiled its loops for this machine; later runs start at once")
    processes = 1 if recipe.on == SIMULATED else recipe.workers
    need, free = processes * WORKER_BYTES + recipe.workers * MODEL_COPIES * 4 * parameters, _free_memory()
    if free is not None and need > free:
        raise ConfigError(
            f"{recipe.workers} workers need about {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; "
            "use fewer workers or a smaller model"
        )
    if recipe.on == "testbed":
        from laconic.bench.testbed import Testbed, available

        reason = available()
        if reason is not None:
            raise ConfigError(f"on=testbed: {reason}; on=paced holds links to a rate without root")
        Testbed(recipe.network())  # refuses what it cannot carry
    return parameters


def _countable(recipe: Recipe) -> None:
    """Refuse more workers than can take turns here; first of all, for what follows grows with their number."""
    if recipe.on == SIMULATED:
        if recipe.workers > MOST_SIMULATED:
            raise ConfigError(f"{recipe.workers} simulated workers are too many; use at most {MOST_SIMULATED}")
        return
    cores = os.cpu_count() or 1
    if recipe.workers > PER_CORE * cores:
        raise ConfigError(
            f"{recipe.workers} workers are too many for this machine's {cores} cores; use at most {PER_CORE * cores}"
        )


def _tried(recipe: Recipe) -> int:
    """The number of parameters, once workload and method have been put together as every worker will."""
    import torch

    from laconic.attached import warm_up
    from laconic.links import memory
    from laconic.sync.base import among
    from laconic.train import assemble

    workload = load(recipe.workload, recipe.options)
    workload.check(0, recipe.workers, recipe.seed)
    with torch.random.fork_rng(devices=[]):
        (attached,) = memory.run(1, lambda link: assemble(recipe, workload, link))
    among(attached.sync, recipe.workers)
    warm_up(attached.sync, attached.params, recipe.workers)
    attached.detach()
    attached.link.close()
    return sum(p.numel() for p in attached.model.parameters())


def check_room(folder: Path, recipe: Recipe, parameters: int, *, resume: bool = False) -> None:
    """Make the folder; refuse one that holds a run, and a disk without room for two checkpoints of every worker.

    Raises: ConfigError.
    """
    try:
        for name in ("metrics.jsonl", "checkpoint", "comparison.json"):
            if not resume and (folder / name).exists():
                raise ConfigError(f"{folder} holds a run already ({name}); choose another folder, or go on by --resume")
        place = folder
        while not place.exists():
            place = place.parent
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    need = 2 * recipe.workers * parameters * 4 * 6 + min(points.MOST_BYTES, points.MOST * 4 * parameters) + (16 << 20)
    free = shutil.disk_usage(place).free
    if need > free:
        raise ConfigError(f"{folder}: needs {need / 2**20:.0f} MiB for checkpoints, {free / 2**20:.0f} MiB are free")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None


def launch(
    recipe: Recipe,
    folder: Path,
    watch: Watch | None = None,
    *,
    port: int = 0,
    command: str = "",
    resume: bool = False,
) -> Path:
    """Run ``recipe`` into ``folder`` and return it; ``watch`` is given each new line of worker 0's metrics.

    With ``resume`` the run in the folder goes on from its checkpoint. An interruption (Ctrl-C) ends all workers after
    the same step, with a checkpoint; a second one at once.

    Raises: RunFailed with a worker's own error; ConfigError for a port in use, a folder that cannot be written, or one
            that holds a run already; KeyboardInterrupt after an interruption, once nothing runs any more.
    """
    check_room(folder, recipe, 0, resume=resume)
    if recipe.on not in ("testbed", SIMULATED):
        port = usable(port)
    try:
        (folder / "recipe.toml").write_text(recipe.to_toml())
        for old in [*folder.glob("error-*.json"), *folder.glob("worker-*.pid"), folder / "summary.json"]:
            old.unlink(missing_ok=True)
        (folder / "log.txt").touch()
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}") from None
    with open(folder / "log.txt", "ab") as log:
        if recipe.on == "testbed":
            _in_testbed(recipe, folder, log, watch, command, resume)
        else:
            argv = _torchrun(recipe, port) if recipe.on != SIMULATED else [sys.executable, "-m", "laconic.simulate"]
            workers = [_started([*argv, str(folder)], log, command)]
            _attend(workers, folder, watch)
    return folder


def _torchrun(recipe: Recipe, port: int) -> list[str]:
    argv = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={recipe.workers}", "--nnodes=1"]
    argv += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1", "--max-restarts=0"]
    return [*argv, "--module", "laconic.train"]


def _started(argv: list[str], log: IO[bytes], command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=_environment(command),
        start_new_session=True,  # Ctrl-C is ours to pass on, once
        preexec_fn=functools.partial(_bind, os.getpid()),  # noqa: PLW1509  it makes two system calls, and no more
    )


def _in_testbed(recipe: Recipe, folder: Path, log: IO[bytes], watch: Watch | None, command: str, resume: bool) -> None:
    from laconic.bench.testbed import Testbed

    with Testbed(recipe.network()) as testbed:
        argv = [sys.executable, "-m", "laconic.train", str(folder)]
        workers = []
        before = testbed.counters()
        earlier = _sent_before(folder / "wire.json", recipe.workers, resume)
        for rank in range(recipe.workers):
            place = {"RANK": str(rank), "WORLD_SIZE": str(recipe.workers), "LOCAL_RANK": "0"}
            env = _environment(command) | place
            apart = {"start_new_session": True}  # Ctrl-C is ours to pass on, once
            workers.append(
                testbed.popen(rank, argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **apart)
            )
        try:
            _attend(workers, folder, watch)
        finally:
            after = testbed.counters()
            if earlier is not None:
                wire = [e + b.sent_bytes - a.sent_bytes for e, a, b in zip(earlier, before, after, strict=True)]
                (folder / "wire.json").write_text(json.dumps({"sent_bytes": wire}))


def _sent_before(path: Path, workers: int, resume: bool) -> list[int] | None:
    """What each worker had sent in the earlier parts of a run; None where a part ended without saying.

    The file is taken away until this part says, too: of a run in several parts it has the whole, or is not there.
    """
    if not resume:
        return [0] * workers
    try:
        return [int(nbytes) for nbytes in json.loads(path.read_text())["sent_bytes"]]
    except (OSError, ValueError):
        return None
    finally:
        path.unlink(missing_ok=True)


def _attend(workers: list[subprocess.Popen[bytes]], folder: Path, watch: Watch | None) -> None:
    """Follow the workers to their end; on any failure, or an interruption, end them all."""
    tail = Tail(folder / "metrics.jsonl")
    started = (folder / "log.txt").stat().st_size
    interrupted = False
    try:
        while True:
            try:
                _follow(workers, tail, watch, folder)
                break
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                _interrupt(workers, folder)
        ended = [worker.poll() for worker in workers]  # by themselves, or by another's hand than ours
    finally:
        _end(workers)
    errors = _errors(folder)
    if interrupted and all(error["peer"] for error in errors):  # in the rush of an end, peers miss one another
        raise KeyboardInterrupt
    if errors or any(worker.returncode for worker in workers):
        message = errors[0]["message"] if errors else "the workers ended without a word"
        killed = _killed(folder, started, ended)
        blind = not errors or errors[0]["peer"]  # nobody has said what began it
        if blind and killed:
            message = f"{message}; {killed}" if errors else killed
        elif blind and shutil.disk_usage(folder).free < FULL:
            raise RunFailed(f"{folder}: cannot be written: the disk is full; make room, and go on by --resume")
        raise RunFailed(message if errors else f"{message}; see {folder / 'log.txt'}")


def _interrupt(workers: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Ask the run to end after a common step: those that train by themselves, for torchrun may miss a signal.

    One is enough, for it asks the others; before any of them trains, what started them is told to stop.
    """
    training = []
    for path in folder.glob("worker-*.pid"):
        with contextlib.suppress(OSError, ValueError):  # a worker that ends takes its file away
            training.append(int(path.read_text()))
    for pid in training or [worker.pid for worker in workers]:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, and its number is another's
            os.kill(pid, signal.SIGINT)


def _killed(folder: Path, started: int, ended: Sequence[int | None]) -> str:
    """Which worker a signal ended, in words, as torchrun logged it or as its status says; "" if none was.

    ``ended`` are the statuses of what was started: torchrun, the one process of a simulation, or each worker.
    """
    with open(folder / "log.txt", "rb") as file:
        file.seek(started)
        log = file.read().decode(errors="replace")
    exits = re.findall(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-\d+)", log)
    found = [(f"worker {rank}", -int(code)) for rank, code in exits]
    who = [f"worker {rank}" for rank in range(len(ended))] if len(ended) > 1 else ["the run's process"]
    if len(ended) > 1 or not found:
        found += [(name, -status) for name, status in zip(who, ended, strict=True) if status is not None and status < 0]
    if not found:
        return ""
    name, number = min(found, key=lambda end: end[1] == signal.SIGTERM)  # with which torchrun ends the others
    if number == signal.SIGKILL:
        return f"{name} was ended by SIGKILL, as the system does where memory runs out"
    with contextlib.suppress(ValueError):
        return f"{name} was ended by {signal.Signals(number).name}"
    return f"{name} was ended by signal {number}"


def _follow(workers: list[subprocess.Popen[bytes]], tail: Tail, watch: Watch | None, folder: Path) -> None:
    """Pass lines of metrics on until all workers have ended, or one has failed: it says so before it ends."""
    while True:
        running = [worker for worker in workers if worker.poll() is None]
        for line in tail.lines():
            if watch is not None:
                watch(line)
        if not running or any(worker.returncode for worker in workers) or any(folder.glob("error-*.json")):
            return
        time.sleep(POLL_SECONDS)


class Tail:
    """New lines of a growing file of JSON objects."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, path.stat().st_size if path.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        """The whole lines that came since the last call."""
        if not self._path.exists() or self._path.stat().st_size < self._at:
            self._at = 0
            return []
        with open(self._path, "rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _errors(folder: Path) -> list[dict[str, Any]]:
    """Workers' errors, the cause first: a peer that went missing is the effect of another's."""
    found = []
    for path in folder.glob("error-*.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda error: (error["peer"], error["time"]))


def _wait(workers: list[subprocess.Popen[bytes]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, deadline - time.monotonic()))


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    running = [worker for worker in workers if worker.poll() is None]
    if running:
        _wait(running, 2.0)  # the others of a failed run: they notice by themselves
    for worker in running:
        if worker.poll() is None:
            worker.terminate()
    _wait(running, 3.0)
    for worker in running:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


def _environment(command: str) -> dict[str, str]:
    env = dict(os.environ)
    env.setdefault("OMP_NUM_THREADS", "1")  # set again by each worker; torchrun warns without it
    env["LACONIC_COMMAND"] = command
    env["PYTHONUNBUFFERED"] = "1"
    env[STARTER] = str(os.getpid())
    return env


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux); end it now if that has happened already.

    The parent is who started the run, or torchrun, which that one started.
    """
    _end_with_parent()
    starter = os.environ.get(STARTER, "")
    if starter.isdigit() and not _is_above(int(starter)):  # it was killed while this process was still starting
        os._exit(1)


def _bind(parent: int) -> None:
    """The same for what is just being started, torchrun too, which knows nothing of us; between fork and exec."""
    _end_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def _end_with_parent() -> None:
    if PRCTL is not None:
        PRCTL(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: of the parent at this moment, whoever that is by now


def _is_above(pid: int) -> bool:
    """Whether this process descends from another one; only whether that one lives, where there is no /proc.

    That it lives is not enough: torchrun may have been killed, and this process be nobody's by now.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    above = os.getppid()
    while above not in (pid, 0):
        try:
            above = int(Path(f"/proc/{above}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            return False
    return above == pid


def usable(port: int) -> int:
    """``port`` if it can be used, or a free one for 0.

    Raises: ConfigError.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "ports go from 1 to 65535"
            raise ConfigError(f"port {port} cannot be used: {why}; choose another, or none") from None
        return int(probe.getsockname()[1])


def _free_memory() -> int | None:
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/meminfo") as file:
        line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    return None
