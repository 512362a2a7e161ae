"""``laconic plan``: a table, reasons, a recipe that runs, and sentences for what cannot be planned."""

import json
from types import SimpleNamespace

import pytest

from laconic.cli.plan import _emit, parse_seconds, parse_size
from laconic.errors import ConfigError
from laconic.plan import ledger
from laconic.plan.ledger import FILE, Miss
from laconic.plan.ranking import Way
from laconic.recipe import Recipe, read_recipe
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
    status, out, err = laconic(
        "plan", MINE, "--link", "1mbit,5ms", *FAST, "--json", "--objective", "bytes", "--slack", 99
    )
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


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_where_nothing_fits_there_is_a_table_and_no_recipe(laconic, tmp_path, words):
    given = ("plan", MINE, "--link", "1mbit,5ms", *FAST, "--memory", "3KB", "--emit", "first.toml", *words)
    status, out, err = laconic(*given)
    assert status != 0
    assert "the table says what would fit" in " ".join(err.split())
    refused = {way["name"]: way["why"] for way in json.loads(out)["refused"]} if words else out
    assert "one machine" in refused
    assert "ddp" in refused
    assert not (tmp_path / "first.toml").exists()


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (("--step-seconds", 2, "--methods", "diloco"), ("diloco", 3, 2.0, None)),
        (("--flops", "1mflops", "--methods", "diloco"), ("alone", 1, 0.00576, None)),
    ],
)
def test_a_recipe_for_a_clusters_machines_computes_as_long_as_was_planned(laconic, tmp_path, words, fields):
    given = ("plan", MINE, "--cluster", "homes6", "--workers", 3, "--tokens", 20_000, *words)
    status, out, err = laconic(*given, "--background", 0.1, "--emit", "r.toml")
    assert status == 0, err
    recipe = read_recipe(tmp_path / "r.toml")
    assert recipe.on == "simulated"
    assert (recipe.method, recipe.workers, recipe.step_seconds, recipe.flops) == pytest.approx(fields)
    assert ("Not in the recipe: --background 0.1" in out) == (recipe.workers > 1)


def test_a_recipe_for_a_clusters_machines_has_the_speed_that_was_planned(tmp_path):
    first = SimpleNamespace(way=Way("ddp", "ddp", {}), tokens=1000.0)
    recipe = Recipe(MINE, workers=3, cluster="homes6", steps=1)
    _emit(tmp_path / "r.toml", recipe, SimpleNamespace(ranked=[first], first=first), "1gflops", None)
    assert (read_recipe(tmp_path / "r.toml").flops, read_recipe(tmp_path / "r.toml").on) == (1e9, "simulated")


def test_what_a_recipe_cannot_say_is_said_beside_it(laconic):
    status, out, err = laconic("plan", MINE, "--link", "1mbit,5ms", *FAST, "--emit", "r.toml")
    assert status == 0, err
    assert "Not in the recipe: --step-seconds 0.05; it computes as fast as this machine does." in out


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


@pytest.mark.processes
def test_a_pilot_measures_what_a_way_needs(laconic):
    words = ("--link", "5mbit", "--step-seconds", 0.05, "--methods", "diloco", "--tokens", 20_000, "--pilot", "10s")
    status, out, err = laconic("plan", MINE, *words, "--json")
    assert status == 0, err
    diloco = [way for way in json.loads(out)["ways"] if way["method"] == "diloco"]
    measured = [way for way in diloco if way["tokens_factor_measured"]]
    assert len(measured) == 1  # there is time for one
    assert measured[0]["tokens_factor_from"].startswith("pilot: ")


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
        (("fashion", "--link", "1gbit", "--workers", 0), "--workers must be at least 1"),
        (("fashion", "--link", "1gbit", "--step-seconds", 1, "--tokens", 0), "--tokens must be at least 1, got 0"),
        (("--params", "1e7", "--link", "1gbit", "--size", "small"), "--size is of a workload, and --params names none"),
        (("--params", "1e7", "--link", "1gbit", "-o", "batch_size=8"), "--option is of a workload"),
        (
            ("fashion", "--link", "1gbit", "--step-seconds", 1, "--methods", "ddp,accordion"),
            "accordion is not ranked, since nothing says how many tokens it needs: its level follows the gradients",
        ),
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
