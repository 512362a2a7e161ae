"""Starts the workers of a probe, here, in a testbed or over ssh, and hears what they have to tell."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.errors import ConfigError, ProbeFailed
from laconic.links.network import Network

MODULE = ["-m", "laconic.plan.probing.worker"]
REACH_SECONDS = 10  # that ssh may take to reach a host
GRACE_SECONDS = 3.0  # for the workers to end, once their standard input has
RUSH_SECONDS = 1.0  # in which the cause of a failure may be told after its effects
SSH = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={REACH_SECONDS}"]
PORT = 29400  # where workers on several hosts meet
OURS = {"found", "told", "error"}  # what a worker's line may say

Tell = Callable[[str], None]


def here(work: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Run a probe with workers on this machine, over paced links or its loopback."""
    from laconic.launch import usable

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(usable(0))}

    def start(rank: int, env: dict[str, str], **kw: Any) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, *MODULE], env=os.environ | place | env, **kw)

    return _run(start, work, tell)


def in_testbed(network: Network, work: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Run a probe with workers on the hosts of a testbed.

    Raises: ConfigError, TestbedError where there can be none.
    """
    from laconic.bench.testbed import Testbed, available

    reason = available()
    if reason is not None:
        raise ConfigError(f"on=testbed: {reason}; on=paced holds links to a rate without root")
    with Testbed(network) as testbed:

        def start(rank: int, env: dict[str, str], **kw: Any) -> subprocess.Popen[str]:
            return testbed.popen(rank, [sys.executable, *MODULE], env=os.environ | env, **kw)

        return _run(start, work, tell)


def over_ssh(hosts: Sequence[str], python: str, port: int, work: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Run a probe with a worker on each host, started by ssh; the first is where they meet.

    Raises: ConfigError without ssh, or for a name that it would take as an option; ProbeFailed for a host that cannot
            be reached, or where laconic does not start.
    """
    for host in hosts:
        if host.startswith("-"):
            raise ConfigError(f"probe: {host!r} is no host: ssh would take it as an option")
    if shutil.which("ssh") is None:
        raise ConfigError(
            "probe: there is no ssh on this machine; start the workers yourself, as `laconic probe --print` says"
        )
    place = {"MASTER_ADDR": address(hosts[0]), "MASTER_PORT": str(port)}

    def start(rank: int, env: dict[str, str], **kw: Any) -> subprocess.Popen[str]:
        setting = [f"{key}={value}" for key, value in {**place, **env}.items()]
        return subprocess.Popen([*SSH, hosts[rank], shlex.join(["env", *setting, python, *MODULE])], **kw)

    return _run(start, work, tell, hosts)


def address(host: str) -> str:
    """The name or address behind a host as ssh knows it: ``user@alias`` may stand for another in its settings."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(["ssh", "-G", host], capture_output=True, text=True, check=True, timeout=REACH_SECONDS)
        for line in told.stdout.splitlines():
            key, _, value = line.partition(" ")
            if key == "hostname" and value:
                return value
    return plain(host)


def plain(host: str) -> str:
    """A host without the user before it."""
    return host.rpartition("@")[2]


def by_hand(hosts: Sequence[str], port: int, arguments: Sequence[str]) -> str:
    """What to type on each host where ssh cannot start the workers."""
    lines = []
    for rank, host in enumerate(hosts):
        argv = ["torchrun", f"--nnodes={len(hosts)}", f"--node-rank={rank}", "--nproc-per-node=1"]
        argv += [f"--master-addr={plain(hosts[0])}", f"--master-port={port}", "--no-python", "laconic", "probe"]
        lines.append(f"{plain(host)}: {shlex.join([*argv, *arguments])}")
    return "\n".join([*lines, f"The file is written on {plain(hosts[0])}."])


def _run(
    start: Callable[..., subprocess.Popen[str]], work: Mapping[str, Any], tell: Tell, hosts: Sequence[str] = ()
) -> dict[str, Any]:
    """Start the workers, give each its work, and wait for what worker 0 has found; none is left when it returns."""
    size, work = len(work["names"]), {**work, "secret": secrets.token_hex(16)}
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        processes: list[subprocess.Popen[str]] = []
        stack.callback(_stop, processes)
        logs = [Path(folder, f"{rank}.txt") for rank in range(size)]
        for rank in range(size):
            env = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"}
            log = stack.enter_context(open(logs[rank], "w"))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            process = start(rank, env, **pipes, start_new_session=True)
            processes.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(work) + "\n")
                process.stdin.flush()
            threading.Thread(target=_hear, args=(rank, process, said), daemon=True).start()
        return _result(said, processes, logs, work, tell, hosts)


def _hear(
    rank: int, process: subprocess.Popen[str], said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]]
) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and told.keys() & OURS:  # else a shell has said it as it started
                said.put((rank, told))
    process.wait()
    said.put((rank, None))


def _result(
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]],
    processes: Sequence[subprocess.Popen[str]],
    logs: Sequence[Path],
    work: Mapping[str, Any],
    tell: Tell,
    hosts: Sequence[str],
) -> dict[str, Any]:
    names = work["names"]
    missed: set[int] = set()
    effects: list[str] = []  # that a peer is missed; its own word is the cause, and may come a little later
    deadline = time.monotonic() + work["patience"]
    while True:
        try:
            rank, line = said.get(timeout=max(0.01, deadline - time.monotonic()))
        except queue.Empty:
            break
        if line is None:
            if processes[rank].returncode and rank not in missed:
                raise ProbeFailed(_ended(rank, processes[rank].returncode, logs[rank], names, hosts))
        elif "found" in line:
            return dict(line["found"])
        elif "told" in line:
            tell(line["told"])
        elif "error" in line:
            sentence = f"probe: {names[rank]}: {line['error']}"
            if not line.get("peer"):
                raise ProbeFailed(sentence)
            effects.append(sentence)
            deadline = min(deadline, time.monotonic() + RUSH_SECONDS)
            missed.add(rank)
    if effects:
        ranks = ", ".join(f"worker {rank} is {name}" for rank, name in enumerate(names))
        raise ProbeFailed(f"{effects[0]} ({ranks}); can the machines reach one another on any port?")
    raise ProbeFailed(f"probe: no word from {names[0]} for {work['patience']:.0f} s; it is given up")


def _ended(rank: int, status: int, log: Path, names: Sequence[str], hosts: Sequence[str]) -> str:
    """Why a worker ended without a word of its own."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {status}"
    if hosts and status == 255:
        return f"probe: {hosts[rank]} cannot be reached by ssh: {last}"
    if hosts:
        return f"probe: laconic does not start on {hosts[rank]}: {last}; install it there, or say which --python has it"
    return f"probe: {names[rank]} ended: {last}"


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let the workers end, and end those that do not; they go with their standard input in any case."""
    deadline = time.monotonic() + GRACE_SECONDS
    for process in processes:
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
