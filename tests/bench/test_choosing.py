"""A comparison that runs some of its ways: which, that it goes on where it was, and what it says of the others."""

from __future__ import annotations

import json
import math

import pytest

from laconic.bench import compare as module
from laconic.bench.choosing import following, promising
from laconic.bench.compare import compare, left, planned, resume
from laconic.bench.ways import ways
from laconic.errors import ConfigError, RunFailed
from tests.bench.test_gone_on import RECIPE, launched  # noqa: F401

SWEEPS = ["every=5,10,20,50", "lr=0.4,0.7,1", "momentum=0,0.5,0.9"]


def grid(most=None):
    return ways("ddp,diloco", sweeps=SWEEPS, most=most)


def told_loss(settings):
    """Best at every=20, lr=0.7, momentum=0.5."""
    if not settings:
        return 3.0
    return 2.0 + abs(math.log(settings["every"] / 20)) / 5 + abs(settings["lr"] - 0.7) + abs(settings["momentum"] - 0.5)


@pytest.fixture
def measured(launched, monkeypatch):  # noqa: F811
    """Runs that end at once with the loss that their settings have."""
    plain = module.launch

    def launch(recipe, run, *args, **kwargs):
        plain(recipe, run, *args, **kwargs)
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"eval_loss": told_loss(recipe.settings)}))

    monkeypatch.setattr(module, "launch", launch)
    return launched


def test_twelve_of_thirty_seven_ways_find_the_best_and_nobody_runs_twice(measured, tmp_path):
    told = []
    comparison = compare(RECIPE, grid(12), tmp_path / "cmp", tell=told.append, most=12)
    names = [method["name"] for method in comparison["methods"]]
    assert len(set(names)) == len(names) == 12
    assert "diloco every=20 lr=0.7 momentum=0.5" in names
    assert told[0].startswith("12 ways of 37 x 30 s")
    assert comparison["ways"] == 37
    assert "12 of 37 ways were run, each chosen by what those before it had shown." in comparison["verdict"]
    assert f"Of the others {comparison['promising']['name']} promises most" in comparison["verdict"]
    assert comparison["promising"]["name"] not in names
    assert comparison["promising"]["eval_loss"] == pytest.approx(2.2, abs=0.2)
    assert comparison["unfinished"] == []
    assert measured.runs[0][0] == "00-ideal"
    assert measured.runs[1][0] == "01-ddp"
    assert measured.runs[-1][0] == "99-ideal"


def test_what_was_cut_short_goes_on_with_the_same_ways(measured, tmp_path):
    whole = compare(RECIPE, grid(8), tmp_path / "whole", most=8)
    fifth = [name for name, _, _ in measured.runs][5]
    measured.wrong[fifth] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(RECIPE, grid(8), tmp_path / "cut", most=8)
    found = json.loads((tmp_path / "cut" / "comparison.json").read_text())
    assert len(found["methods"]) == 4
    assert len(found["unfinished"]) == 4
    measured.wrong.clear()
    plan = planned(tmp_path / "cut")
    assert len(left(plan)) == 5  # and the ideal
    told = []
    comparison = resume(plan, tell=told.append)
    assert told[0] == "4 of 8 runs have finished"
    assert [m["name"] for m in comparison["methods"]] == [m["name"] for m in whole["methods"]]


def test_a_way_that_fails_counts_and_the_others_go_on(measured, tmp_path):
    compare(RECIPE, grid(5), tmp_path / "whole", most=5)
    third = [name for name, _, _ in measured.runs][3]
    measured.wrong[third] = RunFailed("it diverged")
    comparison = compare(RECIPE, grid(5), tmp_path / "cmp", most=5)
    assert len(comparison["methods"]) == 4
    assert len(comparison["failed"]) == 1
    assert "5 of 37 ways were run" in comparison["verdict"]


def test_all_seeds_of_a_way_are_run_before_the_next_is_chosen(measured, tmp_path):
    comparison = compare(RECIPE, grid(4), tmp_path / "cmp", seeds=2, most=4)
    order = [(name.split("/")[0], seed) for name, seed, _ in measured.runs]
    assert order[:3] == [("00-ideal", 0), ("01-ddp", 0), ("01-ddp", 1)]
    assert [seed for _, seed in order[3:-4]] == [0, 1] * 2
    assert order[-3:-2] == [("99-ideal", 0)]
    assert len(comparison["methods"]) == 4


def test_what_is_said_of_the_others_is_only_what_the_runs_can_say():
    every = grid()
    assert promising(every, {}) is None
    assert promising(every, {"ddp": None}) is None
    assert promising(every, {way.name: 2.0 for way in every}) is None
    assert following(every, {"ddp": 3.0}, 0).method == "diloco"


def test_what_cannot_be_chosen_from_is_refused(measured, tmp_path):
    with pytest.raises(ConfigError, match="at least 2 ways"):
        compare(RECIPE, grid(), tmp_path / "cmp", most=1)
    many = [f"every={','.join(map(str, range(5, 105)))}", f"lr={','.join(str(n / 100) for n in range(1, 50))}"]
    with pytest.raises(ConfigError, match="too many to choose from"):
        ways("diloco", sweeps=many, most=10)
    with pytest.raises(ConfigError, match="let --most 20 choose"):
        ways("diloco", sweeps=many)
