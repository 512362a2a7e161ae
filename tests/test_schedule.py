"""The learning rate over a run: its shape, that a run follows it, and that the same run resumed does."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.recipe import Recipe, read_recipe
from laconic.schedule import FALLING, factor
from laconic.train import Worker
from tests.here import MINE, checkpoint, run_here


@given(
    st.sampled_from(sorted(FALLING)),
    st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
)
def test_a_rate_rises_over_the_warm_up_and_never_after(schedule, of):
    warmup, steps = of
    rates = [factor(schedule, warmup, taken, steps) for taken in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[warmup] == 1
    assert all(b > a for a, b in itertools.pairwise(rates[: warmup + 1]))
    assert all(b <= a for a, b in itertools.pairwise(rates[warmup:]))


def test_it_is_torchs_own_linear_and_cosine_schedule():
    steps = 40
    weight = torch.nn.Parameter(torch.zeros(1))
    for ours, theirs in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps)),
        ("linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 1e-9, steps)),
    ):
        optimizer = torch.optim.SGD([weight], lr=0.3)
        scheduler = theirs(optimizer)
        for taken in range(steps):
            assert math.isclose(optimizer.param_groups[0]["lr"], 0.3 * factor(ours, 0, taken, steps), rel_tol=1e-6)
            optimizer.step()
            scheduler.step()


def test_every_worker_steps_at_the_schedules_rate(tmp_path, monkeypatch):
    taken = []
    own = Worker._learn

    def learn(self, batch):
        taken.append((self.rank, self.step, self.optimizer.param_groups[0]["lr"]))
        return own(self, batch)

    monkeypatch.setattr(Worker, "_learn", learn)
    plan = Recipe(MINE, steps=10, lr=0.5, schedule="cosine", warmup=2)
    run_here(monkeypatch, plan, tmp_path / "run")
    assert sorted(taken) == [(r, t, 0.5 * factor("cosine", 2, t, 10)) for r in range(2) for t in range(10)]


def test_a_run_that_is_resumed_takes_up_the_schedule_where_it_was(tmp_path, monkeypatch):
    plan = Recipe(MINE, "diloco", {"every": 4}, steps=12, schedule="cosine", warmup=3, save_every=6)
    whole = run_here(monkeypatch, plan, tmp_path / "whole")
    cut = tmp_path / "cut"
    stop = Worker._due

    def due(self):
        if self.step == 6:
            self.ending.ask("interrupted")
        return stop(self)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_due", due)
        run_here(patch, plan, cut)
    run_here(monkeypatch, plan, cut)
    for worker in range(2):
        ours, theirs = checkpoint(cut, 12, worker)[0], checkpoint(whole, 12, worker)[0]
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_schedule_is_kept_in_the_recipe(tmp_path):
    plan = Recipe(MINE, steps=10, schedule="linear", warmup=2)
    (tmp_path / "recipe.toml").write_text(plan.to_toml())
    assert dataclasses.asdict(read_recipe(tmp_path / "recipe.toml")) == dataclasses.asdict(plan)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schedule": "cosin", "steps": 5}, "cosine"),
        ({"schedule": "cosine", "seconds": 5.0}, "how many with steps"),
        ({"schedule": "linear", "tokens": 500}, "how many with steps"),
        ({"warmup": -1, "steps": 5}, "at least 0"),
        ({"warmup": 5, "steps": 5}, "leave nothing"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        Recipe(MINE, **changes).checked()
