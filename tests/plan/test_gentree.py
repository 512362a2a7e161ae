"""GenTree: valid on any tree, and at each end of its rates the plan that is best there."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.plan import groups, rounds
from laconic.plan.collectives import Rates
from laconic.plan.genmodel import price
from laconic.plan.gentree import candidates, chosen, gentree
from laconic.plan.groups import Group
from laconic.plan.ports import Server, Switch, even, groups_of, of_tree, racks

S = 4 << 20


def any_tree(ranks, draw, w_t, epsilon):
    """A random tree of switches over these ranks, with lines of random rates."""
    lines = [draw.choice([1e-9, 8e-9, 8e-8]) for _ in range(2)]
    if len(ranks) == 1:
        return Server(ranks[0], *lines)
    parts = draw.randint(2, len(ranks))
    cuts = sorted(draw.sample(range(1, len(ranks)), parts - 1))
    pieces = [ranks[a:b] for a, b in zip([0, *cuts], [*cuts, len(ranks)], strict=True)]
    return Switch(tuple(any_tree(piece, draw, w_t, epsilon) for piece in pieces), *lines, w_t, epsilon)


@settings(max_examples=60)
@given(
    servers=st.integers(2, 16),
    seed=st.integers(0, 10**6),
    w_t=st.integers(2, 9),
    epsilon=st.sampled_from([0.0, 1e-9, 1e-6]),
    alpha=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_on_any_tree_every_server_ends_with_the_sum_of_all(servers, seed, w_t, epsilon, alpha):
    tree = any_tree(list(range(servers)), random.Random(seed), w_t, epsilon)
    ports = of_tree(tree, Rates(alpha, 0, 1e-10, 3e-10))
    plan = rounds.check(gentree(groups_of(tree), ports, S))
    out, into = plan.shares()
    assert sum(out) == pytest.approx(sum(into))
    assert sum(out) >= 2 * (servers - 1) - 1e-9, "handing shares to ports comes on top"


@given(servers=st.integers(2, 16), seed=st.integers(0, 10**6))
def test_the_bytes_of_its_price_are_those_that_its_servers_send(servers, seed):
    """On a star of equal servers: seconds of bytes times the rate are the most that a server sends or hears a round."""
    beta = 8e-8
    plan = gentree(Group(tuple(range(servers))), even(servers, Rates(random.Random(seed).random(), beta)), S)
    moved = sum(
        max(sum(t.stop - t.start for t in transfers if t[end] == rank) for rank in range(servers) for end in (0, 1))
        for transfers in plan.rounds
    )
    assert price(plan, even(servers, Rates(0, beta)), S).seconds == pytest.approx(moved / plan.blocks * S * beta)
    assert moved / plan.blocks == pytest.approx(2 * (servers - 1) / servers)


def ways(node):
    """The way of every group that has more than one member."""
    return [] if isinstance(node, int) else [node, *(way for member in node.members for way in ways(member))]


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (2, 3, 4), (8, 8, 8, 8)])
def test_where_memory_counts_and_flows_do_not_crowd_it_sums_all_at_once_at_every_switch(sizes):
    tree = racks(sizes, 1e-12, 1e-12)  # where bytes count too, one ring keeps inner and outer lines busy at once
    found = chosen(groups_of(tree), of_tree(tree, Rates(0, 0, 0, 1e-9)), S)
    assert all(group.way == "direct" and group.ports == 0 for group in ways(found))
    assert sorted(len(group.members) for group in ways(found)) == sorted(
        len(group.members) for group in ways(groups_of(tree)) if len(group.members) > 1
    )


@pytest.mark.parametrize("sizes", [(4,), (4, 4), (2, 3, 4), (8, 8, 8, 8)])
def test_where_starts_count_it_takes_the_fewest_rounds(sizes):
    tree = racks(sizes, 8e-9, 8e-9, w_t=2, epsilon=1e-9)
    plan = gentree(groups_of(tree), of_tree(tree, Rates(1e3, 0)), S)
    assert len(plan.rounds) == 2 * (2 if len(sizes) > 1 else 1)


@pytest.mark.parametrize(("servers", "w_t"), [(8, 2), (8, 4), (12, 3), (12, 4), (16, 4), (15, 5), (9, 3)])
def test_where_flows_crowd_no_round_has_more_than_are_borne(servers, w_t):
    found = gentree(Group(tuple(range(servers))), even(servers, Rates(1e-6, 8e-9, 0, 1e-9, 1.0, w_t)), S)
    assert max(price(found, even(servers, Rates(0, 0)), S).degrees) <= w_t


def test_of_two_factors_the_larger_comes_first():
    """8 flows are too many and 4 are not: 4 x 2 touches 13/8 of the vector, 2 x 4 17/8."""
    found = chosen(Group(tuple(range(8))), even(8, Rates(0, 8e-9, 0, 1e-9, 1.0, 4)), S)
    assert [len(group.members) for group in ways(found)] == [2, 4, 4]


def test_where_a_racks_line_crowds_fewer_of_its_servers_cross():
    """16 flows from 8 servers to those of two other racks; each beyond the second costs ten times its bytes."""
    tree = racks((8, 8, 8), 1e-9, 1e-9, w_t=4, epsilon=1e-8)
    found = chosen(groups_of(tree), of_tree(tree, Rates(0.01, 0)), S)
    assert isinstance(found, Group)
    assert 0 < found.ports < 8


@given(servers=st.integers(2, 10), seed=st.integers(0, 10**6))
def test_it_is_never_dearer_than_any_of_its_candidates_at_one_switch(servers, seed):
    draw = random.Random(seed)
    ports = even(servers, Rates(*(draw.random() * 10 ** draw.uniform(-9, -3) for _ in range(5)), draw.randint(2, 9)))
    best = price(gentree(Group(tuple(range(servers))), ports, S), ports, S).seconds
    for group in candidates(tuple(range(servers))):
        assert best <= price(groups.of_groups(group, "other"), ports, S).seconds * (1 + 1e-8)


@given(racks_=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 10**6))
def test_it_is_never_dearer_than_one_ring_through_the_whole_tree(racks_, seed):
    draw = random.Random(seed)
    tree = racks(
        racks_, *(10 ** draw.uniform(-9, -7) for _ in range(2)), draw.randint(2, 9), 10 ** draw.uniform(-10, -8)
    )
    ports = of_tree(tree, Rates(10 ** draw.uniform(-6, -2), 0, 1e-10, 3e-10))
    flat = price(groups.ring(sum(racks_)), ports, S).seconds
    assert price(gentree(groups_of(tree), ports, S), ports, S).seconds <= flat * (1 + 1e-8)


def test_the_sum_of_the_prices_at_the_switches_is_the_price_of_the_whole():
    """Equal racks: what is reckoned for a rack alone is what it costs within the whole plan."""
    tree = racks((4, 4), 8e-9, 8e-9)
    rates = Rates(0.1, 0, 1e-10, 3e-10)
    whole = price(gentree(groups_of(tree), of_tree(tree, rates), S), of_tree(tree, rates), S).seconds
    one_rack = racks((4,), 8e-9, 8e-9)
    rack = price(
        gentree(groups_of(one_rack.members[0]), of_tree(one_rack, rates), S), of_tree(one_rack, rates), S
    ).seconds
    crossing = 2 * (0.1 + 4 * S / 8 * 8e-9) + S / 8 * 1e-10 + 3 * S / 8 * 3e-10
    assert whole == pytest.approx(rack + crossing)
