"""The comparison's arithmetic and words, on runs made by hand."""

from __future__ import annotations

import json

import pytest

from laconic.bench.compare import KEYS, ROUNDS, SECONDS, WARM, conclude, first_reach, fit, verdict, ways
from laconic.errors import ConfigError
from laconic.methods import build
from laconic.recipe import Recipe

RECIPE = Recipe("adult", link="20mbit", seconds=30.0)
IDEAL = {"step_seconds": 0.1, "steps_per_second": 10.0, "steps": 70, "seconds": 7.0}


def finished(folder, name, steps=100, seconds=30.0, waiting=3.0, curve=((10.0, 2.0), (30.0, 1.0))):
    """The folder of a run that has ended."""
    folder.mkdir()
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


def test_a_curve_reaches_a_loss_on_the_straight_line_between_its_points():
    curve = [(1.0, 3.0), (2.0, 2.0), (4.0, 1.0)]
    assert first_reach(curve, 1.5) == 3.0
    assert first_reach(curve, 2.0) == 2.0
    assert first_reach(curve, 9.0) == 1.0  # below it from its first point on
    assert first_reach(curve, 0.5) is None
    assert first_reach([], 0.5) is None
    assert first_reach([(1.0, 2.0), (2.0, 3.0), (3.0, 1.0)], 2.5) == 1.0  # the first time, though it rose again
    assert first_reach([(1.0, 2.0)], float("nan")) is None


def test_published_periods_are_shortened_to_a_short_run_and_it_is_said():
    settings, said = fit("diloco", {}, 20 * ROUNDS)
    assert settings == {"every": 20}
    assert said == f"diloco: every=20 in place of 500, for a run of about {20 * ROUNDS} steps"
    settings, said = fit("streaming-diloco", {}, ROUNDS)
    assert settings == {"every": 6}  # no less than two steps a fragment
    assert "every=6 in place of 100" in said
    settings, said = fit("streaming-diloco", {"overlap": 9}, ROUNDS)
    assert settings == {"every": 30, "overlap": 9}  # nor less than each takes to come back
    build("streaming-diloco", settings)
    settings, said = fit("dgc", {}, 20 * WARM)
    assert settings == {"warmup_steps": 20}


def test_what_the_user_has_set_or_what_fits_already_is_left_alone():
    assert fit("diloco", {"every": 300}, 320) == ({"every": 300}, "")
    assert fit("diloco", {}, 10**6) == ({}, "")
    assert fit("ddp", {}, 10) == ({}, "")
    assert fit("noloco", {"every": 9, "lr": 0.5}, 10) == ({"every": 9, "lr": 0.5}, "")


def test_a_setting_goes_to_the_methods_that_have_it_or_to_the_one_it_names():
    assert ways("ddp,diloco,noloco", ["every=50", "noloco.momentum=0.4"], RECIPE) == {
        "ddp": {},
        "diloco": {"every": 50},
        "noloco": {"every": 50, "momentum": 0.4},
    }


@pytest.mark.parametrize(
    ("methods", "settings", "told"),
    [
        ("", [], "name at least one"),
        ("ddp,ddp", [], "names one twice"),
        ("ddp,dilco", [], "did you mean 'diloco'"),
        ("ddp", ["every=3"], "none of ddp has a setting 'every'"),
        ("ddp", ["diloco.every=3"], "'diloco' is not among the methods compared"),
        ("diloco", ["diloco.evry=3"], "did you mean 'every'"),
        ("diloco", ["every=0"], "every must be a whole number of at least 1"),
    ],
)
def test_a_way_that_cannot_be_gone_is_refused_in_a_sentence(methods, settings, told):
    with pytest.raises(ConfigError, match=told):
        ways(methods, settings, RECIPE)


def test_a_comparison_says_who_reaches_the_plain_ways_loss_first_and_how_far_that_is_from_the_ideal(tmp_path):
    runs = [
        finished(tmp_path / "01-ddp", "ddp", steps=30, waiting=27.0, curve=[(10.0, 3.0), (30.0, 2.0)]),
        finished(tmp_path / "02-dgc", "dgc", curve=[(10.0, 2.5), (20.0, 1.5), (30.0, 1.2)]),
        finished(tmp_path / "03-diloco", "diloco", steps=285, waiting=1.5, curve=[(2.0, 2.5), (4.0, 1.5)]),
        finished(tmp_path / "04-noloco", "noloco", curve=[(10.0, 9.0)]),
    ]
    comparison = conclude(RECIPE, tmp_path, runs, IDEAL)
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
    told = conclude(RECIPE, tmp_path, runs, IDEAL)["verdict"]
    assert told.startswith("ddp itself is the first to reach ddp's final held-out loss: on this link no other")


def test_without_ddp_the_first_method_is_the_plain_way(tmp_path):
    runs = [finished(tmp_path / "1", "diloco"), finished(tmp_path / "2", "noloco", curve=[(15.0, 1.0)])]
    comparison = conclude(RECIPE, tmp_path, runs, IDEAL)
    assert comparison["plain"] == "diloco"
    assert "2.0× sooner than diloco" in comparison["verdict"]


def test_where_nothing_was_evaluated_no_way_reaches_a_loss():
    methods = [{"name": "ddp", "reached_seconds": None, "seconds": 1.0}]
    told = verdict({"methods": methods, "plain": "ddp", "goal": float("nan"), "ideal": IDEAL})
    assert told == "No way reaches ddp's final held-out loss."


def test_a_way_that_is_alone_is_not_called_the_first(tmp_path):
    told = conclude(RECIPE, tmp_path, [finished(tmp_path / "1", "topk")], IDEAL)["verdict"]
    assert told.startswith("topk is alone here. It trains at")
