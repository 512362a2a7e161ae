"""Runs whose workers take unequal steps or batches: all end after one round, and go on from one."""

from __future__ import annotations

import importlib
import itertools
import json

import pytest
import torch

from laconic import train
from laconic.links.memory import MemoryLink
from laconic.recipe import Recipe
from laconic.sync import speed
from tests.here import MINE, checkpoint, lines, run_here

hcef = importlib.import_module("laconic.sync.hcef")  # the name in its package is the function
sessions = itertools.count(1)
SECONDS = (0.1, 0.25, 0.1)
UNEVEN = {
    "uneven-diloco": {"every": 6},
    "hcef": {"most_steps": 8, "least_density": 0.3},
    "uneven_steps(local_steps(every=1), every=6)": {},
}


@pytest.fixture
def here(monkeypatch):
    """Run recipes with each worker's clock moved by its own steps alone: a batch takes it so many seconds."""

    def run(recipe, folder, seconds=SECONDS, after=lambda worker: None):
        computed = train.Worker._gradients

        def gradients(self, batch):
            worth = seconds[self.rank] * len(batch[0]) / 8
            self.link.__dict__["spent"] = self.link.__dict__.get("spent", 0.0) + worth
            after(self)
            return computed(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(speed, "SESSION", next(sessions))  # as if each run were a process of its own
            patch.setattr(hcef, "SESSION", next(sessions))
            patch.setattr(train.Worker, "_gradients", gradients)
            patch.setattr(MemoryLink, "now", lambda self: self.__dict__.get("spent", 0.0))
            return run_here(monkeypatch, recipe, folder)

    return run


def marks(run):
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoint").iterdir())


@pytest.mark.parametrize("method", UNEVEN)
def test_a_run_ends_with_the_first_round_in_which_workers_have_taken_that_many_steps_on_average(method, tmp_path, here):
    run = here(Recipe(MINE, method, UNEVEN[method], workers=3, steps=40), tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    taken = [lines(run / name)[-1]["step"] for name in ("metrics.jsonl", "metrics-1.jsonl", "metrics-2.jsonl")]
    assert summary["worker_steps"] == taken
    assert taken[0] > taken[1], "the slow one took fewer"
    assert taken[0] == taken[2] or method == "hcef"
    assert summary["steps"] == pytest.approx(sum(taken) / 3, abs=1e-3)
    assert 40 <= summary["steps"] < 40 + 12
    assert summary["tokens"] == 8 * sum(taken)
    assert lines(run / "metrics.jsonl")[-1]["tokens"] == summary["tokens"]
    assert summary["stopped"] is None
    assert len({json.dumps(checkpoint(run, marks(run)[-1], w)[1]["step"]) for w in range(3)}) == 1
    assert marks(run) == [int(sum(taken) / 3)]


@pytest.mark.parametrize("method", UNEVEN)
def test_a_run_that_was_cut_goes_on_to_the_same_bits_each_worker_with_its_next_batch(method, tmp_path, here):
    recipe = Recipe(MINE, method, UNEVEN[method], workers=3, seed=3)
    cut = here(recipe.replace(steps=20), tmp_path / "cut")
    come = marks(cut)[-1]
    if method == "hcef":  # its first steps after a restart are not timed, so its plans may differ: rounds and data hold
        here(recipe.replace(steps=40), cut)
        steps = [[line["step"] for line in lines(cut / f"metrics{w}.jsonl")] for w in ("", "-1", "-2")]
        assert all(own == list(range(1, len(own) + 1)) for own in steps)
        assert json.loads((cut / "summary.json").read_text())["tokens"] == 8 * sum(map(len, steps))
        return
    whole = here(recipe.replace(steps=40), tmp_path / "whole")
    here(recipe.replace(steps=40), cut)
    end = marks(whole)[-1]
    assert marks(cut) == [end] != [come]
    for worker in range(3):
        before, after = checkpoint(whole, end, worker)[0], checkpoint(cut, end, worker)[0]
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
    losses = [[line["loss"] for line in lines(run / "metrics-1.jsonl")] for run in (whole, cut)]
    assert losses[0] == losses[1]


def test_checkpoints_on_the_way_are_of_the_end_of_one_round(tmp_path, here, monkeypatch):
    kept = [[], [], []]
    real = train.checkpoint.save

    def save(run, mark, model, attached, progress):
        state = attached._state
        kept[attached.link.rank].append((mark, state.round, state.step))
        return real(run, mark, model, attached, progress)

    monkeypatch.setattr(train.checkpoint, "save", save)
    here(Recipe(MINE, "uneven-diloco", {"every": 6}, workers=3, steps=60, save_every=15), tmp_path)
    assert kept[0] == kept[1] == kept[2]
    assert [step for _, _, step in kept[0]] == [0] * len(kept[0])
    assert [mark // 15 for mark, _, _ in kept[0]] == [1, 2, 3, 4, 4], "the last is of the run's end"


@pytest.mark.parametrize("end", [{"tokens": 900}, {"steps": 37}])
def test_however_often_it_is_run_it_ends_after_the_same_round(end, tmp_path, here):
    ends = set()
    for attempt in range(4):
        run = here(Recipe(MINE, "uneven-diloco", {"every": 6}, workers=3, **end), tmp_path / str(attempt))
        ends.add(tuple(json.loads((run / "summary.json").read_text())["worker_steps"]))
    assert len(ends) == 1


def test_an_interruption_ends_all_after_the_same_round_and_the_run_goes_on_from_it(tmp_path, here):
    def stop(worker):
        if worker.rank == 1 and worker.step == 9:
            worker.ending.ask("interrupted")

    recipe = Recipe(MINE, "uneven-diloco", {"every": 6}, workers=3, steps=40)
    run = here(recipe, tmp_path / "cut", after=stop)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped"] == "interrupted"
    assert summary["steps"] < 40
    headers = [checkpoint(run, marks(run)[-1], worker)[1] for worker in range(3)]
    rounds = {header["attached"]["skeleton"]["dict"][0][1]["fields"]["round"]["value"] for header in headers}
    assert len(rounds) == 1
    here(recipe, run)
    whole = here(recipe, tmp_path / "whole")
    a, b = (checkpoint(r, marks(r)[-1], 2)[0] for r in (run, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_batches_are_dealt_by_speed_and_the_run_resumes_to_the_bit_with_no_row_lost(tmp_path, here):
    recipe = Recipe(MINE, "uneven-ddp", {"parts": 8, "every": 4}, workers=3, seed=3)
    whole = here(recipe.replace(steps=30), tmp_path / "whole")
    summary = json.loads((whole / "summary.json").read_text())
    own = [json.loads((whole / f"worker-{w}.json").read_text())["tokens"] for w in range(3)]
    assert own[1] < 0.6 * own[0] == 0.6 * own[2]
    assert sum(own) == summary["tokens"] == 30 * 3 * 8
    assert [line["tokens"] for line in lines(whole / "metrics-1.jsonl")] == [24 * n for n in range(1, 31)]
    cut = here(recipe.replace(steps=13), tmp_path / "cut")
    here(recipe.replace(steps=30), cut)
    for worker in range(3):
        a, b = checkpoint(whole, 30, worker)[0], checkpoint(cut, 30, worker)[0]
        assert all(torch.equal(a[name], b[name]) for name in a)
