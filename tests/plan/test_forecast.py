"""Predicted against measured: a price beside the simulated run that it is of, and what is written down after a run."""

import json

import pytest

from laconic import simulate
from laconic.links.network import FRAMES, of_cluster
from laconic.plan import forecast, ledger
from laconic.plan.cluster import read_cluster
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
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit,20ms", steps=6)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    assert after_train(folder, plan).startswith("ddp: a step took ")
    (miss,) = ledger.read([folder]).misses
    assert (miss.method, miss.link, miss.workers, miss.workload) == ("ddp", "1e7 bit/s", 2, "mine")
    first = json.loads((folder / "summary.json").read_text())["predicted"]["step_seconds"]
    assert miss.predicted == pytest.approx(first)
    summary = json.loads((folder / "summary.json").read_text())
    assert miss.computing == pytest.approx(summary["seconds_computing"] / 6)
    exposed = 1 - miss.computing / miss.predicted
    found = ledger.read([folder]).factor("ddp", plan.network(), {}, exposed)
    assert found == pytest.approx(miss.ratio(exposed) ** (1 / 3))
    assert found < 1  # in memory nobody waited


@pytest.mark.parametrize(("method", "settings"), [("ddp", {}), ("uneven-diloco", {"every": 3})])
def test_a_runs_own_seconds_are_what_its_prediction_computes_for_whoever_is_slow(method, settings):
    plan = Recipe(MINE, method, settings=settings, workers=2, link="20mbit", slow=("1:4",), steps=6)
    # Steps of 10 and 40 ms: of equal numbers the mean is 25 ms; in equal times, 16 ms.
    own = 0.025 if method == "ddp" else 0.016
    found = forecast.forecast(plan, 6, own, ran=True)
    assert found.computing == pytest.approx(own)
    assert found.lead > 0.035 if method == "ddp" else found.lead < 0.035
    of_ideal = forecast.forecast(plan, 6, 0.016)
    assert of_ideal.computing == pytest.approx(own)


def test_a_real_run_with_a_slow_worker_is_predicted_to_compute_as_long_as_it_did(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", slow=("1:4",), steps=6)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    seen, price = [], forecast.price
    monkeypatch.setattr(forecast, "price", lambda *a, **given: seen.append(price(*a, **given)) or seen[-1])
    assert after_train(folder, plan).startswith("ddp: a step took ")
    summary = json.loads((folder / "summary.json").read_text())
    assert seen[0].computing == pytest.approx(summary["seconds_computing"] / 6)


def test_on_the_testbed_messages_have_a_clusters_rates_and_a_stated_rate_less_its_frames():
    plan = Recipe(MINE, "ddp", workers=2, link="100mbit,5ms", links=("0-1:50mbit",), on="testbed", steps=6)
    there, here = forecast.payload(plan), forecast.payload(plan.replace(on="paced"))
    for a, b in ((0, 1), (1, 0)):
        assert there.link(a, b).up * FRAMES == pytest.approx(here.link(a, b).up)
        assert there.link(a, b).latency == here.link(a, b).latency
    cluster = Recipe(MINE, "ddp", workers=2, cluster="aws10", on="testbed", steps=6)
    assert forecast.payload(cluster) == of_cluster(read_cluster("aws10"), 2)


def test_a_testbeds_misses_are_kept_for_the_links_that_a_plan_speaks_of(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="100mbit", steps=6)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    after_train(folder, plan.replace(on="testbed"))
    assert ledger.read([folder]).misses[0].link == ledger.link_class(plan.network()) == "1e8 bit/s"


def test_runs_without_a_network_or_a_second_worker_are_not_predicted(monkeypatch, tmp_path):
    folder = run_here(monkeypatch, Recipe(MINE, "ddp", workers=1, steps=2), tmp_path / "one")
    assert after_train(folder, Recipe(MINE, "ddp", workers=1, steps=2)) == ""
    assert json.loads((folder / "summary.json").read_text())["predicted"] is None
    folder = run_here(monkeypatch, Recipe(MINE, "ddp", workers=2, steps=2), tmp_path / "two")
    assert after_train(folder, Recipe(MINE, "ddp", workers=2, steps=2)) == ""


def test_a_prediction_that_fails_takes_nothing_from_the_run(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", steps=3)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    monkeypatch.setattr(forecast, "forecast", lambda *_, **__: 1 / 0)
    assert after_train(folder, plan) == "No prediction: division by zero"
    assert json.loads((folder / "summary.json").read_text())["predicted"] is None


@pytest.mark.parametrize("wrong", ["errors = 3\n", "[[errors]]\nmethod = 3\n", "[[errors"])
def test_a_ledger_that_is_none_takes_nothing_from_a_finished_run(monkeypatch, tmp_path, wrong):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", steps=3)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    (folder / ledger.FILE).write_text(wrong)
    assert "errors.toml: " in after_train(folder, plan)
    assert json.loads((folder / "summary.json").read_text())["steps"] == 3
    comparison = {
        "methods": [{"name": "ddp", "method": "ddp", "settings": {}, "steps": 3, "runs": [{"folder": "run"}]}],
        "ideal": {"measured": [{"step_seconds": 0.01}]},
    }
    said = []
    (tmp_path / ledger.FILE).write_text(wrong)
    assert after_compare(tmp_path, plan, comparison, said.append) is comparison
    assert said[0].startswith("ddp: no prediction: ")


def test_a_prediction_whose_miss_cannot_be_written_down_is_said_all_the_same(monkeypatch, tmp_path):
    plan = Recipe(MINE, "ddp", workers=2, link="20mbit", steps=3)
    folder = run_here(monkeypatch, plan, tmp_path / "run")
    monkeypatch.setattr(ledger, "kept_in", lambda *_: tmp_path / "nowhere" / "errors.toml")
    said = after_train(folder, plan)
    assert said.startswith("ddp: a step took ")
    assert "is not kept: " in said
    assert "cannot be written: No such file" in said
    assert json.loads((folder / "summary.json").read_text())["predicted"]


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
