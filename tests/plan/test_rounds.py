"""Plans of an all-reduce: each gives everyone the whole sum, and sends what it says."""

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan import groups, rounds
from laconic.plan.groups import Group, factorisations, of_groups, reduce_scatter
from laconic.plan.rounds import Plan, Transfer, check, played

MAKERS = [rounds.star, rounds.tree, rounds.doubling, groups.ring, groups.cps, groups.rhd]
makers = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
counts = st.integers(1, 16)


def any_group(ranks, draw, ports=(0, 0, 1, 2, 3)):
    """Groups within groups of these ranks, uneven, each with a way of its own."""
    if len(ranks) == 1:
        return ranks[0]
    parts = draw.randint(2, len(ranks))
    cuts = [0, *sorted(draw.sample(range(1, len(ranks)), parts - 1)), len(ranks)]
    members = tuple(any_group(ranks[a:b], draw, ports) for a, b in pairwise(cuts))
    return Group(members, draw.choice(groups.WAYS), draw.choice(ports))


@makers
@pytest.mark.parametrize("workers", range(1, 17))
def test_every_worker_ends_with_the_sum_of_all(make, workers):
    plan = make(workers)
    given_ = np.random.default_rng(workers).integers(-(10**9), 10**9, (workers, plan.blocks))
    assert (played(plan, given_) == given_.sum(axis=0)).all()


@given(workers=st.integers(2, 16), seed=st.integers(0, 10**6))
def test_groups_of_any_shape_with_any_ways_give_everyone_the_sum(workers, seed):
    draw = random.Random(seed)
    ranks = list(range(workers))
    draw.shuffle(ranks)
    check(of_groups(any_group(ranks, draw), "any"))


@given(workers=st.integers(2, 16), seed=st.integers(0, 10**6))
def test_groups_send_in_all_what_a_ring_sends_and_hand_in_an_equal_share_each(workers, seed):
    group = any_group(list(range(workers)), random.Random(seed), ports=(0,))
    for shares in of_groups(group, "any").shares():
        assert sum(shares) == pytest.approx(2 * (workers - 1), abs=1e-9)
    if all(within.way == "direct" for within in groups._groups(group)):
        half = reduce_scatter(group, groups.blocks_of(group))
        out, _ = Plan("half", workers, groups.blocks_of(group), tuple(map(tuple, half))).shares()
        assert out == pytest.approx([(workers - 1) / workers] * workers, abs=1e-12)


@given(factors=st.lists(st.integers(1, 4), min_size=1, max_size=4), way=st.sampled_from(groups.WAYS))
def test_where_members_are_alike_each_worker_sends_and_is_sent_what_a_ring_sends(factors, way):
    count = int(np.prod(factors))
    plan = of_groups(groups.nested(range(count), factors, way), "even")
    for shares in plan.shares():
        assert shares == pytest.approx([2 * (count - 1) / count] * count, abs=1e-12)


@makers
@given(workers=counts)
def test_what_is_sent_is_what_is_heard(make, workers):
    out, into = make(workers).shares()
    assert sum(out) == pytest.approx(sum(into))


@given(workers=st.integers(2, 40))
def test_a_ring_sends_2_n_minus_1_messages_of_a_block_each(workers):
    plan = groups.ring(workers)
    assert plan.messages() == [2 * (workers - 1)] * workers
    assert plan.blocks == workers
    assert all(t.stop - t.start == 1 for transfers in plan.rounds for t in transfers)
    assert all((t.target - t.source) % workers == 1 for transfers in plan.rounds[: workers - 1] for t in transfers)


def test_a_ring_goes_round_in_the_order_that_it_is_given():
    plan = check(groups.ring(5, (0, 3, 1, 4, 2)))
    assert {(t.source, t.target) for t in plan.rounds[0]} == {(0, 3), (3, 1), (1, 4), (4, 2), (2, 0)}


@given(levels=st.integers(1, 6))
def test_halving_and_doubling_talks_to_one_partner_a_round_and_sends_half_as_much_each_time(levels):
    plan = groups.rhd(2**levels)
    assert len(plan.rounds) == 2 * levels
    for number, table in enumerate(plan.tables[:levels]):
        for rank in range(2**levels):
            mine = table[table[:, 0] == rank]
            assert set(mine[:, 1]) == {rank ^ (1 << number)}
            assert (mine[:, 3] - mine[:, 2]).sum() == 2 ** (levels - number - 1)
            assert len(mine) == 1, "in one piece"


def test_servers_on_all_workers_are_one_factor_and_twos_are_halving():
    assert groups.hcps(6).rounds == groups.cps(6).rounds
    assert groups.hcps(2, 2, 2).rounds == groups.rhd(8).rounds


def test_rings_in_both_dimensions_send_few_bytes_between_the_hosts():
    plan = of_groups(groups.nested(range(8), (4, 2), "ring"), "rings")
    between = sum(
        Fraction(t.stop - t.start, plan.blocks)
        for transfers in plan.rounds
        for t in transfers
        if t.source // 4 != t.target // 4
    )
    assert len(plan.rounds) == 2 * 3 + 2 * 1
    assert between == 2 * Fraction(2 - 1, 2) * 2, "2 (M-1)/M of the vector out of each of two hosts"


def test_leaders_alone_talk_between_sites():
    plan = check(groups.leaders([[0, 1, 2], [3, 4], [5]]))
    site = [0, 0, 0, 1, 1, 2]
    crossing = {t.source for transfers in plan.rounds for t in transfers if site[t.source] != site[t.target]}
    assert crossing == {0, 3, 5}


@given(workers=st.integers(2, 16), ports=st.integers(1, 5))
def test_with_ports_so_many_workers_of_each_member_cross(workers, ports):
    half = workers // 2
    members = (Group(tuple(range(half))), Group(tuple(range(half, workers))))
    plan = check(of_groups(Group(members, "direct", ports), "narrow"))
    crossing = {t.source for transfers in plan.rounds for t in transfers if (t.source < half) != (t.target < half)}
    assert len(crossing) == min(ports, half) + min(ports, workers - half)


def test_a_plan_that_loses_or_doubles_a_part_is_found():
    plan = groups.ring(4)
    short = Plan("short", 4, 4, (plan.rounds[0][1:], *plan.rounds[1:]))
    twice = Plan("twice", 4, 4, (plan.rounds[0], *plan.rounds))
    for wrong in (short, twice):
        with pytest.raises(AssertionError, match="end with another sum"):
            check(wrong)
    with pytest.raises(AssertionError, match="added to and replaced"):
        check(Plan("both", 3, 1, ((Transfer(0, 2, 0, 1), Transfer(1, 2, 0, 1, False)),)))


@given(number=st.integers(1, 64))
def test_factorisations_are_all_and_each_once(number):
    found = list(factorisations(number))
    assert len(found) == len(set(found))
    assert all(np.prod(factors, dtype=int) == number and min(factors, default=2) >= 2 for factors in found)
    ordered = [0, 1]  # the number of ordered factorisations, by its own recurrence
    for n in range(2, number + 1):
        ordered.append(sum(ordered[n // d] for d in range(2, n + 1) if n % d == 0))
    assert len(found) == ordered[number]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: groups.ring(4, (0, 1, 2, 2)), "each of the workers 0 to 3 once"),
        (lambda: groups.ring(0), "at least 1 worker"),
        (lambda: rounds.star(3, 3), "its hub is worker 3"),
        (groups.hcps, "its factors are"),
        (lambda: groups.hcps(2, 0), "its factors are"),
        (lambda: of_groups(Group((0, 2)), "gap"), r"hold the workers \[0, 2\]"),
        (lambda: of_groups(Group((0, Group(())), "ring"), "gap"), "one of its groups is empty"),
        (lambda: of_groups(Group((0, 1), "round"), "gap"), "a group's way is 'round'"),
    ],
)
def test_what_is_no_plan_is_refused_in_words(build, says):
    with pytest.raises(ConfigError, match=says):
        build()
