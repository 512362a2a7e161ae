"""Predicted against measured: a price beside the simulated run that it is of, and what is written down after a run."""

import json

import pytest

from laconic import simulate
from laconic.plan import forecast, ledger
from laconic.plan.forecast import after_compare, after_train, measured, told
from laconic.recipe import Recipe
from tests.here import MINE, run_here

STEP = 0.03
WAYS = [
    ("ddp", {}, 8),
    ("topk", {}, 6),
    ("diloco", {"every": 4}, 12),
    ("diloco", {"every": 4}, 14),
    ("streaming-diloco", {"every": 6, "overlap": 1}, 18),
    ("noloco", {"every": 3}, 12),
    ("d-psgd", {}, 8),
]


@pytest.fixture
def simulated_run(monkeypatch):
    monkeypatch.setattr(simulate.signal, "signal", lambda *_: None)

    def run(recipe, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe.to_toml())
        simulate.run(folder, recipe)
        return folder

    return run


def recipe(method, settings, steps, **changes):
    given = {"workers": 3, "link": "1mbit,10ms", "on": "simulated", "step_seconds": STEP, "slow": ("1:2",)} | changes
    return Recipe(MINE, method, settings=settings, steps=steps, **given)


@pytest.mark.parametrize(("method", "settings", "steps"), WAYS)
def test_a_price_is_what_the_simulated_run_takes_and_sends(simulated_run, tmp_path, method, settings, steps):
    plan = recipe(method, settings, steps)
    came = measured(json.loads((simulated_run(plan, tmp_path / "run") / "summary.json").read_text()))
    found = told(forecast.forecast(plan, steps))
    assert found["bytes_per_step"] == pytest.approx(came["bytes_per_step"], rel=0.01)
    assert found["step_seconds"] == pytest.approx(came["step_seconds"], rel=0.02)
    assert found["waiting_share"] == pytest.approx(came["waiting_share"], abs=0.02)


def test_a_finished_simulation_has_its_prediction_in_its_summary_and_teaches_nothing(simulated_run, tmp_path):
    plan = recipe("diloco", {"every": 4}, 12)
    folder = simulated_run(plan, tmp_path / "run")
    sentence = after_train(folder, plan)
    predicted = json.loads((folder / "summary.json").read_text())["predicted"]
    assert predicted["seconds_of_a_step_from"] == "the recipe"
    assert "diloco: a step took" in sentence
    assert not (folder / ledger.FILE).exists()


def test_a_real_runs_miss_is_kept_and_corrects_the_next_prediction(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", steps=6)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    assert after_train(folder, plan).startswith("ddp: a step took ")
    (miss,) = ledger.read([folder]).misses
    assert (miss.method, miss.link, miss.workers, miss.workload) == ("ddp", "1e7 bit/s", 2, "mine")
    first = json.loads((folder / "summary.json").read_text())["predicted"]["step_seconds"]
    assert miss.predicted == pytest.approx(first)
    learnt = ledger.read([folder])
    assert learnt.factor("ddp", plan.network()) == pytest.approx((miss.measured / miss.predicted) ** (1 / 3))


def test_runs_without_a_network_or_a_second_worker_are_not_predicted(monkeypatch, tmp_path):
    folder = run_here(monkeypatch, Recipe(MINE, "ddp", workers=1, steps=2), tmp_path / "one")
    assert after_train(folder, Recipe(MINE, "ddp", workers=1, steps=2)) == ""
    assert json.loads((folder / "summary.json").read_text())["predicted"] is None
    folder = run_here(monkeypatch, Recipe(MINE, "ddp", workers=2, steps=2), tmp_path / "two")
    assert after_train(folder, Recipe(MINE, "ddp", workers=2, steps=2)) == ""


def test_a_prediction_that_fails_takes_nothing_from_the_run(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", steps=3)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    monkeypatch.setattr(forecast, "forecast", lambda *_: 1 / 0)
    assert after_train(folder, plan) == "No prediction: division by zero"
    assert json.loads((folder / "summary.json").read_text())["predicted"] is None


def test_a_comparison_is_predicted_from_the_ideal_that_was_measured_before(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit,2ms", steps=6)
    methods = []
    for method in ("ddp", "topk"):
        folder = run_here(monkeypatch, plan.replace(method=method), tmp_path / method)
        summary = json.loads((folder / "summary.json").read_text())
        methods.append(summary | {"method": method, "settings": {}, "runs": [{"seed": 0, "folder": method}]})
    comparison = {"methods": methods, "ideal": {"measured": [{"step_seconds": 0.01}]}}
    found = after_compare(tmp_path, plan, comparison)
    for entry in found["methods"]:
        assert entry["predicted"]["step_seconds"] > 0.01 + 0.002
        assert entry["predicted"]["seconds_of_a_step_from"] == "the ideal, measured before"
        assert json.loads((tmp_path / entry["name"] / "summary.json").read_text())["predicted"] == entry["predicted"]
    assert len(ledger.read([tmp_path]).misses) == 2
    assert json.loads((tmp_path / "comparison.json").read_text())["methods"][0]["predicted"]
