"""A worker's run, on memory links: what its folder holds, when it ends, and that it resumes to the bit."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess

import pytest
import torch

from laconic.errors import NotANumber, PacketError, WorkloadError
from laconic.methods import METHODS, build
from laconic.recipe import Recipe, seeded
from laconic.train import Worker, commit, own_seed
from tests.here import MINE, checkpoint, lines, run_here

SPENT = ("seconds_computing", "seconds_compressing", "seconds_waiting")
SETTINGS = {
    "accordion": {"every": 2},
    "adaptive": {"grid": [0.1]},  # two runs on two clocks would choose different levels
    "uneven-diloco": {"every": 4, "least": 4, "most": 4},  # what is measured differs from run to run
    "uneven-ddp": {"parts": 1},
    "hcef": {"least_steps": 4, "most_steps": 4, "least_density": 0.1, "most_density": 0.1},
    "dgc": {"density": 0.1, "warmup_steps": 10},
    "diloco": {"every": 4},  # 6 steps end in the middle of a round
    "local-sgd": {"every": 4},
    "noloco": {"every": 4},
    "modest": {"every": 4},
    "slowmo": {"every": 4},
    "co2": {"every": 4},  # a round is always under way
    "post-local-sgd": {"start": 5, "every": 4},
    "streaming-diloco": {"every": 6, "fragments": 2, "overlap": 2},  # after step 6 a fragment is under way until 8
    "topk": {"density": 0.1},
}


def recipe(method="ddp", **changes):
    return Recipe(MINE, method, settings=SETTINGS.get(method, {}), **changes)


def equal(a, b):
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    return [name for name in a[0] if not torch.equal(a[0][name], b[0][name])]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_never_cut(method, tmp_path, monkeypatch):
    whole = run_here(monkeypatch, recipe(method, steps=12, seed=3), tmp_path / "whole")
    cut = run_here(monkeypatch, recipe(method, steps=6, seed=3), tmp_path / "cut")
    flying = method in ("streaming-diloco", "co2")
    if flying:
        assert "Flight" in json.dumps(checkpoint(cut, 6, 0)[1]), (
            "no exchange was under way, so this would prove nothing"
        )
    run_here(monkeypatch, recipe(method, steps=12, seed=3), cut)
    for worker in range(2):
        after = checkpoint(cut, 12, worker)
        before = checkpoint(whole, 12, worker)
        sent = [part[1]["progress"].pop("out") for part in (before, after)]
        agreeing = build(method).learning is not None  # a few bytes: whether all go on from one round
        if method == "modest":  # the end of a loop is told once more, and may overtake a model that is then asked for
            assert sent[1][1] <= sent[0][1] + 8
        elif method == "d-psgd":  # the mixing beside the next backward, of one message here, is sent again
            assert 0 <= sent[1][1] - sent[0][1] <= 1
        elif not flying and not agreeing:  # what was under way is sent again
            assert sent[0] == sent[1]
        elif not flying:
            assert all(0 <= after - before <= 500 for before, after in zip(*sent, strict=True))
        for _, header in (before, after):  # the checker of annotations draws from it, here for two workers at once
            header["random"].pop("python")
        assert equal(before, after) == []
    losses = [[line["loss"] for line in lines(run / "metrics.jsonl")] for run in (whole, cut)]
    assert losses[0] == losses[1]


def test_a_run_that_is_resumed_between_checkpoints_takes_the_lost_steps_again(tmp_path, monkeypatch):
    run = run_here(monkeypatch, recipe(steps=6, save_every=4), tmp_path)
    (run / "checkpoint" / "step-000000006" / "worker-1.safetensors").unlink()  # killed while it wrote
    run_here(monkeypatch, recipe(steps=3, save_every=4), tmp_path / "other")
    (run / "checkpoint" / "step-000000003").mkdir()
    for worker in range(2):
        name = f"step-000000003/worker-{worker}.safetensors"
        (tmp_path / "other" / "checkpoint" / name).rename(run / "checkpoint" / name)
    run_here(monkeypatch, recipe(steps=8), run)
    for name in ("metrics.jsonl", "metrics-1.jsonl"):
        assert [line["step"] for line in lines(run / name)] == list(range(1, 9))
    assert [path.name for path in (run / "checkpoint").iterdir()] == ["step-000000008"]


@pytest.mark.parametrize("measured", [0, 2])
def test_the_curve_of_a_run_that_was_cut_and_resumed_begins_where_the_run_did(measured, tmp_path, monkeypatch):
    whole = run_here(monkeypatch, recipe("diloco", steps=20, save_every=6), tmp_path / "whole")
    wrong = {"wrong": "nan", "at": 15}
    with pytest.raises(NotANumber):
        run_here(monkeypatch, recipe("diloco", steps=20, save_every=6, options=wrong), tmp_path / "cut")
    cut = tmp_path / "cut"
    points = [int(path.stem[5:]) for path in sorted((cut / "points").iterdir())]
    assert points == [line["step"] for line in lines(whole / "evals.jsonl") if line["step"] <= 12]
    assert len(points) >= 5
    shutil.copy(cut / "points" / f"step-{points[0]:09d}.safetensors", cut / "points" / "step-000000014.safetensors")
    with open(cut / "evals.jsonl", "w") as file:  # killed in the middle of its evaluation
        file.writelines(json.dumps(line) + "\n" for line in lines(whole / "evals.jsonl")[:measured])
    run_here(monkeypatch, recipe("diloco", steps=20, save_every=6), cut)
    ours, theirs = ([(p["step"], p["eval_loss"]) for p in lines(run / "evals.jsonl")] for run in (cut, whole))
    assert ours == theirs
    assert not (cut / "points").exists()


def test_a_run_that_is_killed_while_it_evaluates_can_be_finished_with_its_whole_curve(tmp_path, monkeypatch):
    whole = run_here(monkeypatch, recipe("diloco", steps=20), tmp_path / "whole")
    held_out, evaluated = Worker._held_out, []

    def killed(self, batches):
        evaluated.append(len(batches))
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return held_out(self, batches)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_held_out", killed)
        with pytest.raises(KeyboardInterrupt):
            run_here(monkeypatch, recipe("diloco", steps=20), cut)
    assert not (cut / "summary.json").exists()
    run_here(monkeypatch, recipe("diloco", steps=20), cut)
    curves = [[(p["step"], p["eval_loss"]) for p in lines(run / "evals.jsonl")] for run in (whole, cut)]
    assert len(curves[0]) > 5
    assert curves[0] == curves[1]
    one, other = (json.loads((run / "summary.json").read_text()) for run in (whole, cut))
    assert (one["loss"], one["eval_loss"], one["steps"]) == (other["loss"], other["eval_loss"], other["steps"])


def test_weights_that_the_last_step_made_no_numbers_end_the_run_with_a_sentence(tmp_path, monkeypatch):
    held_out = Worker._held_out
    monkeypatch.setattr(Worker, "_held_out", lambda self, batches: held_out(self, batches) * math.nan)
    with pytest.raises(NotANumber, match=r"worker 0, step 5: the loss is nan"):
        run_here(monkeypatch, recipe("alone", steps=5), tmp_path)


def test_a_damaged_point_is_named(tmp_path, monkeypatch):
    with pytest.raises(NotANumber):
        run_here(monkeypatch, recipe(steps=20, save_every=6, options={"wrong": "nan", "at": 15}), tmp_path)
    path = min((tmp_path / "points").iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PacketError, match=rf"points: cannot read .*{path.name}.*; delete it to go on without it"):
        run_here(monkeypatch, recipe(steps=20, save_every=6), tmp_path)


def test_a_run_folder_holds_all_that_the_design_names(tmp_path, monkeypatch):
    run = run_here(monkeypatch, recipe("topk", steps=20), tmp_path)
    for rank, name in enumerate(("metrics.jsonl", "metrics-1.jsonl")):
        metrics = lines(run / name)
        assert [line["step"] for line in metrics] == list(range(1, 21)), rank
        assert list(metrics[0]) == ["step", "tokens", "seconds", "loss", "bytes_out", "messages_out", *SPENT]
        assert [line["tokens"] for line in metrics] == [16 * step for step in range(1, 21)]  # of both workers
        for key in ("seconds", "bytes_out", "messages_out"):
            assert all(a[key] <= b[key] for a, b in itertools.pairwise(metrics)), key
    summary = json.loads((run / "summary.json").read_text())
    told = {"name": "topk", "workers": 2, "measured_on": "paced", "steps": 20, "tokens": 320, "stopped": None}
    assert {key: summary[key] for key in told} == told
    assert summary["parameters"] == sum(t.numel() for n, t in checkpoint(run, 20, 0)[0].items() if n[:6] == "model/")
    assert all(math.isfinite(summary[key]) and summary[key] >= 0 for key in SPENT)
    assert summary["seconds_compressing"] > 0
    evals = lines(run / "evals.jsonl")
    assert evals[-1]["step"] == 20
    assert all(math.isfinite(point["eval_loss"]) for point in evals)
    assert summary["eval_loss"] == pytest.approx(evals[-1]["eval_loss"])
    assert json.loads((run / "worker-1.json").read_text())["bytes_out_in_all"] > summary["bytes_out"]
    assert checkpoint(run, 20, 1)[1]["step"] == 20


@pytest.mark.parametrize(
    ("end", "steps"), [({"steps": 7}, 7), ({"tokens": 100}, 7), ({"tokens": 112}, 7), ({"tokens": 113}, 8)]
)
def test_a_run_of_so_many_steps_or_tokens_has_exactly_as_many(end, steps, tmp_path, monkeypatch):
    for attempt in range(3):  # the workers agree on the last step, and no race may add one
        run = run_here(monkeypatch, recipe("alone", **end), tmp_path / str(attempt))
        assert json.loads((run / "summary.json").read_text())["steps"] == steps


COUNTING = """
import torch
from torch import nn

class Counting(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += self.training
        return super().forward(x)

def make_model():
    return Counting()

def batches(split, worker, workers, seed):
    for _ in range(10**9 if split == "train" else 2):
        yield torch.ones(3, 2)

def loss(model, batch):
    return model(batch).square().mean() if model.training else model.seen
"""


def test_the_curve_is_of_the_buffers_of_its_time_and_not_of_the_last(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(COUNTING)
    run = run_here(monkeypatch, Recipe(str(tmp_path / "counting.py"), "alone", steps=20), tmp_path / "run")
    points = lines(run / "evals.jsonl")
    assert len(points) > 5
    assert [point["eval_loss"] for point in points] == [point["step"] for point in points]


DRAWING = """
import torch
from torch import nn

def make_model():
    return nn.Linear(4, 1)

def batches(split, worker, workers, seed):
    rows = torch.arange(40.0).reshape(10, 4) / 40
    while True:
        for places in torch.randperm(10).split(3):
            yield rows[places]
        if split == "eval":
            return

def loss(model, batch):
    return (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean()
"""


def test_batches_drawn_from_torchs_own_generator_resume_to_the_bit_and_differ_between_workers(tmp_path, monkeypatch):
    (tmp_path / "drawing.py").write_text(DRAWING)
    one = Recipe(str(tmp_path / "drawing.py"), "alone", workers=1, seed=3)
    whole = run_here(monkeypatch, one.replace(steps=13), tmp_path / "whole")
    cut = run_here(monkeypatch, one.replace(steps=6), tmp_path / "cut")
    run_here(monkeypatch, one.replace(steps=13), cut)
    assert equal(checkpoint(whole, 13, 0), checkpoint(cut, 13, 0)) == []
    first = [torch.randperm(10, generator=torch.Generator().manual_seed(own_seed(3, rank))) for rank in range(4)]
    assert len({tuple(order.tolist()) for order in first}) == 4


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_the_packages_own_and_not_of_a_checkout_around_it(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    package = tmp_path / "env" / "laconic"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert commit(package) == "unknown"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    assert len(commit(package)) >= 7
    assert commit(tmp_path / "nowhere") == "unknown"


def test_workers_of_very_different_speed_end_after_the_same_step(tmp_path, monkeypatch):
    uneven = recipe("alone", seconds=0.3, options={"wait": 0.02, "slow": 1}, workers=3)
    run = run_here(monkeypatch, uneven, tmp_path)
    last = {lines(run / name)[-1]["step"] for name in ("metrics.jsonl", "metrics-1.jsonl", "metrics-2.jsonl")}
    assert len(last) == 1


def test_the_steps_that_a_slow_worker_is_behind_at_the_end_are_no_silence(tmp_path, monkeypatch):
    """It needs three times as long as the run has taken by then, which is far more than the patience with a message."""
    uneven = recipe("alone", seconds=0.5, options={"wait": 0.05, "slow": 1}, workers=2, timeout=0.3)
    run = run_here(monkeypatch, uneven, tmp_path)
    fast, slow = (lines(run / name) for name in ("metrics.jsonl", "metrics-1.jsonl"))
    assert len(fast) == len(slow)
    assert slow[-1]["seconds"] - fast[-1]["seconds"] > 0.3


def test_a_finished_run_that_is_resumed_takes_no_step_more(tmp_path, monkeypatch):
    run = run_here(monkeypatch, recipe(steps=5), tmp_path)
    before = checkpoint(run, 5, 1)
    run_here(monkeypatch, recipe(steps=5), run)
    assert equal(before, checkpoint(run, 5, 1)) == []
    assert len(lines(run / "metrics.jsonl")) == 5


def test_a_method_that_did_not_come_to_its_first_exchange_is_metered_at_next_to_nothing(tmp_path, monkeypatch):
    long = recipe("diloco", steps=3).replace(settings={"every": 500})
    run = run_here(monkeypatch, long, tmp_path)
    told = json.loads((run / "summary.json").read_text())["bytes_out"]
    assert told <= 100, "each process tells the others its round, once, and nothing else"
    run_here(monkeypatch, long.replace(steps=6), run)
    assert json.loads((run / "summary.json").read_text())["bytes_out"] == 2 * told


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("raise", "worker 1, step 5: batches failed: KeyError: 'row 17' .*mine.py:"),
        ("nan", "worker 1, step 5: the loss is nan; all parameters are finite"),
        ("shape", r"worker 1, step 5: loss must return a single number, got a tensor of shape \[8\]"),
    ],
)
def test_what_goes_wrong_in_a_workload_names_worker_and_step(wrong, told, tmp_path, monkeypatch):
    with pytest.raises(WorkloadError, match=told):
        run_here(monkeypatch, recipe("alone", steps=9, options={"wrong": wrong}), tmp_path)


def test_what_a_method_draws_follows_the_runs_seed_unless_it_has_one_of_its_own():
    assert seeded(Recipe(MINE, "noloco", steps=1, seed=5)) == {"seed": 5}
    assert seeded(Recipe(MINE, "noloco", steps=1, seed=5, settings={"seed": 2})) == {"seed": 2}
    assert seeded(Recipe(MINE, "diloco", steps=1, seed=5, settings={"every": 3})) == {"every": 3}
