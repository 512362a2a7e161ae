"""A comparison as a whole, of runs that take no time: their order, what is left of one cut short, going on with it."""

from __future__ import annotations

import json

import pytest

from laconic.bench import compare as module
from laconic.bench.compare import OPENING, Plan, compare, cost, ideal_seconds, left, planned, resume
from laconic.bench.runs import read
from laconic.bench.verdict import KEYS, SECONDS
from laconic.bench.ways import Way, ways
from laconic.errors import ConfigError, RunFailed, TestbedError
from laconic.recipe import Recipe
from tests.here import MINE

RECIPE = Recipe(MINE, link="20mbit", seconds=30.0)


@pytest.fixture
def launched(monkeypatch):
    """Runs that end at once; ``launched.wrong`` maps a run's folder to what happens instead."""

    class Launched:
        runs: list = []  # noqa: RUF012
        wrong: dict = {}  # noqa: RUF012

    started = Launched()
    started.runs, started.wrong = [], {}

    def launch(recipe, run, watch=None, *, command="", resume=False, port=0):
        name = str(run.relative_to(run.parents[1] if run.name.startswith("seed-") else run.parent))
        started.runs.append((name, recipe.seed, resume))
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.toml").write_text(recipe.to_toml())
        steps = [{"step": n, "seconds": 0.1 * n, "loss": 2.0, "tokens": n, "bytes_out": n} for n in range(1, 9)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        if name in started.wrong:
            raise started.wrong[name]
        curve = [{"seconds": float(n), "eval_loss": 3.0 - 0.1 * n - 0.01 * recipe.seed} for n in range(1, 9)]
        (run / "evals.jsonl").write_text("".join(json.dumps(point) + "\n" for point in curve))
        numbers = dict.fromkeys((*KEYS, *SECONDS, "parameters"), 8)
        summary = {"name": recipe.method, "link": "20mbit", "versions": {}, "stopped": None} | numbers
        (run / "summary.json").write_text(json.dumps(summary))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "prepare", lambda recipe, tell: recipe.checked() and 100)
    return started


def swept(seeds=1):
    return ways("ddp,diloco", sweeps=["every=5,20"], seeds=seeds)


def test_every_way_is_run_with_one_seed_before_the_next_and_the_ideal_in_between(launched, tmp_path):
    told = []
    comparison = compare(RECIPE, swept(2), tmp_path / "cmp", tell=told.append, seeds=2)
    assert [(name, seed) for name, seed, _ in launched.runs] == [
        ("00-ideal", 0),
        *((f"{way}/seed-0", 0) for way in ("01-ddp", "02-diloco-every=5", "03-diloco-every=20", "99-ideal")),
        *((f"{way}/seed-1", 1) for way in ("01-ddp", "02-diloco-every=5", "03-diloco-every=20", "99-ideal")),
    ]
    assert told[0] == "3 ways x 2 seeds x 30 s: about 4 min"
    assert [m["name"] for m in comparison["methods"]] == ["ddp", "diloco every=5", "diloco every=20"]
    assert len(comparison["ideal"]["measured"]) == 3
    assert (comparison["unfinished"], comparison["failed"]) == ([], [])
    assert json.loads((tmp_path / "cmp" / "comparison.json").read_text()) == comparison
    assert [list(run.seeds) for run in read(tmp_path / "cmp").runs] == [[0, 1]] * 3


def test_one_seed_has_no_folders_for_seeds(launched, tmp_path):
    compare(RECIPE, ways("ddp,diloco"), tmp_path / "cmp")
    assert [name for name, _, _ in launched.runs] == ["00-ideal", "01-ddp", "02-diloco", "99-ideal"]


def test_the_first_seed_is_the_recipes(launched, tmp_path):
    comparison = compare(RECIPE.replace(seed=7), ways("ddp"), tmp_path / "cmp", seeds=3)
    assert comparison["seeds"] == [7, 8, 9]


def test_an_interruption_keeps_what_has_finished_and_going_on_runs_only_the_rest(launched, tmp_path):
    folder = tmp_path / "cmp"
    launched.wrong["03-diloco-every=20"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(RECIPE, swept(), folder)
    found = json.loads((folder / "comparison.json").read_text())
    assert [m["name"] for m in found["methods"]] == ["ddp", "diloco every=5"]
    assert found["unfinished"] == ["03-diloco-every=20"]
    assert [run.name for run in read(folder).runs] == ["ddp", "diloco"]  # and it can be reported

    launched.wrong.clear()
    launched.runs.clear()
    told = []
    plan = planned(folder)
    assert [run.name for run in left(plan)] == ["03-diloco-every=20", "99-ideal"]
    comparison = resume(plan, tell=told.append)
    assert [name for name, _, _ in launched.runs] == ["03-diloco-every=20", "99-ideal"]
    assert told == [
        "2 of 3 runs have finished",
        "cmp/03-diloco-every=20 was cut short before a checkpoint, and is run again",
    ]
    assert [m["name"] for m in comparison["methods"]] == ["ddp", "diloco every=5", "diloco every=20"]
    assert comparison["unfinished"] == []
    launched.runs.clear()
    assert resume(planned(folder)) == comparison  # nothing is left to run
    assert launched.runs == []


def test_a_run_with_a_checkpoint_goes_on_from_it(launched, tmp_path):
    folder = tmp_path / "cmp"
    launched.wrong["02-diloco-every=5"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(RECIPE, swept(), folder)
    for worker in range(2):
        part = folder / "02-diloco-every=5" / "checkpoint" / "step-000000004" / f"worker-{worker}.safetensors"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    launched.wrong.clear()
    launched.runs.clear()
    resume(planned(folder))
    assert launched.runs[0] == ("02-diloco-every=5", 0, True)


def test_an_interruption_before_any_way_has_finished_leaves_no_comparison(launched, tmp_path):
    launched.wrong["00-ideal"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        compare(RECIPE, swept(), tmp_path / "cmp")
    with pytest.raises(ConfigError, match=r"there is no plan.json in it, so no comparison had measured its ideal"):
        planned(tmp_path / "cmp")
    launched.wrong = {"01-ddp": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        compare(RECIPE, swept(), tmp_path / "other")
    assert not (tmp_path / "other" / "comparison.json").exists()
    assert len(left(planned(tmp_path / "other"))) == 4


def test_a_way_that_fails_does_not_end_the_others_and_is_told(launched, tmp_path):
    launched.wrong["02-diloco-every=5"] = RunFailed("worker 1, step 5: the loss is nan")
    comparison = compare(RECIPE, swept(), tmp_path / "cmp")
    assert [m["name"] for m in comparison["methods"]] == ["ddp", "diloco every=20"]
    assert comparison["failed"] == ["diloco every=5: worker 1, step 5: the loss is nan"]
    assert comparison["unfinished"] == []
    launched.wrong = {name: RunFailed(f"{name} cannot") for name in ("01-ddp", "02-diloco")}
    with pytest.raises(RunFailed, match="ddp: 01-ddp cannot"):
        compare(RECIPE, ways("ddp,diloco"), tmp_path / "none")


def test_where_the_plain_way_fails_it_is_said_what_stands_in_for_it(launched, tmp_path):
    launched.wrong["01-ddp"] = TestbedError("the loopback is busy")
    comparison = compare(RECIPE, ways("ddp,diloco,powersgd"), tmp_path / "cmp")
    assert comparison["plain"] == "diloco"
    assert comparison["failed"] == ["ddp: the loopback is busy"]
    told = "ddp, which the others were to be held against, did not finish; diloco stands in. "
    assert comparison["verdict"].startswith(told)


def test_a_plan_comes_back_as_it_was_written(launched, tmp_path):
    recipe = RECIPE.replace(workers=3, links=("1:5mbit",), seed=4, clip=1.0, tokens=None)
    chosen = ways("diloco,ddp", ["form=heavy-ball"], ["every=5,20", "compress=none,int8"], seeds=2)
    compare(recipe, chosen, tmp_path / "cmp", seeds=2)
    plan = planned(tmp_path / "cmp")
    assert plan == Plan(recipe, chosen, [4, 5], tmp_path / "cmp")


def test_a_plan_that_cannot_be_understood_is_refused(launched, tmp_path):
    compare(RECIPE, ways("ddp"), tmp_path / "cmp")
    (tmp_path / "cmp" / "plan.json").write_text('{"ways": [{"nom": "ddp"}], "seeds": [0]}')
    with pytest.raises(ConfigError, match=r"plan.json: it is no plan of this version"):
        planned(tmp_path / "cmp")
    (tmp_path / "cmp" / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match=r"plan.json, line 1: no JSON"):
        planned(tmp_path / "cmp")
    with pytest.raises(ConfigError, match=r"holds a run already \(comparison.json\)"):
        compare(RECIPE, ways("ddp"), tmp_path / "cmp")


def test_the_cost_is_stated_before_anything_is_trained():
    plan = Plan(RECIPE, [Way(str(n), "ddp", {}, {}) for n in range(12)], [0, 1, 2], None)
    seconds = 36 * (30 + OPENING) + 4 * (ideal_seconds(RECIPE) + OPENING)
    assert 22 < seconds / 60 < 24
    assert cost(plan) == "12 ways x 3 seeds x 30 s: about 23 min"
    assert cost(plan._replace(ways=plan.ways[:1], seeds=[0])) == "1 way x 30 s: about 63 s"
    tokens = RECIPE.replace(seconds=None, tokens=200_000)
    assert cost(plan._replace(recipe=tokens)).startswith("12 ways x 3 seeds x 200,000 tokens; how long")


def test_a_folder_is_named_for_its_way_whatever_is_in_the_name(tmp_path):
    plan = Plan(RECIPE, [], [0], tmp_path)
    assert plan.place(3, 'diloco compress=["topk(0.05)", "int8"]', 0).name == "03-diloco-compress=-topk-0.05-int8"
    assert len(plan.place(3, "a" * 300, 0).name) == 63
