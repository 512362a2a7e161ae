"""What ways are taken to need beside ddp."""

import statistics

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


def times(loss, ddp):
    """Tokens for a loss that is higher than ddp's, where a twice longer run is 0.0898 lower."""
    return 2 ** ((loss - ddp) / 0.0898)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("diloco", [(2.1069, 2.0230, 500, 25), (2.2478, 2.0230, 500, 100)]),
        ("local-sgd", [(2.1573, 2.0230, 500, 25)]),
        ("noloco", [(2.1740, 2.0230, 500, 25)]),
        (
            "streaming-diloco",
            [
                (2.1955, 2.0230, 500, 24),
                *((2.1182 * (1 + e), 2.1182, 391, n) for e, n in ((0.0077, 9), (0.0211, 12), (0.0311, 17))),
            ],
        ),
    ],
)
def test_the_rounds_of_a_prior_are_the_geometric_mean_of_the_runs_that_it_comes_from(name, runs):
    rounds = [(times(loss, ddp) - 1) * steps / every for loss, ddp, steps, every in runs]
    assert PRIORS[name].rounds == pytest.approx(statistics.geometric_mean(rounds), rel=0.05)
    if name != "streaming-diloco":  # whose runs are of two models, and far apart
        for loss, ddp, steps, every in runs:
            factor = times(loss, ddp)
            assert progress(name, {"every": every}, steps / factor).factor == pytest.approx(factor, rel=0.15)


def test_powersgds_prior_gives_back_the_run_that_it_comes_from():
    factor = times(1.9409, 1.8434)
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
