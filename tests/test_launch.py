"""Watching workers, without any: what is told of how they end, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from laconic import launch
from laconic.bench import testbed as beds
from laconic.errors import ConfigError, RunFailed
from laconic.recipe import Recipe
from laconic.train import note_error
from tests.here import MINE

Counter = namedtuple("Counter", "sent_bytes")


class Process:
    """A process whose every poll is written down beforehand: a status, None while it runs, or an error to raise."""

    def __init__(self, *polls, pid=0):
        self.polls, self.pid, self.returncode, self.done = list(polls), pid, None, []

    def poll(self):
        if self.returncode is None and self.polls:
            now = self.polls.pop(0)
            if callable(now):
                now = now()
            self.returncode = now
        return self.returncode

    def wait(self, timeout=None):
        self.done.append("wait")
        if self.returncode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self.returncode

    def terminate(self):
        self.done.append("terminate")

    def kill(self):
        self.done.append("kill")
        self.returncode = -signal.SIGKILL


def press_ctrl_c():
    raise KeyboardInterrupt


@pytest.fixture
def attend(tmp_path, monkeypatch):
    """Follow processes in an empty run folder."""
    (tmp_path / "log.txt").touch()
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)

    def run(*workers, watch=None):
        launch._attend(list(workers), tmp_path, watch)

    return run


def noted(folder, rank, message, peer):
    (folder / f"error-{rank}.json").write_text(json.dumps({"message": message, "peer": peer, "time": rank}))


# -- how a run ended ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (-9, "^the run's process was ended by SIGKILL, as the system does where memory runs out; see .*log.txt$"),
        (-11, "^the run's process was ended by SIGSEGV; see"),
        (-63, "^the run's process was ended by signal 63; see"),
        (1, "^the workers ended without a word; see"),
    ],
)
def test_what_ended_a_run_of_one_process_is_told(attend, status, told):
    with pytest.raises(RunFailed, match=told):
        attend(Process(None, status))


def test_of_several_processes_the_one_that_was_killed_is_named_and_not_those_that_we_end_for_it(attend, tmp_path):
    noted(tmp_path, 0, "worker 0: worker 1 is gone", peer=True)
    first, second = Process(None, None, None), Process(-9)
    with pytest.raises(RunFailed, match=r"^worker 0: worker 1 is gone; worker 1 was ended by SIGKILL, as"):
        attend(first, second)
    assert first.returncode == -9
    assert first.done[-2:] == ["kill", "wait"]


def test_what_torchrun_logged_of_a_worker_comes_before_how_torchrun_itself_ended(attend, tmp_path):
    log = "rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 77)\n"

    def write():
        (tmp_path / "log.txt").write_text(log)
        return 1

    with pytest.raises(RunFailed, match=r"^worker 1 was ended by SIGKILL"):
        attend(Process(write))


# -- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_worker_whose_error_cannot_be_written_down_ends_all_the_same(tmp_path, monkeypatch, capsys):
    def full(text):
        raise OSError(28, "No space left on device")

    (tmp_path / "error-1.json").symlink_to("/dev/full")
    note_error(tmp_path, 1, ValueError("what it was"))
    assert "NoneType" in capsys.readouterr().err  # the trace: none, for nothing was raised
    monkeypatch.setattr(sys.stderr, "write", full)
    note_error(tmp_path, 1, ValueError("what it was"))


def test_that_a_disk_is_full_is_told_as_that(tmp_path, attend, monkeypatch):
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        note_error(tmp_path, 1, error)
    told = f"worker 1: {tmp_path}: cannot be written: No space left on device; make room, and go on by --resume"
    assert json.loads((tmp_path / "error-1.json").read_text())["message"] == told
    with pytest.raises(RunFailed) as failed:
        attend(Process(2))
    assert str(failed.value) == told


@pytest.mark.parametrize("left", [None, "", "worker 0: worker 1 is gone"])
def test_where_nobody_could_write_down_why_the_disk_itself_is_asked(left, tmp_path, attend, monkeypatch):
    monkeypatch.setattr(launch.shutil, "disk_usage", lambda place: namedtuple("Usage", "free")(4096))
    if left:
        noted(tmp_path, 0, left, peer=True)
    elif left is not None:
        (tmp_path / "error-0.json").write_text(left)
    with pytest.raises(RunFailed, match="cannot be written: the disk is full; make room, and go on by --resume"):
        attend(Process(2))


# -- Ctrl-C ------------------------------------------------------------------------------------------------------


def test_after_ctrl_c_a_run_is_followed_to_its_end_as_before(attend, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.os, "kill", lambda pid, number: None)
    seen = []

    def step():
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": len(seen) + 1}) + "\n")

    worker = Process(step, press_ctrl_c, step, step, 0)
    with pytest.raises(KeyboardInterrupt):
        attend(worker, watch=lambda line: seen.append((line["step"], list(worker.done))))
    assert seen == [(1, []), (2, []), (3, [])], "nobody waited while there was something to pass on"


def test_a_worker_that_ends_while_it_is_to_be_interrupted_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "worker-0.pid").symlink_to(tmp_path / "gone")  # listed, and not to be read any more
    (tmp_path / "worker-1.pid").write_text("")  # not written yet
    (tmp_path / "worker-2.pid").write_text("1234")
    (tmp_path / "worker-3.pid").write_text("1235")
    told = []

    def kill(pid, number):
        told.append((pid, number))
        raise PermissionError if pid == 1234 else ProcessLookupError  # another's by now, and nobody's

    monkeypatch.setattr(launch.os, "kill", kill)
    launch._interrupt([], tmp_path)
    assert sorted(told) == [(1234, signal.SIGINT), (1235, signal.SIGINT)]


# -- nothing is left running -------------------------------------------------------------------------------------


class Ended(BaseException):
    """In the place of the process's end."""


@pytest.fixture
def bound(monkeypatch):
    """What the kernel was asked for; a process that ends itself raises Ended."""
    asked = []

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(launch, "PRCTL", lambda *words: asked.append(words))
    monkeypatch.setattr(launch.os, "_exit", end)
    return asked


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")


@needs_proc
def test_a_worker_below_who_started_the_run_lives_and_ends_with_its_parent(bound, monkeypatch):
    above = os.getppid()
    monkeypatch.setenv(launch.STARTER, str(above))
    launch.die_with_parent()
    here = os.getpid()
    monkeypatch.setattr(launch.os, "getppid", lambda: here)  # as a worker of torchrun, which would be this process
    launch.die_with_parent()
    assert bound == [(1, signal.SIGKILL)] * 2


@needs_proc
def test_a_worker_whose_torchrun_has_ended_before_it_could_ask_ends_though_who_started_the_run_is_alive(
    bound, monkeypatch
):
    monkeypatch.setenv(launch.STARTER, str(os.getpid()))  # alive, and nothing that this process descends from
    with pytest.raises(Ended):
        launch.die_with_parent()


def test_where_there_is_no_proc_a_worker_ends_only_if_who_started_the_run_does_not_live(bound, monkeypatch):
    monkeypatch.setattr(launch.Path, "exists", lambda path: False)
    monkeypatch.setenv(launch.STARTER, str(os.getpid()))
    launch.die_with_parent()
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(launch.STARTER, str(gone.pid))
    with pytest.raises(Ended):
        launch.die_with_parent()


def test_what_is_started_after_its_parent_has_ended_ends_itself(bound):
    launch._bind(os.getppid())
    assert bound == [(1, signal.SIGKILL)]
    with pytest.raises(Ended):
        launch._bind(os.getpid())  # not the parent that it was to have


# -- bytes on the wire -------------------------------------------------------------------------------------------


@pytest.fixture
def part(tmp_path, monkeypatch):
    """One part of a run on a testbed where each worker sends so many bytes; ``ends`` is what ends it."""

    def run(sent, resume, ends=lambda *_: None):
        class Bed:
            counts = iter([[Counter(0)] * 2, [Counter(nbytes) for nbytes in sent]])
            __test__ = False

            def __init__(self, network):
                pass

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def counters(self):
                return next(self.counts)

            def popen(self, *_, **__):
                return Process(0)

        monkeypatch.setattr(beds, "Testbed", Bed)
        monkeypatch.setattr(launch, "_attend", ends)
        launch._in_testbed(Recipe(MINE, link="20mbit", on="testbed"), tmp_path, None, None, "", resume)

    return run


def wire(folder):
    path = folder / "wire.json"
    return json.loads(path.read_text())["sent_bytes"] if path.exists() else None


def test_the_wires_bytes_are_of_all_parts_of_a_run(part, tmp_path):
    part((100, 200), resume=False)
    assert wire(tmp_path) == [100, 200]
    part((30, 40), resume=True)
    part((5, 5), resume=True)
    assert wire(tmp_path) == [135, 245]


def test_where_a_part_could_not_say_its_bytes_nothing_is_said_of_the_whole(part, tmp_path):
    part((100, 200), resume=False)

    def killed(*_):
        assert wire(tmp_path) is None, "were the command killed now, the file would tell of the first part alone"
        raise RunFailed("worker 1 is gone")

    with pytest.raises(RunFailed):
        part((30, 40), resume=True, ends=killed)
    assert wire(tmp_path) == [130, 240]
    (tmp_path / "wire.json").unlink()
    part((5, 5), resume=True)
    assert wire(tmp_path) is None


# -- how many ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ["paced", "group", "testbed", "simulated"])
def test_too_many_workers_are_refused_before_anything_is_reckoned_for_each_of_them(on, monkeypatch):
    monkeypatch.setattr(Recipe, "network", lambda self: pytest.fail("a network of so many was made"))
    with pytest.raises(ConfigError, match=f"{10**12} (simulated )?workers are too many"):
        launch.prepare(Recipe(MINE, "d-psgd", workers=10**12, on=on, steps=1))
