"""The rate of a flow from the moments its bytes came: past bursts, past slow starts, through pauses and noise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.plan.probing.curve import Rate, steady, thinned, total

rates = st.floats(1e4, 1e9)


def bucket(rate, burst, feed, chunk, count):
    """When each chunk has passed a token bucket that is fed at ``feed`` bytes a second."""
    nbytes = [chunk * (i + 1) for i in range(count)]
    return [(max(c / feed, (c - burst) / rate), c) for c in nbytes]


@given(rate=rates, over=st.floats(2, 100), share=st.floats(0.1, 0.5), count=st.integers(20, 200))
def test_a_token_bucket_gives_back_its_rate_and_its_burst(rate, over, share, count):
    chunk = rate * 0.008
    burst = share * (1 - 1 / over) * chunk * count  # so that it has passed at this share of the flow
    found = steady(bucket(rate, burst, over * rate, chunk, count))
    assert found is not None
    assert found.bandwidth == pytest.approx(rate, rel=0.03)
    assert found.burst == pytest.approx(burst, rel=0.1, abs=2 * chunk)


@given(rate=rates, count=st.integers(2, 100))
def test_an_even_flow_has_its_rate_and_no_burst(rate, count):
    curve = [(7.0 + i * 1000 / rate, 1000.0 * i) for i in range(1, count + 1)]
    found = steady(curve)
    assert found is not None
    assert found.bandwidth == pytest.approx(rate, rel=1e-6)
    assert found.burst == 0


@given(rate=rates, slow=st.floats(0.05, 0.6), seed=st.integers(0, 99))
def test_a_slow_start_does_not_count(rate, slow, seed):
    chunk, curve, now = rate * 0.008, [], 0.0
    for i in range(100):
        now += chunk / (rate * slow if i < 30 else rate)
        curve.append((now, chunk * (i + 1)))
    found = steady(curve)
    assert found is not None
    assert found == Rate(pytest.approx(rate, rel=0.02), 0.0)


@given(seed=st.integers(0, 10_000))
def test_jitter_of_a_fifth_of_a_message_moves_the_rate_by_less_than_two_hundredths(seed):
    import random

    draw = random.Random(seed)
    curve = [(0.01 * i + draw.uniform(0, 0.002), 1e4 * i) for i in range(1, 101)]
    found = steady(curve)
    assert found is not None
    assert found.bandwidth == pytest.approx(1e6, rel=0.02)


def test_a_pause_counts_in_full():
    curve = [(0.01 * i + (0.05 if i % 20 == 0 else 0) + 0.05 * (i // 20), 1e4 * i) for i in range(1, 101)]
    found = steady(curve)
    assert found is not None
    assert found.bandwidth == pytest.approx(1e6 / 1.25, rel=0.05)  # a fifth of the time stood still


def test_too_little_is_no_rate():
    assert steady([]) is None
    assert steady([(1.0, 5.0)]) is None
    assert steady([(1.0, 5.0), (1.0, 9.0)]) is None


@given(count=st.integers(1, 300), points=st.integers(2, 50))
def test_a_thinned_curve_keeps_its_ends_and_its_order(count, points):
    curve = [(0.1 * i, float(i)) for i in range(count)]
    kept = thinned(curve, points)
    assert (kept[0], kept[-1], len(kept)) == (curve[0], curve[-1], min(count, points))
    assert kept == sorted(set(kept))


def test_flows_are_added_on_one_clock_until_the_first_of_them_ends():
    long = [(0.01 * i, 1e4 * i if i < 50 else 1e4 * 50 + 4e4 * (i - 50)) for i in range(100)]
    short = [(0.01 * i, 3e4 * i) for i in range(50)]  # while it runs, the long one has a quarter of the rate
    assert total([long, short]) == pytest.approx(4e6, rel=0.02)
    assert total([long, [(0.0, 1.0)]]) is None
    assert total([]) is None


@given(turn=st.floats(0.02, 0.1), first=st.integers(0, 1))
def test_flows_that_take_turns_have_no_more_together_than_the_line_carries(turn, first):
    ways: tuple[list, list] = ([(0.0, 0.0)], [(0.0, 0.0)])
    for i in range(1, 200):
        busy = (int(0.01 * i / turn) + first) % 2
        for way, curve in enumerate(ways):
            curve.append((0.01 * i, curve[-1][1] + (1e4 if way == busy else 0.0)))
    assert total(ways) == pytest.approx(1e6, rel=0.02)
