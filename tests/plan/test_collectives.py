"""The classic costs: the table's own identities, its lower bounds, and where one way becomes better than another."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan import collectives
from laconic.plan.collectives import Rates, Work, blue_connect, leaders, least, two_level, uneven_ring, work

A, B, G = 1e-4, 8e-8, 1e-10
RATES = Rates(A, B, G)
S = 4 << 20


@pytest.mark.parametrize(
    ("operation", "algorithm", "expected"),
    [
        ("all-reduce", "ring", (14, 2 * 7 / 8, 7 / 8)),
        ("all-reduce", "doubling", (3, 3, 3)),
        ("all-reduce", "rhd", (6, 2 * 7 / 8, 7 / 8)),
        ("all-reduce", "tree", (6, 6, 3)),
        ("all-reduce", "star", (2, 14, 7)),
        ("all-reduce", "cps", (2, 2 * 7 / 8, 7 / 8)),
        ("all-reduce", "double tree", (2 * (3 + 16 - 1), 2 * (1 + 2 / 16), 1)),
        ("reduce-scatter", "ring", (7, 7 / 8, 7 / 8)),
        ("all-gather", "ring", (7, 7 / 8, 0)),
        ("all-gather", "bruck", (3, 7 / 8, 0)),
        ("all-to-all", "pairwise", (7, 7 / 8, 0)),
        ("all-to-all", "bruck", (3, 3 / 2, 0)),
        ("broadcast", "binomial", (3, 3, 0)),
        ("broadcast", "scatter and gather", (10, 2 * 7 / 8, 0)),
        ("broadcast", "chain", (7, 7, 0)),
        ("gather", "binomial", (3, 7 / 8, 0)),
        ("scatter", "binomial", (3, 7 / 8, 0)),
    ],
)
def test_eight_workers_pay_what_the_table_says(operation, algorithm, expected):
    found = work(operation, algorithm, 8, 1.0)
    assert found[:3] == pytest.approx(expected, rel=1e-15)
    assert found.seconds(RATES) == pytest.approx(sum(x * y for x, y in zip(expected, (A, B, G), strict=True)))


@pytest.mark.parametrize("algorithm", ["rhd", "doubling"])
def test_beyond_a_power_of_two_the_others_fold_in(algorithm):
    four, five = (work("all-reduce", algorithm, n, S) for n in (4, 5))
    assert five.rounds == four.rounds + 2
    assert five.moved == pytest.approx(four.moved + 2 * S)
    assert five.added == pytest.approx(four.added + S)
    assert work("all-reduce", algorithm, 7, S)[:3] == five[:3]


@given(workers=st.integers(1, 300), nbytes=st.integers(0, 10**9))
def test_no_all_reduce_is_below_the_three_lower_bounds(workers, nbytes):
    bound = least(workers, Fraction(nbytes))
    for name in collectives.TABLE["all-reduce"]:
        found = work("all-reduce", name, workers, Fraction(nbytes))
        assert found.rounds >= bound.rounds or name in ("star", "cps"), name
        assert found.moved >= bound.moved, name
        assert found.added >= bound.added, name


def test_many_send_at_once_in_two_rounds_which_the_bound_on_messages_one_by_one_does_not_know():
    """``log2 n`` bounds rounds in which everyone sends to one and hears from one; cps and star send to all in one."""
    assert work("all-reduce", "cps", 64, S).rounds == 2 < least(64, S).rounds


@given(levels=st.integers(0, 10), nbytes=st.integers(1, 10**9))
def test_halving_and_doubling_meets_the_bounds_on_bytes_and_additions_exactly(levels, nbytes):
    found, bound = (f(2**levels, Fraction(nbytes)) for f in (collectives.rhd, least))
    assert (found.moved, found.added) == (bound.moved, bound.added)
    assert found.rounds == 2 * levels


# -- levels --------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), nbytes=st.integers(1, 10**9))
def test_rings_in_every_dimension_send_what_one_ring_sends(sizes, nbytes):
    flat = collectives.ring(math.prod(sizes), nbytes)
    assert blue_connect([(size, Rates(0, 1)) for size in sizes], nbytes) == pytest.approx(flat.moved, rel=1e-14)
    assert blue_connect([(size, Rates(0, 0, 1)) for size in sizes], nbytes) == pytest.approx(flat.added, rel=1e-14)
    assert blue_connect([(size, Rates(1, 0)) for size in sizes], S) == sum(2 * (size - 1) for size in sizes)


@given(workers=st.integers(1, 64), ones=st.integers(0, 3))
def test_one_dimension_is_the_flat_ring_to_the_last_bit_or_one(workers, ones):
    flat = collectives.ring(workers, S).seconds(RATES)
    for levels in ([workers], [1] * ones + [workers]):
        found = blue_connect([(size, RATES) for size in levels], S)
        assert found == pytest.approx(flat, rel=2.3e-16, abs=0)


@given(count=st.integers(1, 64))
def test_two_levels_with_one_of_a_kind_are_the_flat_ring(count):
    other = Rates(1.0, 1.0, 1.0)
    flat = collectives.ring(count, S).seconds(RATES)
    assert two_level(1, count, S, RATES, other) == pytest.approx(flat)
    assert two_level(count, 1, S, other, RATES) == pytest.approx(flat)
    assert leaders(count, 1, S, other, RATES) == pytest.approx(flat)


def test_two_levels_cost_what_their_formula_says():
    inside, between = Rates(1e-5, 1e-9, G), Rates(1e-3, 1e-7, G)
    formula = 2 * 3 * 1e-5 + 2 * 3 / 4 * S * 1e-9 + 2 * 4 * 1e-3 + 2 * 4 / 5 * S * 1e-7 + 19 / 20 * S * G
    assert two_level(5, 4, S, inside, between) == pytest.approx(formula)
    own_ports = formula - 2 * 4 / 5 * S * 1e-7 * (1 - 1 / 4)
    assert two_level(5, 4, S, inside, between, ports=4) == pytest.approx(own_ports)
    led = 2 * 2 * (1e-5 + S * 1e-9) + 2 * S * G + 8e-3 + 8 / 5 * S * 1e-7 + 4 / 5 * S * G
    assert leaders(5, 4, S, inside, between) == pytest.approx(led)


def test_a_ring_runs_at_its_worst_edge():
    edges = [(1e-4, 8e-8), (2e-4, 8e-8), (1e-4, 32e-8), (1e-4, 8e-8)]
    assert uneven_ring(edges, S) == pytest.approx(6 * (1e-4 + S / 4 * 32e-8))
    assert uneven_ring([(A, B)] * 4, S) == pytest.approx(collectives.ring(4, S).seconds(Rates(A, B)))


# -- crossovers ----------------------------------------------------------------------------------------------------


@given(levels=st.integers(2, 10))
def test_doubling_beats_halving_and_doubling_up_to_its_crossover(levels):
    n, until = 2**levels, collectives.doubling_until(2**levels, RATES)
    for factor, better in ((0.99, True), (1.01, False)):
        costs = [f(n, until * factor).seconds(RATES) for f in (collectives.doubling, collectives.rhd)]
        assert (costs[0] < costs[1]) == better


@given(workers=st.integers(3, 300))
def test_a_star_beats_a_ring_up_to_its_crossover(workers):
    until = collectives.star_until(workers, RATES)
    for factor, better in ((0.99, True), (1.01, False)):
        costs = [f(workers, until * factor).seconds(RATES) for f in (collectives.star, collectives.ring)]
        assert (costs[0] < costs[1]) == better


@pytest.mark.parametrize("workers", [1, 2])
def test_a_chain_without_a_middle_is_not_cut(workers):
    assert collectives.best_segments(workers, 1e9, RATES) == 1.0


@given(workers=st.integers(3, 60), nbytes=st.integers(10**4, 10**8))
def test_no_number_of_segments_beats_the_chains_best(workers, nbytes):
    segments = collectives.best_segments(workers, nbytes, RATES)
    best = (math.sqrt((workers - 2) * A) + math.sqrt(nbytes * B)) ** 2
    assert collectives.chain(workers, nbytes, segments).seconds(RATES) == pytest.approx(best)
    for other in (segments / 2, segments * 1.1, segments * 3):
        assert collectives.chain(workers, nbytes, other).seconds(RATES) > best


@given(algorithm=st.sampled_from(sorted(collectives.TABLE["all-reduce"])))
def test_one_worker_alone_pays_nothing(algorithm):
    assert work("all-reduce", algorithm, 1, S) == Work(0, 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("all-reduce", "rign", 4, S), "did you mean 'ring'"),
        (("allreduce", "ring", 4, S), "did you mean 'all-reduce'"),
        (("all-reduce", "ring", 0, S), "at least 1 worker, got 0"),
        (("all-reduce", "ring", 4, -1), "its bytes are -1"),
        (("all-reduce", "ring", 4, float("nan")), "its bytes are nan"),
    ],
)
def test_what_is_no_collective_is_refused_in_words(arguments, says):
    with pytest.raises(ConfigError, match=says):
        work(*arguments)
