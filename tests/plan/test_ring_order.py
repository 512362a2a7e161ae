"""The order of a ring: the best there is among few, and close to it among many."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.plan import ring_order as module
from laconic.plan.ring_order import ring_order, worst_edge

seeds = st.integers(0, 10**6)


@given(count=st.integers(1, 7), seed=seeds)
def test_among_few_no_order_has_a_better_worst_edge(count, seed):
    cost = np.random.default_rng(seed).integers(1, 20, (count, count)).astype(float)
    order = ring_order(cost)
    assert sorted(order) == list(range(count))
    best = min(worst_edge(cost, (0, *rest)) for rest in permutations(range(1, count)))
    assert worst_edge(cost, order) == best


@settings(max_examples=15)
@given(count=st.integers(8, 12), seed=seeds)
def test_search_among_many_is_a_ring_and_no_worse_than_the_ranks_and_mostly_as_good_as_exact(count, seed):
    cost = np.random.default_rng(seed).random((count, count))
    found = module._searched(cost, list(range(count)))
    assert sorted(found) == list(range(count))
    assert found[0] == 0
    exact = ring_order(cost)
    assert worst_edge(cost, exact) <= worst_edge(cost, found) <= worst_edge(cost, range(count))


def test_sites_are_passed_through_one_after_the_other():
    site = np.arange(30) % 3  # ranks alternate between three sites
    cost = np.where(site[:, None] == site[None, :], 1.0, 10.0) + 0.001 * np.random.default_rng(0).random((30, 30))
    order = ring_order(cost)
    crossings = sum(site[a] != site[b] for a, b in zip(order, [*order[1:], order[0]], strict=True))
    assert crossings == 3


@pytest.mark.parametrize("slow", [(0, 1), (5, 6), (29, 0)])
def test_an_edge_that_is_slow_in_one_direction_is_left_out(slow):
    cost = np.ones((30, 30))
    cost[slow] = 100.0
    assert worst_edge(cost, ring_order(cost)) == 1.0
    some = (*slow, 7, 8, 9)
    few = cost[np.ix_(some, some)]
    assert worst_edge(few, ring_order(few)) == 1.0
