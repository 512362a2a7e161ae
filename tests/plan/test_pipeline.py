"""The order of turns, simulated in rationals against the closed formulas."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.pipeline import (
    Hop,
    Turn,
    best_micro_batch,
    bubble,
    gpipe,
    in_flight,
    interleaved,
    least_time,
    one_forward_one_backward,
    order,
    simulate,
    steady,
)

stages = st.integers(1, 8)
seconds = st.fractions(Fraction(1, 10), 3, max_denominator=20)


def shapes():
    return [(p, m, v) for p in range(1, 9) for m in range(1, 33) for v in range(1, 5) if v == 1 or m % p == 0]


def test_the_bubble_is_the_published_one_exactly_for_every_order():
    for p, m, v in shapes():
        forward, backward = Fraction(1, v), Fraction(2, v)  # of a piece; a stage takes 3 in all
        found = simulate(order(p, m, v), [forward] * (p * v), [backward] * (p * v))
        assert found.total == 3 * m * (1 + bubble(p, m, v)), (p, m, v)
        assert found.busy == (3 * m,) * p
        if v == 1:
            assert simulate(gpipe(p, m), [forward] * p, [backward] * p).total == found.total


@given(p=stages, rounds=st.integers(1, 4), f=seconds, b=seconds)
def test_the_interleaved_order_with_one_chunk_takes_as_long_as_one_forward_one_backward(p, rounds, f, b):
    from laconic.plan.pipeline import _passes, _turns  # the general order, without its exception for one chunk

    m = p * rounds
    general = [_turns(*_passes(p, m, 1), 2 * (p - stage - 1)) for stage in range(p)]
    usual = one_forward_one_backward(p, m)
    assert simulate(general, [f] * p, [b] * p).total == simulate(usual, [f] * p, [b] * p).total
    assert interleaved(p, m, 1) == usual


def most_held(turns):
    """The most forward passes whose backward pass is still to come."""
    held = most = 0
    for turn in turns:
        held += 1 if turn.forward else -1
        most = max(most, held)
    return most


def test_the_micro_batches_in_flight_are_those_that_the_order_holds():
    for p, m, v in shapes():
        for stage, turns in enumerate(order(p, m, v)):
            assert in_flight(p, stage, m, v) == Fraction(most_held(turns), v), (p, m, v, stage)
        assert all(most_held(turns) == m for turns in gpipe(p, m))


def test_the_first_of_interleaved_stages_holds_what_the_paper_says():
    for p, v in ((4, 2), (8, 4), (64, 2)):
        assert in_flight(p, 0, 8 * p, v) == p * (1 + Fraction(p - 1, p * v))


@given(p=stages, rounds=st.integers(1, 3), v=st.integers(1, 4))
def test_each_order_takes_every_micro_batch_through_every_chunk_once_each_way(p, rounds, v):
    m = p * rounds
    for turns in order(p, m, v):
        assert len(turns) == len(set(turns)) == 2 * m * v
        assert set(turns) == {Turn(onward, k, c) for onward in (True, False) for k in range(m) for c in range(v)}


@given(p=st.integers(2, 6), m=st.integers(1, 20), data=st.data())
def test_no_order_beats_the_least_time_and_a_busiest_last_stage_meets_it(p, m, data):
    f = data.draw(st.lists(seconds, min_size=p, max_size=p))
    b = data.draw(st.lists(seconds, min_size=p, max_size=p))
    for turns in (gpipe(p, m), order(p, m)):
        assert simulate(turns, f, b).total >= least_time(f, b, m)
    f[-1], b[-1] = max(f), max(b)
    assert simulate(order(p, m), f, b).total == least_time(f, b, m)


def test_a_step_may_take_less_than_the_busiest_stage_and_one_pass_of_each_other():
    # That is stated as a lower bound at times; it is none when the busiest stage is not the last.
    f, b, m = [Fraction(3), Fraction(1)], [Fraction(3), Fraction(1)], 8
    assert simulate(order(2, m), f, b).total == m * 6 < m * 6 + 2


@given(p=st.integers(1, 6), m=st.integers(1, 12), c=seconds, f=seconds, b=seconds)
def test_messages_are_waited_for_once_in_p_micro_batches(p, m, c, f, b):
    """Pipette's finding: the first p micro-batches' messages there and back recur for each p."""
    found = simulate(order(p, m), [f] * p, [b] * p, [Hop(0, c)] * p).total
    rounds = -(-m // p)
    least = (m + p - 1) * (f + b)
    assert found >= least + 2 * (p - 1) * c
    assert found <= least + (rounds + 1) * 2 * (p - 1) * c


@given(p=st.integers(1, 6), v=st.sampled_from([1, 2]), rounds=st.integers(1, 30), c=st.floats(0, 0.5))
def test_going_on_at_the_last_pace_is_exact_for_equal_stages(p, v, rounds, c):
    pieces = p * v
    given_ = [1.0] * pieces, [2.0] * pieces, [Hop(c, 0.1)] * pieces
    whole = simulate(order(p, p * rounds, v), *given_)
    assert steady(p, p * rounds, v, *given_).ends == pytest.approx(whole.ends, rel=1e-12)


@given(p=st.integers(2, 6), m=st.integers(1, 120), data=st.data())
def test_and_close_for_unequal_ones(p, m, data):
    f = data.draw(st.lists(st.floats(0.5, 1.5), min_size=p, max_size=p))
    c = data.draw(st.lists(st.floats(0, 0.5), min_size=p, max_size=p))
    given_ = f, [2 * x for x in f], [Hop(x, 0.1) for x in c]
    assert steady(p, m, 1, *given_).total == pytest.approx(simulate(order(p, m), *given_).total, rel=0.01)


def test_the_best_micro_batch_weighs_the_bubble_against_what_a_larger_one_saves():
    def fixed_and_each(b):  # a launch costs as much as two examples
        return 2.0 + b

    assert best_micro_batch(fixed_and_each, 1, 64, (1, 2, 4, 8)) == 8
    assert best_micro_batch(fixed_and_each, 256, 64, (1, 2, 4, 8)) == 1
    with pytest.raises(ConfigError, match=r"none of the micro-batches \[4, 8\] divides a copy's 6"):
        best_micro_batch(fixed_and_each, 2, 6, (4, 8))


def test_interleaving_wants_whole_rounds():
    with pytest.raises(ConfigError, match="4 stages do not divide 6 micro-batches; take 8"):
        interleaved(4, 6, 2)


def test_a_line_carries_one_message_at_a_time():
    # Three forward passes of 1 s and messages of 4 s: the last has come after 1 + 3 * 4 and 2 s of delay.
    found = simulate(gpipe(2, 3), [1, 0], [0, 0], [Hop(4, 2), Hop(0)])
    assert found.ends[1] == 15
    assert found.ends[0] == 15 + 3 * 4 + 2
    delayed = simulate(gpipe(2, 3), [1, 0], [0, 0], [Hop(0, 4)] * 2)  # what is only late holds up none
    assert delayed.ends[1] == 3 + 4
