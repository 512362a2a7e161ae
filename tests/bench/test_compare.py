"""The comparison's arithmetic and words, on runs made by hand."""

from __future__ import annotations

import json

import pytest

from laconic.bench.table import columns, note
from laconic.bench.verdict import KEYS, SECONDS, Result, conclude, first_reach, values, verdict
from laconic.bench.ways import Way
from laconic.recipe import Recipe

RECIPE = Recipe("adult", link="20mbit", seconds=30.0)
IDEAL = {"step_seconds": 0.1, "steps_per_second": 10.0, "steps": 70, "seconds": 7.0}


def finished(folder, name, steps=100, seconds=30.0, waiting=3.0, curve=((10.0, 2.0), (30.0, 1.0))):
    """The folder of a run that has ended."""
    folder.mkdir(parents=True)
    summary = dict.fromkeys((*KEYS, *SECONDS), 1) | {
        "name": name,
        "steps": steps,
        "seconds": seconds,
        "seconds_waiting": waiting,
        "link": "20mbit",
        "parameters": 124,
        "versions": {},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    points = [json.dumps({"seconds": at, "eval_loss": loss}) + "\n" for at, loss in curve]
    (folder / "evals.jsonl").write_text("".join(points))
    return folder


def single(*runs):
    """Runs of one seed, each the way that its folder's summary names."""
    names = [json.loads((run / "summary.json").read_text())["name"] for run in runs]
    return [Result(Way(name, name, {}, {}), {0: run}) for name, run in zip(names, runs, strict=True)]


def test_a_curve_reaches_a_loss_on_the_straight_line_between_its_points():
    curve = [(1.0, 3.0), (2.0, 2.0), (4.0, 1.0)]
    assert first_reach(curve, 1.5) == 3.0
    assert first_reach(curve, 2.0) == 2.0
    assert first_reach(curve, 9.0) == 1.0  # below it from its first point on
    assert first_reach(curve, 0.5) is None
    assert first_reach([], 0.5) is None
    assert first_reach([(1.0, 2.0), (2.0, 3.0), (3.0, 1.0)], 2.5) == 1.0  # the first time, though it rose again
    assert first_reach([(1.0, 2.0)], float("nan")) is None


def test_a_comparison_says_who_reaches_the_plain_ways_loss_first_and_how_far_that_is_from_the_ideal(tmp_path):
    runs = [
        finished(tmp_path / "01-ddp", "ddp", steps=30, waiting=27.0, curve=[(10.0, 3.0), (30.0, 2.0)]),
        finished(tmp_path / "02-dgc", "dgc", curve=[(10.0, 2.5), (20.0, 1.5), (30.0, 1.2)]),
        finished(tmp_path / "03-diloco", "diloco", steps=285, waiting=1.5, curve=[(2.0, 2.5), (4.0, 1.5)]),
        finished(tmp_path / "04-noloco", "noloco", curve=[(10.0, 9.0)]),
    ]
    comparison = conclude(RECIPE, single(*runs), IDEAL)
    assert comparison["plain"] == "ddp"
    assert comparison["goal"] == 2.0
    assert [m["reached_seconds"] for m in comparison["methods"]] == [30.0, 15.0, 3.0, None]
    assert [m["speedup"] for m in comparison["methods"]] == [1.0, 2.0, 10.0, None]
    assert comparison["ideal"]["reached_seconds"] == pytest.approx(3.0)
    assert comparison["verdict"] == (
        "diloco pays: it reaches ddp's final held-out loss after 3.00 s, 10× sooner than ddp (30.0 s); "
        "ddp without a network would take 3.00 s. It trains at 95% of the no-network ideal's steps a second "
        "and waits 5% of its time."
    )


def test_where_the_plain_way_is_first_no_other_way_pays(tmp_path):
    runs = [finished(tmp_path / "1", "ddp"), finished(tmp_path / "2", "diloco", curve=[(30.0, 1.5)])]
    told = conclude(RECIPE, single(*runs), IDEAL)["verdict"]
    assert told.startswith("ddp itself is the first to reach ddp's final held-out loss: on this link no other")


def test_without_ddp_the_first_method_is_the_plain_way(tmp_path):
    runs = [finished(tmp_path / "1", "diloco"), finished(tmp_path / "2", "noloco", curve=[(15.0, 1.0)])]
    comparison = conclude(RECIPE, single(*runs), IDEAL)
    assert comparison["plain"] == "diloco"
    assert "2.0× sooner than diloco" in comparison["verdict"]


def test_where_nothing_was_evaluated_no_way_reaches_a_loss():
    methods = [{"name": "ddp", "reached_seconds": None, "seconds": 1.0}]
    told = verdict({"methods": methods, "plain": "ddp", "goal": float("nan"), "ideal": IDEAL})
    assert told == "No way reaches ddp's final held-out loss."


def test_a_way_that_is_alone_is_not_called_the_first(tmp_path):
    told = conclude(RECIPE, single(finished(tmp_path / "1", "topk")), IDEAL)["verdict"]
    assert told.startswith("topk is alone here. It trains at")


def test_a_pace_above_the_ideals_is_told_as_it_is_and_what_it_means(tmp_path):
    run = finished(tmp_path / "1", "topk", steps=312)
    comparison = conclude(RECIPE, single(run), IDEAL)
    wanted = "It trains at 104% of the no-network ideal's steps a second (over 100%: the machine was quicker then than"
    assert wanted in comparison["verdict"]
    assert "104%" in [column.cell(comparison["methods"][0]) for column in columns(comparison)]  # as in the table
    assert "over 100%: the machine was quicker then" in note(comparison)


SWEPT = {
    "ddp": [(30.0, [(30.0, 2.0)]), (32.0, [(32.0, 2.2)]), (31.0, [(31.0, 1.8)])],
    "diloco every=10": [(30.0, [(5.0, 2.0)]), (30.0, [(6.0, 2.2)]), (30.0, [(7.0, 1.8)])],
    "diloco every=50": [(30.0, [(6.5, 2.0)]), (30.0, [(7.5, 2.2)]), (30.0, [(8.5, 1.8)])],
    "diloco every=90": [(30.0, [(16.0, 2.0)]), (30.0, [(17.0, 2.2)]), (30.0, [(18.0, 1.8)])],
    "diloco every=250": [(30.0, [(16.0, 2.0)]), (30.0, [(17.0, 2.2)]), (30.0, [(18.0, 1.9)])],
}


def several(folder, ways=SWEPT):
    """Runs of three seeds; the loss to reach is 2.0, 2.2 and 1.8, each seed's own."""
    results = []
    for name, seeds in ways.items():
        method, _, value = name.partition(" every=")
        runs = {
            seed: finished(folder / name / f"seed-{seed}", method, seconds=seconds, curve=curve)
            for seed, (seconds, curve) in enumerate(seeds)
        }
        swept = {"every": int(value)} if value else {}
        results.append(Result(Way(name, method, swept, swept), runs))
    return conclude(RECIPE, results, IDEAL)


def test_of_several_seeds_a_way_has_means_and_ranges_and_each_seeds_run(tmp_path):
    comparison = several(tmp_path)
    assert comparison["seeds"] == [0, 1, 2]
    assert comparison["goal"] == pytest.approx(2.0)
    plain, tens, fifties, _, never = comparison["methods"]
    assert plain["seconds"] == plain["reached_seconds"] == 31.0
    assert plain["speedup"] == 1.0
    assert tens["reached_seconds"] == 6.0  # a run is held against the plain way's of the same seed
    assert tens["speedup"] == pytest.approx(31 / 6)
    assert tens["spread"]["reached_seconds"] == [5.0, 7.0]
    assert tens["folder"] == "diloco every=10"
    assert [run["folder"] for run in tens["runs"]] == [f"diloco every=10/seed-{seed}" for seed in range(3)]
    assert [run["reached_seconds"] for run in tens["runs"]] == [5.0, 6.0, 7.0]
    assert (tens["method"], tens["settings"], tens["swept"]) == ("diloco", {"every": 10}, {"every": 10})
    assert never["reached_seconds"] is None  # two seeds of three are no mean
    assert never["reached_runs"] == 2
    assert "2 of 3 seeds" in [column.cell(never) for column in columns(comparison)]
    assert fifties["curve_loss"] == pytest.approx(2.0)


def test_the_verdict_names_the_best_value_and_what_the_seeds_cannot_tell_from_it(tmp_path):
    assert several(tmp_path)["verdict"] == (
        "diloco every=10 pays: it reaches ddp's final held-out loss after 6.00 s in the mean of 3 seeds (5.00 s to "
        "7.00 s), 5.2× sooner than ddp (31.0 s); ddp without a network would take 10.0 s. Within the spread of 3 "
        "seeds, so not told apart from it: diloco every=50 (7.50 s). It trains at 33% of the no-network ideal's steps "
        "a second and waits 10% of its time. Of diloco's 4 values every=10 reaches it first: 6.00 s (every=50 7.50 s "
        "(within the spread), every=90 17.0 s); not reached with every=250."
    )


def test_values_of_which_none_reaches_the_plain_loss_are_ranked_by_their_own(tmp_path):
    never = {"ddp": [(30.0, [(30.0, 1.0)])]} | {f"diloco every={n}": [(30.0, [(30.0, 2.0)])] for n in (10, 50)}
    comparison = several(tmp_path, never)
    comparison["methods"][1]["eval_loss"], comparison["methods"][2]["eval_loss"] = 2.4, 2.25
    assert values(comparison) == ["Of diloco's 2 values every=50 ends lowest: 2.250 (every=10 2.400)."]
    assert comparison["verdict"].startswith("ddp itself is the first to reach ddp's final held-out loss")


def test_one_seed_has_no_spread(tmp_path):
    comparison = conclude(RECIPE, single(finished(tmp_path / "1", "ddp"), finished(tmp_path / "2", "dgc")), IDEAL)
    assert [method["spread"] for method in comparison["methods"]] == [{}, {}]
    assert "spread" not in comparison["verdict"]
    assert [column.spread(comparison["methods"][0]) for column in columns(comparison)] == [""] * 8


def test_a_way_that_lacks_a_seed_is_held_against_the_seeds_it_has(tmp_path):
    ways = {name: list(seeds) for name, seeds in SWEPT.items()}
    ways["diloco every=10"].pop()
    comparison = several(tmp_path, ways)
    assert comparison["methods"][1]["reached_seconds"] == 5.5
    assert comparison["methods"][1]["speedup"] == pytest.approx(62 / 11)
    assert "fewer: diloco every=10 of 2" in note(comparison)
