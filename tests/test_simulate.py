"""A whole run on simulated links: the same to the bit each time, in seconds that can be reckoned by hand."""

import json

import pytest
import torch

from laconic import simulate
from laconic.errors import ConfigError, WorkloadError
from laconic.launch import prepare
from laconic.methods import METHODS
from laconic.pace import operations, pace_of, paces
from laconic.recipe import Recipe, read_recipe
from laconic.workloads import load
from tests.here import MINE, checkpoint, lines, run_here
from tests.test_train import SETTINGS

STEP = 0.03


def recipe(method="ddp", **changes):
    return Recipe(
        MINE, method, **({"workers": 3, "link": "20mbit,10ms", "on": "simulated", "step_seconds": STEP} | changes)
    )


@pytest.fixture
def simulated_run(monkeypatch):
    """Run a recipe in this process as the child process would."""
    monkeypatch.setattr(simulate.signal, "signal", lambda *_: None)

    def run(recipe, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe.to_toml())
        simulate.run(folder, recipe)
        return folder

    return run


def metrics(folder, worker=0):
    return (folder / (f"metrics-{worker}.jsonl" if worker else "metrics.jsonl")).read_text()


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_two_runs_write_the_same_metrics_to_the_byte(simulated_run, tmp_path):
    for method, settings in (("ddp", {}), ("noloco", {"every": 3}), ("streaming-diloco", {"every": 6, "overlap": 1})):
        one, two = (
            simulated_run(recipe(method, settings=settings, seconds=0.7, slow=("1:2",)), tmp_path / f"{method}-{i}")
            for i in range(2)
        )
        for worker in range(3):
            assert metrics(one, worker) == metrics(two, worker), method
        assert (one / "evals.jsonl").read_text() == (two / "evals.jsonl").read_text()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_same_to_the_byte_each_time(method, simulated_run, tmp_path):
    plan = recipe(method, settings=SETTINGS.get(method, {}), steps=8)
    one, two = (simulated_run(plan, tmp_path / str(i)) for i in range(2))
    for worker in range(3):
        assert metrics(one, worker) == metrics(two, worker)
    assert summary(one)["seconds"] >= 8 * STEP * 0.999


def test_a_slow_worker_is_dealt_less_by_its_virtual_speed(simulated_run, tmp_path):
    even, uneven = (
        summary(simulated_run(recipe(m, workers=2, slow=("1:4",), steps=40, settings={"every": 10}), tmp_path / m))
        for m in ("diloco", "uneven-diloco")
    )
    assert uneven["worker_steps"][0] > 2 * uneven["worker_steps"][1]
    assert uneven["seconds"] < 0.75 * even["seconds"]


def test_losses_and_bytes_are_those_of_a_run_on_other_links(simulated_run, tmp_path, monkeypatch):
    here = run_here(
        monkeypatch, recipe("topk", steps=12, settings={"density": 0.1}, on="paced", step_seconds=None), tmp_path / "a"
    )
    there = simulated_run(recipe("topk", steps=12, settings={"density": 0.1}), tmp_path / "b")
    both = [[line["loss"] for line in lines(run / "metrics.jsonl")] for run in (here, there)]
    assert both[0] == both[1]
    out = [lines(run / "metrics.jsonl")[-1] for run in (here, there)]
    assert out[1]["messages_out"] == out[0]["messages_out"]
    assert out[1]["bytes_out"] == out[0]["bytes_out"] + 16 * out[0]["messages_out"]  # the envelope, as over TCP


def test_without_a_network_a_step_takes_what_it_computes_and_a_slow_worker_its_factor(simulated_run, tmp_path):
    run = simulated_run(recipe("alone", steps=10, slow=("2:3",)), tmp_path)
    for worker, factor in enumerate((1, 1, 3)):
        told = [json.loads(line)["seconds"] for line in metrics(run, worker).splitlines()]
        assert told == pytest.approx([STEP * factor * n for n in range(1, 11)], abs=1e-6)
    assert summary(run)["seconds_waiting"] == 0
    assert summary(run)["measured_on"] == "simulated"


def test_an_exchange_hides_behind_the_backward_pass_and_the_rest_is_waited_for(simulated_run, tmp_path):
    run = simulated_run(recipe(steps=10, link="1gbit,10ms", workers=2), tmp_path)
    told = summary(run)
    assert told["seconds_computing"] == pytest.approx(10 * STEP, rel=1e-6)
    assert 0.1 < told["seconds_waiting"] < 0.2  # one latency a step, but for what the last bucket's is hidden by
    assert told["seconds"] == pytest.approx(told["seconds_computing"] + told["seconds_waiting"], rel=1e-6)


def test_a_run_of_so_many_virtual_seconds_ends_after_the_same_step_everywhere(simulated_run, tmp_path):
    for method in ("alone", "ddp"):
        run = simulated_run(recipe(method, seconds=0.5, slow=("1:2",)), tmp_path / method)
        steps = [len(metrics(run, worker).splitlines()) for worker in range(3)]
        assert len(set(steps)) == 1
        assert lines(run / "metrics.jsonl")[-1]["seconds"] >= 0.5
        if method == "alone":
            assert steps[0] in (17, 18)  # another may have begun one more, a moment before worker 0 ended it


def test_the_steps_that_a_slow_worker_is_behind_at_the_end_are_no_silence(simulated_run, tmp_path):
    run = simulated_run(recipe("alone", seconds=0.5, slow=("1:4",), timeout=0.2), tmp_path)
    fast, slow = (lines(run / name)[-1] for name in ("metrics.jsonl", "metrics-1.jsonl"))
    assert fast["step"] == slow["step"]
    assert slow["seconds"] > fast["seconds"] + 1.0


@pytest.mark.parametrize("method", ["ddp", "noloco", "streaming-diloco"])
def test_a_resumed_simulation_ends_with_the_bits_of_one_that_was_never_cut(method, simulated_run, tmp_path):
    settings = {"noloco": {"every": 4}, "streaming-diloco": {"every": 6, "fragments": 2, "overlap": 2}}.get(method, {})
    whole = simulated_run(recipe(method, settings=settings, steps=12), tmp_path / "whole")
    cut = simulated_run(recipe(method, settings=settings, steps=6), tmp_path / "cut")
    simulated_run(recipe(method, settings=settings, steps=12), cut)
    for worker in range(3):
        before, after = checkpoint(whole, 12, worker)[0], checkpoint(cut, 12, worker)[0]
        assert before.keys() == after.keys()
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert [line["step"] for line in lines(cut / "metrics.jsonl")] == list(range(1, 13))


def test_an_interruption_ends_all_workers_after_the_same_step(simulated_run, tmp_path, monkeypatch):
    handlers = {}
    monkeypatch.setattr(simulate.signal, "signal", handlers.setdefault)
    folder = tmp_path / "run"
    folder.mkdir()
    stop_at = 40
    plan = recipe("diloco", settings={"every": 10}, steps=10_000)
    (folder / "recipe.toml").write_text(plan.to_toml())
    begin = simulate.CommonEnding.may_begin

    def may_begin(self, step):
        if step == stop_at and self._link.rank == 1:
            assert (folder / "worker-0.pid").exists()
            next(iter(handlers.values()))()
        return begin(self, step)

    monkeypatch.setattr(simulate.CommonEnding, "may_begin", may_begin)
    simulate.run(folder, plan)
    steps = {len(metrics(folder, worker).splitlines()) for worker in range(3)}
    assert len(steps) == 1
    assert stop_at - 11 <= steps.pop() <= stop_at + 11
    assert summary(folder)["stopped"] == "interrupted"
    assert not (folder / "worker-0.pid").exists()
    assert (folder / "checkpoint").exists()


def test_a_worker_that_fails_is_named_with_its_step(simulated_run, tmp_path):
    (tmp_path / "failing.py").write_text(
        "from tests.mine import *\nfrom tests import mine\n"
        "def batches(split, worker, workers, seed):\n"
        "    for n, batch in enumerate(mine.batches(split, worker, workers, seed)):\n"
        "        if split == 'train' and worker == 1 and n == 4:\n"
        "            raise KeyError('row 17')\n"
        "        yield batch\n"
    )
    plan = Recipe(str(tmp_path / "failing.py"), "ddp", workers=3, on="simulated", steps=9, step_seconds=STEP)
    with pytest.raises(WorkloadError, match="worker 1, step 5: batches failed: KeyError: 'row 17'"):
        simulated_run(plan, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "error-1.json").read_text())
    assert told["kind"] == "WorkloadError"
    assert not told["peer"]


def test_what_is_counted_is_the_work_of_matrix_products_forward_and_twice_that_backward():
    work = operations(load("shakespeare"))
    model = load("shakespeare").make_model()
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embedding" not in n)
    assert work.forward == pytest.approx(2 * matrices * work.tokens, rel=0.15)  # and attention's own
    assert work.backward == pytest.approx(2 * work.forward, rel=0.1)


def test_a_step_takes_its_operations_over_what_the_machine_reaches():
    work = operations(load("fashion"))
    given = Recipe("fashion", workers=2, on="simulated", flops=1e9, slow=("1:4",), steps=1)
    fast, slow = paces(given, load("fashion"))
    assert fast.forward == pytest.approx(work.forward / 1e9)
    assert slow.backward == pytest.approx(4 * work.backward / 1e9)
    assert "at 1 Gflop/s" in pace_of(given)
    assert "at 20 Gflop/s, unless --flops or --step-seconds says otherwise" in pace_of(given.replace(flops=None))
    assert "at what aws10's machines reach" in pace_of(given.replace(flops=None, cluster="aws10"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"on": "paced"}, r"step_seconds is for simulated machines"),
        ({"on": "paced", "step_seconds": None, "flops": 1e9}, r"flops is for simulated machines"),
        ({"flops": 1e9}, r"flops and step_seconds both say"),
        ({"flops": 20.0, "step_seconds": None}, r"flops must be from 1e6 to 1e18 operations a second, got 20"),
        ({"cluster": "aws10"}, r"cluster='aws10' and link='20mbit,10ms' both say what the links are"),
        (
            {"cluster": "aws10", "link": "", "on": "group", "step_seconds": None},
            r"needs on=simulated, paced or testbed",
        ),
        ({"cluster": "aws11", "link": ""}, r"did you mean 'aws10'\?"),
        ({"workers": 5000}, r"5000 simulated workers are too many; use at most 2048"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_starts(changes, told):
    with pytest.raises(ConfigError, match=told):
        prepare(recipe(steps=5, **changes))


def test_what_several_workers_can_share_is_not_refused_because_one_tries_it_first():
    assert prepare(recipe("srrw", workers=4, steps=1, settings={"tokens": 3})) > 0
    with pytest.raises(ConfigError, match="5 tokens among 4 workers"):
        prepare(recipe("srrw", workers=4, steps=1, settings={"tokens": 5}))


def test_more_workers_than_cores_could_carry_as_processes_can_be_simulated():
    assert prepare(recipe("noloco", workers=512, steps=1)) > 0


def test_a_simulated_recipe_reads_back_as_it_was_written(tmp_path):
    plan = recipe(workers=64, link="", cluster="gcp12", step_seconds=None, flops=5e9, steps=3).checked()
    (tmp_path / "recipe.toml").write_text(plan.to_toml())
    assert read_recipe(tmp_path / "recipe.toml") == plan
