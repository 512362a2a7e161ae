"""``laconic laws``: a law from folders of runs, what it predicts, and sentences for runs that make none."""

import json

import pytest

from tests.plan.test_laws import TINY, grid


def leave(folder, point, **changed):
    """A run's folder as training leaves it, as far as a law reads it."""
    folder.mkdir(parents=True)
    told = {"name": "ddp", "workload": "shakespeare", "parameters": int(point.params), "tokens": int(point.tokens)}
    (folder / "summary.json").write_text(json.dumps(told | {"eval_loss": point.loss, "stopped": None} | changed))
    (folder / "metrics.jsonl").write_text("")
    return folder


@pytest.fixture
def runs(tmp_path):
    return [leave(tmp_path / f"run-{i}", point) for i, point in enumerate(grid(TINY, noise=0.001))]


def test_a_law_is_fitted_to_folders_and_predicts_with_an_interval(laconic, runs):
    status, out, err = laconic("laws", *runs, "--params", "1e7", "--tokens", "1e8", "--flops", "1e15", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["runs"] == 36
    assert len(told["sizes"]) == 6
    prediction = told["prediction"]
    assert prediction["low"] <= TINY.loss(1e7, 1e8) <= prediction["high"]
    assert told["held_out"]["params"] == 3.2e6
    assert told["held_out"]["worst"] < 0.01
    assert 6 * told["best"]["params"] * told["best"]["tokens"] == pytest.approx(1e15)


def test_the_page_says_the_law_the_misses_and_how_far_beyond_the_runs(laconic, runs):
    status, out, err = laconic("laws", *runs, "--params", "1e9", "--tokens", "1e8")
    assert status == 0, err
    for word in ("36 runs of shakespeare by ddp", "alpha", "[", "Fitted without the largest size", "times beyond any"):
        assert word in out, word
    status, out, err = laconic("laws", *runs, "--law", "farseer", "--params", "3e6", "--tokens", "3e7")
    assert (status, "rate.power" in out) == (0, True), err


def test_runs_that_were_cut_short_are_left_out_and_named(laconic, runs, tmp_path):
    point = grid(TINY)[0]
    leave(tmp_path / "cut", point, stopped="interrupted")
    status, out, _ = laconic("laws", *runs, tmp_path / "cut")
    assert status == 0
    assert "left out" in out
    assert "interrupted" in out


def test_runs_of_two_methods_are_not_mixed(laconic, runs, tmp_path):
    leave(tmp_path / "other", grid(TINY)[0], name="diloco")
    status, _, err = laconic("laws", *runs, tmp_path / "other")
    assert status != 0
    assert "shakespeare by ddp, shakespeare by diloco" in err
    status, out, _ = laconic("laws", *runs, tmp_path / "other", "--method", "ddp")
    assert (status, "36 runs" in out) == (0, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--law", "moore"), "no law 'moore'"),
        (("--params", "1e7"), "needs both --params and --tokens"),
        (("--method", "sgp"), "no run by 'sgp'"),
        (("--flops", "0"), "--flops must be at least 1"),
    ],
)
def test_bad_input_gets_a_sentence(laconic, runs, options, sentence):
    status, _, err = laconic("laws", *runs, *options)
    assert status != 0
    assert sentence in " ".join(err.split())


def test_too_few_runs_get_a_sentence(laconic, runs):
    status, _, err = laconic("laws", *runs[:4])
    assert status != 0
    assert "at least 6 runs of 3 sizes" in " ".join(err.split())
