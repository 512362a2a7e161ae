"""The compiled annealing of hosts against its plain form and against the cost that it is about."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.kernels import placing as compiled
from laconic.kernels import plain
from laconic.plan.pipette import Placing, place


def question(seed, hosts=6, stages=3):
    rng = np.random.default_rng(seed)
    matrices = rng.random((hosts, hosts)), rng.random((hosts, hosts)), rng.random(hosts)
    return Placing(stages, *matrices, rounds=3.0, early=0.1), rng.permutation(hosts)


@given(seed=st.integers(0, 10**6), stages=st.sampled_from([1, 2, 3, 6]))
def test_the_compiled_cost_is_the_plain_one(seed, stages):
    asked, order = question(seed, stages=stages)
    found = compiled.cost(order, stages, asked.passing, asked.summing, asked.inside, asked.rounds, asked.early)
    assert found == pytest.approx(asked.cost(order), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_plain_walk_comes_to_the_same_place(seed):
    asked, _ = question(seed)
    fast = place(asked, seed, tries=200, runs=2)
    with plain():
        assert place(asked, seed, tries=200, runs=2) == fast


@given(ends=st.tuples(st.integers(0, 7), st.integers(0, 7)), move=st.integers(0, 4), at=st.floats(0, 0.999))
def test_every_move_keeps_each_host_once(ends, move, at):
    a, b = sorted(ends)
    if a == b:
        return
    order, there = np.random.default_rng(0).permutation(8), np.full(8, -1)
    compiled.moved(order, there, a, b, move, at)
    assert sorted(there) == list(range(8))
    segment = list(order[a : b + 1])
    if move == 0:
        assert list(there[a : b + 1]) == segment[::-1]
    if move in (3, 4):
        wanted = segment if move == 3 else segment[::-1]
        assert any(list(there[k : k + len(segment)]) == wanted for k in range(9 - len(segment)))
