"""Which ways a command line asks for, and what is refused before anything starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.bench.ways import HIDDEN, MOST_RUNS, ROUNDS, WARM, about, fit, values, ways
from laconic.errors import ConfigError
from laconic.methods import build
from laconic.recipe import Recipe


def settings_of(*arguments, **more):
    return {way.name: way.settings for way in ways(*arguments, **more)}


def test_published_periods_are_shortened_to_a_short_run_and_it_is_said():
    settings, said = fit("diloco", {}, 20 * ROUNDS)
    assert settings == {"every": 20}
    assert said == f"diloco: every=20 in place of 500, for a run of about {20 * ROUNDS} steps"
    settings, said = fit("streaming-diloco", {}, ROUNDS)
    assert settings == {"every": 6}  # no less than two steps a fragment
    assert "every=6 in place of 100" in said
    assert fit("streaming-diloco", {}, 20 * HIDDEN)[0] == {"every": 20}  # what is hidden may come oftener
    assert fit("streaming-diloco", {"overlap": 0}, 20 * ROUNDS)[0]["every"] == 20
    assert fit("co2", {}, 5 * ROUNDS)[0] == {"every": 5}  # a whole model under way: not a number of steps
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


def test_a_period_that_was_set_longer_than_the_run_is_kept_and_said():
    assert fit("diloco", {"every": 250}, 180.4, "diloco every=250") == (
        {"every": 250},
        "diloco every=250: every=250 does not come round once in a run of about 180 steps",
    )


def test_a_setting_goes_to_the_methods_that_have_it_or_to_the_one_it_names():
    assert settings_of("ddp,diloco,noloco", ["every=50", "noloco.momentum=0.4"]) == {
        "ddp": {},
        "diloco": {"every": 50},
        "noloco": {"every": 50, "momentum": 0.4},
    }


def test_every_method_has_an_inner_learning_rate_of_its_own():
    recipe = Recipe("shakespeare", lr=0.1)
    found = ways("ddp,diloco", ["diloco.every=5"], ["diloco.inner_lr=0.003,0.006"])
    assert [way.name for way in found] == ["ddp", "diloco inner_lr=0.003", "diloco inner_lr=0.006"]
    assert [way.settings for way in found] == [{}, {"every": 5}, {"every": 5}]
    assert [way.of(recipe).lr for way in found] == [0.1, 0.003, 0.006]
    assert [way.of(recipe).settings for way in found] == [{}, {"every": 5}, {"every": 5}]
    told = []
    found = ways("ddp,sgp", ["inner_lr=0.5"], tell=told.append)
    assert [way.rate for way in found] == [0.5, 0.5]
    assert not told


@pytest.mark.parametrize("value", ["0", "-1", "fast", "true", "inf"])
def test_an_inner_learning_rate_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="inner_lr must be a positive number"):
        ways("ddp,diloco", [f"diloco.inner_lr={value}"])


def test_a_sweep_makes_a_way_of_each_value_where_the_method_has_the_setting_and_says_where_not():
    told = []
    found = ways("ddp,diloco", sweeps=["every=10,50,250"], tell=told.append)
    assert [way.name for way in found] == ["ddp", "diloco every=10", "diloco every=50", "diloco every=250"]
    assert [way.method for way in found] == ["ddp", "diloco", "diloco", "diloco"]
    assert [way.swept for way in found] == [{}, {"every": 10}, {"every": 50}, {"every": 250}]
    assert told == ["ddp has no setting every, and is one way"]
    ways("ddp,powersgd,diloco", sweeps=["every=10,50"], tell=told.append)
    assert told[1] == "ddp and powersgd have no setting every, and are one way each"


def test_several_sweeps_make_a_grid():
    found = settings_of("diloco", ["momentum=0.8"], ["every=10,50", "lr=0.4,0.7"])
    assert found == {
        f"diloco every={every} lr={lr}": {"momentum": 0.8, "every": every, "lr": lr}
        for every in (10, 50)
        for lr in (0.4, 0.7)
    }


def test_what_names_a_method_goes_before_what_is_for_all():
    found = settings_of("diloco,noloco,local-sgd", ["every=7", "noloco.every=20"], ["diloco.every=10,50"])
    assert found == {
        "diloco every=10": {"every": 10},
        "diloco every=50": {"every": 50},
        "noloco": {"every": 20},
        "local-sgd": {"every": 7},
    }


def test_a_list_or_a_nesting_among_the_values_keeps_its_commas():
    sweep = """compress=["topk(0.05)", "int8"],"chain(topk(0.1), half())",none"""
    assert [value for _, value in values(sweep.partition("=")[2])] == [
        ["topk(0.05)", "int8"],
        "chain(topk(0.1), half())",
        None,
    ]
    assert len(ways("diloco", sweeps=[sweep])) == 3


@given(
    st.lists(
        st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()),
        min_size=1,
        unique_by=repr,
    )
)
def test_values_between_commas_are_read_as_they_were_written(wanted):
    written = ",".join(str(value) for value in wanted)
    assert [value for _, value in values(written)] == wanted
    assert [text for text, _ in values(written)] == written.split(",")


@pytest.mark.parametrize(
    ("methods", "settings", "sweeps", "told"),
    [
        ("", [], [], "name at least one"),
        ("ddp,ddp", [], [], "names one twice"),
        ("ddp,dilco", [], [], "did you mean 'diloco'"),
        ("ddp", ["every=3"], [], "none of ddp has a setting 'every'"),
        ("ddp", ["diloco.every=3"], [], "'diloco' is not among the methods compared"),
        ("diloco", ["diloco.evry=3"], [], "did you mean 'every'"),
        ("diloco", ["every=0"], [], "every must be a whole number of at least 1"),
        ("diloco", ["every"], [], "write name=value, such as every=50"),
        ("diloco", ["every=3", "every=4"], [], "diloco's every is given by both"),
        ("ddp,diloco", [], ["evry=10,50"], "none of ddp, diloco has a setting 'evry'; did you mean 'every'?"),
        ("ddp", [], ["every=10,50"], "none of ddp has a setting 'every'"),
        ("diloco", [], ["diloco.evry=10,50"], "unknown setting of diloco 'evry'; did you mean 'every'"),
        ("diloco", [], ["ddp.every=10,50"], "'ddp' is not among the methods compared"),
        ("diloco", [], ["every"], "write name=value, such as every=10,50,250"),
        ("diloco", [], [".every=10"], "write name=value"),
        ("diloco", [], ["every=10,,50"], "a value is empty"),
        ("diloco", [], ["every=10,"], "a value is empty"),
        ("diloco", [], ["every=10,10"], "10 is there twice"),
        ("diloco", [], ["compress=[topk,int8"], "a bracket does not close"),
        ("diloco", [], ['compress="topk'], "a quote does not close"),
        (
            "diloco",
            [],
            ["every=10,soon"],
            "diloco every=soon: .*every must be a whole number of at least 1, got 'soon'",
        ),
        ("diloco", [], ["every=10,50", "every=20,30"], "given by both"),
        (
            "diloco",
            ["every=5"],
            ["every=10,50"],
            "--set every=5 and --sweep every=10,50: diloco's every is given by both",
        ),
    ],
)
def test_a_way_that_cannot_be_gone_is_refused_in_a_sentence(methods, settings, sweeps, told):
    with pytest.raises(ConfigError, match=told):
        ways(methods, settings, sweeps)


def test_more_runs_than_anybody_waits_for_are_refused_with_their_number_and_their_time():
    grid = ["every=" + ",".join(map(str, range(1, 21))), "lr=" + ",".join(f"0.{n}" for n in range(1, 10))]
    assert len(ways("diloco", sweeps=grid)) == 180
    with pytest.raises(
        ConfigError, match=r"180 ways x 3 seeds are 540 runs, about 4\.5 h of training; a comparison has"
    ):
        ways("diloco", sweeps=grid, seeds=3, seconds=30.0)
    huge = [f"{key}=" + ",".join(f"0.{n}1" for n in range(1, 1000)) for key in ("lr", "momentum", "every")]
    with pytest.raises(ConfigError, match=f"at most {MOST_RUNS}: sweep fewer values"):  # and at once
        ways("diloco", sweeps=huge)
    with pytest.raises(ConfigError, match="--seeds must be at least 1, got 0"):
        ways("diloco", seeds=0)


def test_a_time_is_told_as_roughly_as_it_is_known():
    assert [about(s) for s in (0.2, 40, 89, 90, 1150, 5400, 9000)] == [
        "about 1 s", "about 40 s", "about 89 s", "about 2 min", "about 19 min", "about 1.5 h", "about 2.5 h",
    ]  # fmt: skip
