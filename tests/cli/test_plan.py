"""``laconic plan``: a table, reasons, a recipe that runs, and sentences for what cannot be planned."""

import json

import pytest

from laconic.cli.plan import parse_seconds, parse_size
from laconic.errors import ConfigError
from laconic.plan import ledger
from laconic.plan.ledger import FILE, Miss
from laconic.recipe import read_recipe
from tests.here import MINE
from tests.plan.test_uneven_ways import TWO_SITES

FAST = ("--step-seconds", 0.05, "--methods", "ddp,diloco,noloco", "--tokens", 200_000)


def test_a_plan_says_speeds_bytes_memory_waiting_why_and_what_would_help(laconic):
    status, out, err = laconic("plan", MINE, "--workers", 2, "--link", "1mbit,5ms", *FAST)
    assert status == 0, err
    for word in ("tokens/s", "wait", "sent", "memory", "needs", "diloco every=50", "one machine"):
        assert word in out, word
    assert "One machine alone makes" in out
    assert "One change to the cluster:" in out
    assert "the slowest links twice as fast" in out
    assert "small runs" in out  # what is only a prior says so
    assert "ddp's tokens" in out


def test_the_json_of_a_plan_is_one_object_whose_terms_add_up(laconic):
    status, out, err = laconic("plan", MINE, "--link", "1mbit,5ms", *FAST, "--json", "--objective", "bytes")
    assert status == 0, err
    told = json.loads(out)
    for way in told["ways"]:
        assert sum(way["terms"].values()) == pytest.approx(way["step_seconds"])
        assert way["memory"]["total"] == pytest.approx(sum(v for k, v in way["memory"].items() if k != "total"))
        assert way["tokens_factor_from"]
    assert [way["bytes"] for way in told["ways"]] == sorted(way["bytes"] for way in told["ways"])
    assert len(told["why"]) == 4


def test_a_number_of_parameters_is_planned_on_a_cluster_without_a_workload(laconic):
    words = ("--cluster", "homes6", "--workers", 2, "--params", "1e7", "--methods", "ddp,diloco", "--memory", "1GB")
    status, out, err = laconic("plan", *words, "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["job"]["parameters"] == pytest.approx(1e7, rel=0.02)
    assert told["workers"] == 2
    assert "more than 1.00 GB" in told["refused"][0]["why"]


@pytest.mark.processes
def test_an_emitted_recipe_trains_and_its_run_is_held_against_a_prediction(laconic, tmp_path):
    words = ("--workers", 2, "--link", "20mbit,5ms", "--step-seconds", 0.5, "--methods", "diloco")
    status, out, err = laconic("plan", MINE, *words, "--tokens", 8000, "--emit", "first.toml")
    assert status == 0, err
    assert "laconic train --recipe first.toml" in out
    recipe = read_recipe(tmp_path / "first.toml")
    assert (recipe.method, recipe.workers, recipe.link) == ("diloco", 2, "20mbit,5ms")
    assert recipe.tokens > 8000  # more than ddp's, for it needs more
    status, out, err = laconic("train", "--recipe", "first.toml", "--out", "run")
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["predicted"]["bytes_per_step"] == pytest.approx(summary["bytes_out"] / summary["steps"], rel=0.02)
    assert "diloco: a step took" in out
    assert "Predicted and measured" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / FILE).read_text().count("[[errors]]") == 1


def test_misses_of_earlier_runs_correct_a_plan(laconic, tmp_path):
    (tmp_path / "run").mkdir()
    ledger.note(tmp_path / "run" / FILE, [Miss("ddp", "1e6 bit/s", 2, "mine", 1.0, 3.0)] * 4)
    words = ("plan", MINE, "--link", "1mbit,5ms", *FAST, "--json")
    plain, corrected = (
        {way["name"]: way for way in json.loads(laconic(*words, *more)[1])["ways"]} for more in ((), ("--learn", "run"))
    )
    assert corrected["ddp"]["step_seconds"] == pytest.approx(3 ** (4 / 6) * plain["ddp"]["step_seconds"])
    assert corrected["ddp"]["terms"]["learnt from earlier runs"] > 0


def test_an_emitted_recipe_of_two_sites_sums_by_a_plan_and_trains(laconic, tmp_path):
    (tmp_path / "two.toml").write_text(TWO_SITES)
    words = ("--cluster", "two.toml", "--step-seconds", 1, "--methods", "ddp", "--tokens", 2000)
    status, out, err = laconic("plan", MINE, *words, "--emit", "first.toml")
    assert status == 0, err
    recipe = read_recipe(tmp_path / "first.toml")
    assert (recipe.method, recipe.settings["plan"]) == ("ddp", "auto"), out
    status, out, err = laconic("train", "--recipe", "first.toml", "--out", "run")
    assert status == 0, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["predicted"]["bytes_per_step"] == pytest.approx(summary["bytes_out"] / summary["steps"], rel=0.01)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "name a workload (shakespeare, fashion, adult, or a file), or --params 7e9, and not both"),
        (("fashion", "--params", "1e9"), "and not both"),
        (("fashion",), "say what the links are: --link 20mbit,30ms, or --cluster cluster.toml"),
        (("--params", "1e9", "--link", "1gbit"), "say what a machine reaches: --flops 100tflops"),
        (
            ("--params", "1e9", "--link", "1gbit", "--pilot", "60s"),
            "--pilot trains a workload, and --params names none",
        ),
        (("--params", "1e9", "--link", "1gbit", "--emit", "x"), "--emit trains a workload, and --params names none"),
        (("--params", "12", "--link", "1gbit"), "--params is a number of parameters, from 1e3 to 1e14, got 12"),
        (("fashion", "--link", "1gbit", "--memory", "24"), "memory '24' is no size; write it with its unit"),
        (("fashion", "--link", "1gbit", "--pilot", "60"), "time '60' is none; write it with its unit"),
        (("fashion", "--link", "1gbit", "--step-seconds", 1, "--objective", "speed"), "unknown objective 'speed'"),
        (("fashion", "--link", "1gbit", "--batch", "8"), "--batch is for --params"),
        (("fashion", "--link", "1gbit", "--methods", "dpd", "--step-seconds", 1), "unknown method 'dpd'"),
        (("fashion", "--link", "1gbit", "--flops", "1tflops", "--step-seconds", 1), "give one of them"),
        (("fashion", "--cluster", "asw10"), "unknown cluster 'asw10'; did you mean 'aws10'?"),
        (("fashion", "--cluster", "aws10", "--link", "1gbit"), "both say what the links are; give one"),
        (("fashion", "--link", "1gbit", "--workers", -1), "--workers must be at least 1"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(laconic, words, told):
    status, out, err = laconic("plan", *words)
    assert status != 0
    assert told in " ".join(err.split()), (out, err)
    assert "Traceback" not in err


def test_sizes_and_times_have_units():
    assert parse_size("24GB") == 24e9
    assert parse_size("1.5 GiB") == 1.5 * 2**30
    assert parse_seconds("5min") == 300
    with pytest.raises(ConfigError):
        parse_size("0GB")
