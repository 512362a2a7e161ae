"""What ways are taken to need beside ddp."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.methods import METHODS
from laconic.plan.prior import PRIORS, UNRANKED, WORST, fitted, prior_of, progress

LOCAL = [name for name, prior in PRIORS.items() if prior.rounds]


def test_every_method_has_a_prior_or_a_reason_for_having_none():
    known = {name.split()[0] for name in PRIORS}
    assert known | set(UNRANKED) == set(METHODS)
    assert not known & set(UNRANKED)
    assert all(prior.source for prior in PRIORS.values())
    assert all(progress(name, {}, 1000) is None for name in UNRANKED)


@given(name=st.sampled_from(LOCAL), every=st.integers(1, 500), steps=st.floats(10, 1e7))
def test_ways_that_talk_seldom_need_more_tokens_the_shorter_the_run(name, every, steps):
    here, longer = (progress(name, {"every": every}, n).factor for n in (steps, 10 * steps))
    seldom = progress(name, {"every": 2 * every}, steps).factor
    assert 1 <= longer <= here <= seldom <= WORST
    assert progress(name, {"every": every}, 1e12).factor == pytest.approx(1, abs=1e-3)


def test_the_priors_give_back_the_runs_that_they_come_from():
    # Of 500 steps of diloco every 25: 2.1069 beside ddp's 2.0230, where a twice longer run is 0.0898 lower.
    factor = 2 ** ((2.1069 - 2.0230) / 0.0898)
    assert progress("diloco", {"every": 25}, 500 / factor).factor == pytest.approx(factor, rel=0.15)
    factor = 2 ** ((1.9409 - 1.8434) / 0.0898)
    assert progress("powersgd", {}, 2000 / factor).factor == pytest.approx(factor, rel=0.02)


@given(name=st.sampled_from(LOCAL), factor=st.floats(1.01, 5), steps=st.floats(100, 10_000))
def test_a_pilots_finding_is_what_the_prior_fitted_to_it_says_of_as_much_progress(name, factor, steps):
    prior = fitted(name, {"every": 20}, factor, steps)
    found = progress(name, {"every": 20}, steps / factor, prior)
    assert found.measured
    assert found.factor == pytest.approx(factor, rel=1e-6)


def test_a_setting_whose_effect_nobody_measured_is_said_to_be_left_out():
    assert "its compress is not counted" in prior_of("diloco", {"compress": "int8"}).source
    assert prior_of("ddp", {"compress": "int8"}).source == PRIORS["ddp compress=int8"].source
