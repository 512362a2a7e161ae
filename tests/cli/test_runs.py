"""Whole runs of real processes: what a run leaves, how Ctrl-C and kill end one, and whose error is told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from laconic import launch
from laconic.bench import compare
from laconic.bench import testbed as beds
from laconic.recipe import Recipe
from tests.cli.ctrl_c import ctrl_c
from tests.here import MINE, checkpoint, lines, run_here

SPENT = ["seconds_computing", "seconds_compressing", "seconds_waiting"]
METHOD_KEYS = ["name", "steps", "tokens", "seconds", "loss", "eval_loss", "bytes_out", "messages_out", *SPENT]


def workers_of(folder):
    """Processes that work on a run: the workers and torchrun, which carry its folder in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"laconic.train" in words and str(folder).encode() in words:
                found.append(int(pid))
    return found


def has_steps(path, number=20):
    return path.exists() and path.read_bytes().count(b"\n") >= number


@pytest.mark.processes
def test_ctrl_c_ends_all_workers_after_one_step_and_the_run_goes_on_to_the_bits_of_an_uncut_one(
    laconic, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    words = ("train", MINE, "-m", "diloco", "--set", "every=7", "--seconds", 300, "--option", "wait=0.005")
    with ctrl_c(lambda: has_steps(run / "metrics.jsonl")):
        status, out, told = laconic(*words, "--out", run)
    assert status == 130, told
    assert f"Interrupted; the run is kept. Go on with: laconic train --resume {run}" in out
    assert workers_of(run) == []
    last = [lines(run / name)[-1]["step"] for name in ("metrics.jsonl", "metrics-1.jsonl")]
    assert last[0] == last[1]
    assert json.loads((run / "summary.json").read_text())["stopped"] == "interrupted"

    steps = last[0] + 10
    status, out, told = laconic("train", "--resume", run, "--steps", steps)
    assert status == 0, told
    assert f"run folder: {run}" in out
    assert (run / "report.html").exists()
    assert all(len(line) <= 80 for line in told.splitlines())
    uncut = Recipe(MINE, "diloco", settings={"every": 7}, steps=steps)
    whole = run_here(monkeypatch, uncut, tmp_path / "whole")  # memory links, and never interrupted
    for worker in range(2):
        ours, theirs = (checkpoint(folder, steps, worker)[0] for folder in (run, whole))
        assert [name for name in ours if name != "random" and not torch.equal(ours[name], theirs[name])] == []
    metrics = lines(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, steps + 1))
    assert all(line["bytes_out"] <= 100 for line in metrics[:6])  # each process tells its round once
    assert metrics[7]["bytes_out"] > 0

    assert laconic("train", "--resume", run, "--steps", steps)[0] == 2  # it is there already
    part = run / "checkpoint" / f"step-{steps:09d}" / "worker-1.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    status, _, told = laconic("train", "--resume", run, "--steps", steps + 1)
    assert status == 2
    assert f"checkpoint: cannot read {part}" in told
    assert "Traceback" not in told


@pytest.mark.processes
def test_a_second_ctrl_c_ends_at_once_what_the_first_cannot(laconic, tmp_path, monkeypatch):
    run, hanging, told = tmp_path / "run", tmp_path / "hanging", threading.Event()
    tell = launch._interrupt

    def telling(*given):
        tell(*given)
        told.set()

    monkeypatch.setattr(launch, "_interrupt", telling)
    hangs = ("--option", "wrong=hang", "--option", f"mark={hanging}")
    begun = time.monotonic()
    with ctrl_c(hanging.exists, told.is_set):  # worker 1 hangs, and worker 0 waits for it
        status, out, _ = laconic("train", MINE, "--steps", 300, "--out", run, *hangs)
    assert status == 130
    assert "Interrupted before the first checkpoint" in out
    while workers_of(run) and time.monotonic() - begun < 40:  # they were told to end, and may take a moment
        time.sleep(0.1)
    assert workers_of(run) == []
    assert time.monotonic() - begun < 40


@pytest.mark.processes
@pytest.mark.parametrize(
    ("place", "wrong", "wanted"),
    [
        ("paced", "raise", "laconic: worker 1, step 5: batches failed: KeyError: 'row 17'"),
        ("group", "nan", "laconic: worker 1, step 5: the loss is nan; all parameters are finite"),
        ("group", "kill", "worker 1 is gone"),
    ],
)
def test_what_ends_one_worker_ends_the_run_in_seconds_and_is_what_is_told(place, wrong, wanted, laconic, tmp_path):
    run = tmp_path / "run"
    begun = time.monotonic()
    status, _, told = laconic(
        "train", MINE, "--seconds", 300, "--on", place, "--out", run, "--option", f"wrong={wrong}"
    )
    assert status == 2
    assert wanted in told
    if wrong == "raise":
        assert "mine.py:" in told  # the line in the user's file
    assert len([line for line in told.splitlines() if line.startswith("laconic:")]) == 1
    assert "Traceback" not in told
    assert "PeerLost" in (run / "log.txt").read_text() or wrong != "raise"  # what the others saw is kept in the log
    assert workers_of(run) == []
    assert time.monotonic() - begun < 40


@pytest.mark.processes
def test_killing_the_command_leaves_no_worker_behind(tmp_path):
    runs = [tmp_path / "early", tmp_path / "late"]
    argv = [sys.executable, "-c", "from laconic.cli import main; main()", "train", MINE, "--seconds", "300", "--out"]
    starters = [subprocess.Popen([*argv, str(run)], stdout=subprocess.DEVNULL) for run in runs]
    ready = {runs[0]: lambda: len(workers_of(runs[0])) == 3, runs[1]: lambda: has_steps(runs[1] / "metrics.jsonl")}
    try:
        for run, starter in zip(runs, starters, strict=True):
            deadline = time.monotonic() + 60
            while not ready[run]():  # as soon as its workers are born, and in the middle of training
                assert time.monotonic() < deadline
                time.sleep(0.02)
            starter.kill()
            starter.wait()
        deadline = time.monotonic() + 15
        while any(workers_of(run) for run in runs):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for starter in starters:
            starter.kill()


@pytest.mark.processes
def test_compare_prints_one_json_object_with_what_was_promised_and_nothing_else(laconic, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "IDEAL_LEAST", 1.0)
    folder = tmp_path / "both"
    argv = ("adult", "--methods", "ddp", "--link", "20mbit", "--seconds", 1, "--out", folder, "--json")
    status, out, told = laconic("compare", *argv)
    assert (status, told) == (0, "")
    comparison = json.loads(out)
    promised = {"workload": "adult", "workers": 2, "link": "20mbit", "measured_on": "paced"}
    assert {key: comparison[key] for key in promised} == promised
    assert comparison["verdict"].startswith("ddp is alone here")
    (method,) = comparison["methods"]
    assert [key for key in METHOD_KEYS if key not in method] == []
    assert json.loads((folder / "comparison.json").read_text()) == comparison
    assert (folder / "report.html").exists()
    for run in ("00-ideal", "01-ddp"):  # a budget of seconds ends all workers after the same step
        last = [lines(folder / run / name)[-1]["step"] for name in ("metrics.jsonl", "metrics-1.jsonl")]
        assert last[0] == last[1] > 0
    status, _, told = laconic("report", folder)
    assert status == 0


@pytest.mark.processes
def test_a_comparison_that_is_interrupted_keeps_what_has_finished_and_goes_on(laconic, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "IDEAL_LEAST", 1.0)
    folder = tmp_path / "swept"
    second = folder / "02-diloco" / "seed-0"
    waits = ("--option", "wait=0.01", "--seeds", 2, "--seconds", 3)
    argv = ("compare", MINE, "-m", "ddp,diloco", "--set", "every=5", "--link", "20mbit", "--out", folder, *waits)
    with ctrl_c(lambda: has_steps(second / "metrics.jsonl", 1), patience=300):
        status, out, told = laconic(*argv)
    assert status == 130, told
    assert "2 ways x 2 seeds x 3 s: about" in out
    assert f"Go on with: laconic compare --resume {folder}" in told
    assert workers_of(folder) == []
    status, out, told = laconic("report", folder, "--picture", tmp_path / "part.svg")
    assert status == 0, told
    assert "1 way to train" in (tmp_path / "part.svg").read_text()
    cut = lines(second / "metrics.jsonl")[-1]["step"]

    status, out, told = laconic("compare", "--resume", folder, "--json")
    assert (status, told) == (0, "")
    comparison = json.loads(out)
    assert [m["name"] for m in comparison["methods"]] == ["ddp", "diloco"]
    assert [[run["seed"] for run in m["runs"]] for m in comparison["methods"]] == [[0, 1]] * 2
    assert (comparison["unfinished"], comparison["failed"]) == ([], [])
    steps = [line["step"] for line in lines(second / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))  # it went on from its checkpoint
    assert len(steps) > cut
    assert lines(second / "evals.jsonl")[0]["step"] <= cut  # and its curve begins where it did
    with_text = (folder / "report.html").read_text()
    assert "A line is the mean of 2 seeds" in with_text
    begun: list[Path] = []
    monkeypatch.setattr(compare, "launch", lambda recipe, run, *_, **__: begun.append(run))
    assert laconic("compare", "--resume", folder)[0] == 0
    assert begun == []  # nothing is left to run


@pytest.mark.processes
def test_a_way_that_fails_leaves_the_others_and_status_2(laconic, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "IDEAL_LEAST", 1.0)
    argv = ("compare", MINE, "-m", "diloco", "--set", "every=5", "--sweep", "lr=0.7,1e30", "--link")
    status, out, told = laconic(*argv, "20mbit", "--seconds", 1.5, "--out", tmp_path / "run")
    assert status == 2
    assert "diloco lr=1e30: worker" in told
    assert "Traceback" not in told
    assert "diloco lr=0.7" in " ".join(out.split())
    assert "failed: diloco lr=1e30" in " ".join(out.split())
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.processes
@pytest.mark.root
@pytest.mark.skipif(beds.available() is not None, reason=str(beds.available()))
def test_the_meter_agrees_with_the_kernels_count_of_what_left_each_worker(tmp_path):
    methods = {
        "ddp": {},
        "ddp-half": {},
        "topk": {},
        "dgc": {"warmup_steps": 6},
        "powersgd": {},
        "local-sgd": {"every": 5},
        "diloco": {"every": 5},
        "streaming-diloco": {"every": 6, "fragments": 2},
        "noloco": {"every": 5},
    }
    for method, settings in methods.items():
        plan = Recipe(
            "shakespeare", method, settings, {"size": "nano"}, link="200mbit", on="testbed", steps=13, timeout=60.0
        )
        run = launch.launch(plan, tmp_path / method)
        wire = json.loads((run / "wire.json").read_text())["sent_bytes"]
        for worker in range(2):
            metered = json.loads((run / f"worker-{worker}.json").read_text())["bytes_out_in_all"]
            # Acknowledgements of what came in, headers of what went out, the store's and the handshakes' traffic.
            assert metered < wire[worker] < 1.08 * metered + 200_000, (method, worker, metered, wire)
    assert beds.clean() == []


@pytest.mark.root
@pytest.mark.skipif(beds.available() is not None, reason=str(beds.available()))
def test_the_testbed_tells_each_command_who_it_is_and_passes_its_failure_on(laconic):
    script = 'echo "$RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT"; [ $RANK = 0 ] || sleep 0.5; exit $((RANK * 3))'
    status, out, told = laconic("testbed", "--workers", 2, "--link", "50mbit", "--", "sh", "-c", script)
    assert status == 3, told
    assert "0 of 2 at " in out
    assert "1 of 2 at " in out
    assert "worker 1: " in out
    assert beds.clean() == []
    status, _, told = laconic("testbed", "--", "no-such-program")
    assert status == 2
    assert "there is no command 'no-such-program'" in told
