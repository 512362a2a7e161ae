"""Fits give the rates back that made the timings, with noise, and say what they cannot tell."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan import genmodel
from laconic.plan.collectives import Rates
from laconic.plan.fitting import Crowd, Ping, Sum, fit_incast, fit_pieces, fit_pings, fit_sums

NOISE = 0.02
SIZES = [4.0**k for k in range(13)]  # 1 B to 16 MiB


def noisy(draw):
    return 1 + draw.gauss(0, NOISE)


@given(gamma=st.floats(5e-11, 5e-10), share=st.floats(0.3, 2.0), seed=st.integers(0, 10**6))
def test_sums_give_back_the_cost_of_adding_and_of_memory(gamma, share, seed):
    draw, delta = random.Random(seed), gamma * share
    sums = [
        Sum(k, x, x * ((k - 1) * gamma + (k + 1) * delta) * noisy(draw))
        for k in range(2, 17)
        for x in (16e6, 64e6)
        for _ in range(15)
    ]
    assert fit_sums(sums) == pytest.approx((gamma, delta), rel=0.1)


@given(alpha=st.floats(1e-5, 1e-1), beta=st.floats(1e-10, 1e-6), seed=st.integers(0, 10**6))
def test_pings_give_back_what_a_start_and_a_byte_take(alpha, beta, seed):
    draw = random.Random(seed)
    sizes = [*SIZES, alpha / beta * 100, alpha / beta * 400]  # enough that bytes count, and few enough that starts do
    sizes += [alpha / beta / 100]
    line = fit_pings([Ping(x, (alpha + x * beta) * noisy(draw)) for x in sizes for _ in range(9)])
    assert (line.alpha, line.beta) == pytest.approx((alpha, beta), rel=0.1)
    assert line.r2 > 0.98
    assert max(map(abs, line.residuals)) < 0.1


@pytest.mark.parametrize("w_t", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", range(5))
def test_crowds_give_back_epsilon_and_the_bearable_number_exactly(w_t, seed):
    draw = random.Random(seed)
    rates = Rates(1e-4, 8e-8, 1e-10, 3e-10, 3e-8, w_t)
    crowds = [
        Crowd(n, s, genmodel.cps(n, s, w_t).seconds(rates) * noisy(draw))
        for n in range(2, 9)
        for s in (1e6, 4e6, 16e6)
        for _ in range(9)
    ]
    epsilon, found = fit_incast(crowds, rates)
    assert found == w_t
    assert epsilon == pytest.approx(3e-8, rel=0.1)
    fitted = rates._replace(epsilon=epsilon, w_t=found)
    for n in (4, 8):  # of ways that no fit has seen
        for row in (genmodel.star, lambda n, s, w: genmodel.hcps((n // 2, 2), s, w)):
            assert row(n, 4e6, found).seconds(fitted) == pytest.approx(row(n, 4e6, w_t).seconds(rates), rel=0.05)


def test_where_many_flows_cost_no_more_than_few_there_is_no_crowding():
    rates = Rates(1e-4, 8e-8)
    crowds = [Crowd(n, s, genmodel.cps(n, s).seconds(rates)) for n in range(2, 9) for s in (1e6, 4e6)]
    assert fit_incast(crowds, rates) == (pytest.approx(0.0, abs=1e-20), 8)
    quicker = [crowd._replace(seconds=crowd.seconds * 0.9) for crowd in crowds]
    assert fit_incast(quicker, rates) == (0.0, 8), "what is quicker than predicted is no crowding below 0"


def test_one_timeout_among_many_measurements_does_not_count():
    rates = Rates(1e-4, 8e-8, w_t=4, epsilon=2e-8)
    crowds = [Crowd(n, 4e6, genmodel.cps(n, 4e6, 4).seconds(rates)) for n in range(2, 9) for _ in range(5)]
    crowds += [Crowd(n, 4e6, 2.0) for n in range(2, 9)]
    assert fit_incast(crowds, rates) == (pytest.approx(2e-8), 4)


def burst(x, rate=12.5e6, free=64e3):
    """A token bucket: the first bytes pass at ten times the rate."""
    return 1e-3 + x / (10 * rate) if x <= free else 1e-3 + free / (10 * rate) + (x - free) / rate


@pytest.mark.parametrize("seed", range(5))
def test_a_knee_is_found_and_the_rate_behind_it_is_that_of_long_messages(seed):
    draw = random.Random(seed)
    sizes = [2.0**k for k in range(10, 25)]
    pieces = fit_pieces([Ping(x, burst(x) * noisy(draw)) for x in sizes for _ in range(9)])
    assert len(pieces) == 2
    assert pieces[1].beta == pytest.approx(1 / 12.5e6, rel=0.1)
    assert pieces[0].most < 128e3
    assert pieces[0].most < pieces[1].least


@given(alpha=st.floats(1e-5, 1e-2), beta=st.floats(1e-9, 1e-6), seed=st.integers(0, 10**6))
def test_a_straight_line_has_no_knee(alpha, beta, seed):
    draw = random.Random(seed)
    pings = [Ping(x, (alpha + x * beta) * noisy(draw)) for x in SIZES for _ in range(9)]
    assert len(fit_pieces(pings)) == 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fit_sums([Sum(2, 1e6, 1e-3), Sum(2, 4e6, 4e-3)]), "at least two numbers of parts"),
        (lambda: fit_sums([Sum(2, 1e6, 1e-3), Sum(3, 1e6, 0.0)]), "a time of 0 s came"),
        (lambda: fit_pings([Ping(1e6, 1e-3)] * 4), "at least two sizes, got 1"),
        (lambda: fit_pings([Ping(1e6, 1e-3), Ping(2e6, -1e-3)]), "took -0.001 s"),
        (
            lambda: fit_incast([Crowd(4, 1e6, 0.0), Crowd(5, 1e6, 1.0)], Rates(0, 0)),
            r"fit of incast: a time of 0 s came",
        ),
        (lambda: fit_incast([Crowd(4, 1e6, 1e-3)] * 4, Rates(0, 0)), r"at least two numbers of workers, got \[4\]"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_in_words(call, says):
    with pytest.raises(ConfigError, match=says):
        call()
