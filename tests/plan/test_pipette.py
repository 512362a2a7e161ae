"""Pipette: its latency, its search space, and hosts placed by annealing against all placings there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.pipette import Form, Placing, charged_once, data_seconds, forms, latency, over, place


def test_a_step_takes_what_the_paper_says():
    assert latency(4, 8, 3.0, 0.5) == 34
    assert charged_once(4, 8, 3.0, 0.5) == 33.5


@given(p=st.integers(1, 16), rounds=st.integers(1, 9), work=st.integers(1, 9), data=st.integers(0, 9))
def test_without_messages_it_is_the_plain_pipeline(p, rounds, work, data):
    m = p * rounds
    assert latency(p, m, work, 0, data) == (m + p - 1) * work + data


@given(p=st.integers(2, 16), rounds=st.integers(1, 9), passing=st.integers(1, 9))
def test_the_older_model_charges_the_messages_once_and_this_one_each_round(p, rounds, passing):
    assert latency(p, p * rounds, 3, passing) - charged_once(p, p * rounds, 3, passing) == (rounds - 1) * passing


def test_fewer_micro_batches_than_stages_are_charged_once():
    assert latency(8, 3, 2.0, 0.5) == charged_once(8, 3, 2.0, 0.5) == 0.5 + 16 + 4


def test_summing_copies_takes_rings_inside_and_between_hosts():
    assert data_seconds(8e9, 4e9, 1e9, 1, 1) == 0
    assert data_seconds(8e9, 4e9, 1e9, 4, 1) == 2 * 2 * 3 / 4 * 2
    assert data_seconds(8e9, 4e9, 1e9, 4, 2) == 6 + 2 * 1 / 2 * 8


def test_a_link_that_carries_nothing_is_endless_and_never_nan():
    assert over(1.0, 0.0) == math.inf
    assert over(0.0, 0.0) == 0.0
    assert data_seconds(8e9, 4e9, 0.0, 4, 2) == math.inf


def test_the_search_space_is_the_published_one():
    found = forms(4, 8, 24, 64)
    assert Form(4, 8, 1, 1) in found
    assert Form(1, 1, 32, 2) in found
    assert all(form.pipeline * form.tensor * form.data == 32 for form in found)
    assert {form.pipeline for form in found} == {1, 2, 4}
    assert {form.tensor for form in found} == {1, 2, 4, 8}
    assert all(64 % (form.data * form.micro_batch) == 0 for form in found)
    assert not [form for form in forms(3, 8, 24, 24) if form.pipeline == 2]  # 2 does not divide 3 hosts
    assert {form.pipeline for form in forms(8, 1, 6, 8)} == {1, 2}  # nor 4 and 8 six layers


def islands(seed, scale=1.0):
    """Eight hosts in two islands of four, mixed up: messages inside take 0.1 to 0.2, between ten times that."""
    rng = np.random.default_rng(seed)
    side = rng.permutation([0, 0, 0, 0, 1, 1, 1, 1])
    apart = side[:, None] != side[None, :]
    passing = rng.uniform(0.1, 0.2, (8, 8)) * np.where(apart, 10, 1) * scale
    passing = passing + passing.T
    summing = passing / 8  # the sum crosses little
    np.fill_diagonal(passing, 0.0)
    np.fill_diagonal(summing, 0.0)
    return side, Placing(4, passing, summing, np.zeros(8), rounds=8)


def least_of_all(placing):
    """The least cost of all 8! orders, in one go."""
    orders = np.array(list(itertools.permutations(range(8))), dtype=np.intp).reshape(-1, 2, 4)
    pipelines = placing.passing[orders[:, :, :-1], orders[:, :, 1:]].sum(-1).max(-1)
    summed = placing.summing[orders, np.roll(orders, -1, axis=1)].max(1)
    late = summed - placing.early * np.arange(4)
    return (placing.rounds * pipelines + np.maximum(0.0, late.max(-1))).min()


@pytest.mark.parametrize("seed", range(4))
def test_two_islands_get_a_pipeline_each_and_the_least_cost_there_is(seed):
    side, placing = islands(seed)
    found = place(placing, seed=seed)
    for row in np.array(found.order).reshape(2, 4):
        assert len({side[host] for host in row}) == 1
    assert found.seconds == pytest.approx(least_of_all(placing), rel=1e-12)
    assert found.seconds == pytest.approx(placing.cost(np.array(found.order)))


def test_where_summing_copies_weighs_more_a_stage_is_kept_inside_an_island():
    side, placing = islands(5)
    heavy = Placing(4, placing.passing, placing.summing * 1e4, np.zeros(8), rounds=1)
    found = place(heavy)
    for column in np.array(found.order).reshape(2, 4).T:
        assert len({side[host] for host in column}) == 1
    assert found.seconds == pytest.approx(least_of_all(heavy), rel=1e-12)


def test_on_equal_links_any_place_will_do_and_the_first_is_kept():
    even = np.full((6, 6), 0.3)
    placing = Placing(3, even, even, np.full(6, 0.1))
    found = place(placing)
    assert found.order == tuple(range(6))
    assert found.seconds == found.before == placing.cost(np.arange(6)[::-1].copy())


@given(seed=st.integers(0, 10**6), p=st.sampled_from([1, 2, 3, 6]))
def test_it_never_gets_worse_and_is_the_same_again(seed, p):
    rng = np.random.default_rng(seed)
    placing = Placing(p, rng.random((6, 6)), rng.random((6, 6)), rng.random(6), rounds=2)
    found = place(placing, seed=seed, tries=150, runs=2)
    assert found.seconds <= found.before
    assert sorted(found.order) == list(range(6))
    assert found == place(placing, seed=seed, tries=150, runs=2)


@given(seed=st.integers(0, 10**6))
def test_two_hosts_that_are_alike_may_swap_their_names(seed):
    rng = np.random.default_rng(seed)
    passing, summing = rng.random((6, 6)), rng.random((6, 6))
    for matrix in (passing, summing):  # host 5 is as host 2, to the others and to each other
        matrix[5, :], matrix[:, 5] = matrix[2, :], matrix[:, 2]
        matrix[2, 5] = matrix[5, 2] = 0.5
    inside = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.3])
    placing, order = Placing(3, passing, summing, inside), rng.permutation(6)
    swapped = np.array([{2: 5, 5: 2}.get(int(host), int(host)) for host in order])
    assert placing.cost(order) == placing.cost(swapped)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-9, 1e-3, 1e6]))
def test_the_search_knows_no_scale(seed, scale):
    _, placing = islands(seed)
    scaled = Placing(4, placing.passing * scale, placing.summing * scale, np.zeros(8), rounds=8)
    found = place(scaled, tries=300, runs=1)
    assert found.seconds <= found.before
    assert found.seconds / scale == pytest.approx(placing.cost(np.array(found.order)))


def test_a_pair_that_cannot_talk_is_kept_apart():
    passing = np.ones((4, 4))
    passing[0, 1] = passing[1, 0] = math.inf
    found = place(Placing(2, passing, np.zeros((4, 4)), np.zeros(4)))
    assert found.before == math.inf
    assert found.seconds == 1.0


def test_only_the_stage_that_is_done_last_counts():
    # The last of two stages is done 5 s before the first, and sums 4 s longer than the first.
    summing = np.array([[0, 0, 1.0, 9], [0, 0, 9, 5.0], [1.0, 9, 0, 0], [9, 5.0, 0, 0]])
    order = np.array([0, 1, 2, 3], dtype=np.intp)
    assert Placing(2, np.zeros((4, 4)), summing, np.zeros(4), early=5.0).cost(order) == 1.0
    assert Placing(2, np.zeros((4, 4)), summing, np.zeros(4), early=0.0).cost(order) == 5.0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"stages": 4}, "4 stages do not divide 6 hosts"),
        ({"summing": np.zeros((5, 5))}, "not both 6 x 6"),
        ({"inside": np.full(6, -1.0)}, "seconds must be 0 or more"),
        ({"passing": np.full((6, 6), np.nan)}, "seconds must be 0 or more"),
    ],
)
def test_a_bad_question_is_refused(change, told):
    good = {"stages": 3, "passing": np.ones((6, 6)), "summing": np.ones((6, 6)), "inside": np.ones(6)}
    with pytest.raises(ConfigError, match=told):
        Placing(**(good | change))
