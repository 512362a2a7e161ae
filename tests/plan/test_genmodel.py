"""GenModel: the table's golden values and laws, and that the price of each plan is its row of the table."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links.network import Connection, Network
from laconic.plan import collectives, genmodel, groups, rounds
from laconic.plan.collectives import Rates, Work, uneven_ring
from laconic.plan.genmodel import price
from laconic.plan.groups import factorisations, of_groups
from laconic.plan.ports import Server, Switch, even, of_network, of_tree, racks
from tests.plan.test_rounds import any_group

S = 4 << 20
RATES = Rates(2e-4, 8e-8, 1e-10, 3e-10, 5e-9, 3)
rates = st.builds(
    Rates, *[st.floats(0, 1e-3, allow_subnormal=False)] * 5, st.one_of(st.integers(1, 16), st.just(math.inf))
)


def exact(a, b):
    assert a == pytest.approx(b, rel=1e-12, abs=1e-15)


# -- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factors", "touched"), [((8,), 9 / 8), ((4, 2), 13 / 8), ((2, 4), 17 / 8), ((2, 2, 2), 21 / 8)]
)
def test_memory_touched_by_eight_in_stages_is_the_papers(factors, touched):
    assert genmodel.hcps(factors, 8.0).touched == pytest.approx(8 * touched, rel=1e-15)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (genmodel.star, Work(2, 14, 7, 9, 5 * 14)),
        (genmodel.ring, Work(14, 14 / 8, 7 / 8, 21 / 8, 0)),
        (genmodel.rhd, Work(6, 14 / 8, 7 / 8, 21 / 8, 0)),
        (genmodel.cps, Work(2, 14 / 8, 7 / 8, 9 / 8, 5 * 14 / 8)),
    ],
)
def test_rows_of_eight_workers_are_the_papers(row, expected):
    exact(row(8, 1.0, 3), expected)


def test_crowding_in_stages_is_the_sum_over_stages():
    assert genmodel.hcps((4, 2), 1.0, 2).crowded == pytest.approx(2 * 2 * 3 / 4)
    assert genmodel.hcps((4, 4), 1.0, 3).crowded == pytest.approx(1 * 2 * 3 / 4 + 1 * 2 * 3 / 16)


@given(levels=st.integers(0, 6), nbytes=st.floats(1, 1e9), rates=rates)
def test_one_stage_is_cps_and_twos_are_halving_and_doubling(levels, nbytes, rates):
    count = 2**levels
    exact(genmodel.hcps((count,), nbytes, rates.w_t), genmodel.cps(count, nbytes, rates.w_t))
    exact(genmodel.hcps((2,) * levels, nbytes, rates.w_t), genmodel.rhd(count, nbytes, rates.w_t))


@given(count=st.integers(2, 64), data=st.data())
def test_stages_touch_between_what_one_and_what_a_ring_touches_and_move_what_they_move(count, data):
    factors = data.draw(st.sampled_from(list(factorisations(count))))
    found, ring = genmodel.hcps(factors, 1.0), genmodel.ring(count, 1.0)
    assert (count + 1) / count - 1e-12 <= found.touched <= 3 * (count - 1) / count + 1e-12
    exact(found[1:3], ring[1:3])
    if len(factors) == 2 and factors[0] > factors[1]:
        assert found.touched < genmodel.hcps(factors[::-1], 1.0).touched


@given(count=st.integers(1, 64), nbytes=st.floats(0, 1e9))
def test_without_memory_and_crowding_every_row_is_the_classic_one(count, nbytes):
    plain = RATES._replace(delta=0.0, epsilon=0.0)
    for name, row in genmodel.TABLE.items():
        if name == "rhd" and count & (count - 1):
            continue
        exact(row(count, nbytes, 3).seconds(plain), collectives.TABLE["all-reduce"][name](count, nbytes).seconds(plain))


def test_the_table_has_no_halving_for_other_numbers_than_powers_of_two():
    with pytest.raises(ConfigError, match="the table is for a power of two, got 6"):
        genmodel.rhd(6, 1.0)


# -- any plan ------------------------------------------------------------------------------------------------------


@given(count=st.integers(2, 12), nbytes=st.floats(1, 1e9), rates=rates)
def test_the_price_of_a_plan_is_its_row_of_the_table(count, nbytes, rates):
    for make, row in ((rounds.star, genmodel.star), (groups.ring, genmodel.ring), (groups.cps, genmodel.cps)):
        exact(price(make(count), even(count, rates), nbytes).seconds, row(count, nbytes, rates.w_t).seconds(rates))


@given(count=st.integers(2, 24), data=st.data(), rates=rates)
def test_the_price_of_stages_is_their_row(count, data, rates):
    factors = data.draw(st.sampled_from(list(factorisations(count))))
    found = price(groups.hcps(*factors), even(count, rates), S).seconds
    exact(found, genmodel.hcps(factors, S, rates.w_t).seconds(rates))


@given(count=st.integers(2, 33))
def test_the_price_of_what_the_paper_has_no_row_for_is_the_classic_cost(count):
    plain = RATES._replace(delta=0.0, epsilon=0.0)
    for make in (groups.rhd, rounds.doubling, rounds.tree):
        plan = make(count)
        exact(
            price(plan, even(count, plain), S).seconds,
            collectives.TABLE["all-reduce"][plan.name](count, S).seconds(plain),
        )


def test_sums_taken_one_after_the_other_touch_what_a_rings_touch():
    plan, ports = groups.cps(8), even(8, Rates(0, 0, 0, 1.0))
    assert price(plan, ports, 8.0).seconds == pytest.approx(9)
    assert price(plan, ports, 8.0, one_pass=False).seconds == pytest.approx(3 * 7)


@given(workers=st.integers(2, 12), seed=st.integers(0, 10**6), rates=rates, nbytes=st.floats(1, 1e9))
def test_terms_add_up_and_twice_the_rates_is_half_the_time(workers, seed, rates, nbytes):
    plan = of_groups(any_group(list(range(workers)), random.Random(seed)), "any")
    found = price(plan, even(workers, rates), nbytes)
    assert found.seconds == pytest.approx(sum(found.terms))
    halved = Rates(*(rate / 2 for rate in rates[:5]), rates.w_t)
    exact(price(plan, even(workers, halved), nbytes).seconds, found.seconds / 2)


@given(data=st.data(), count=st.integers(2, 8))
def test_a_ring_over_uneven_links_costs_its_worst_edge_each_round(data, count):
    speeds = data.draw(st.lists(st.sampled_from([1.25e6, 3e6, 12.5e6]), min_size=count, max_size=count))
    delays = data.draw(st.lists(st.floats(0, 0.1), min_size=count, max_size=count))
    fast = Connection(1e9, 1e9)
    links = tuple((i, (i + 1) % count, Connection(speeds[i], speeds[i], delays[i])) for i in range(count))
    ports = of_network(Network((fast,) * count, links), Rates(1e-4, 0))
    edges = [(1e-4 + delay, 1 / speed) for speed, delay in zip(speeds, delays, strict=True)]
    exact(price(groups.ring(count), ports, S).seconds, uneven_ring(edges, S))


def test_an_unused_worker_changes_nothing_in_a_star_around_its_hub():
    three = rounds.star(3)
    more = rounds.Plan("star", 4, 1, three.rounds)
    exact(price(three, even(3, RATES), S).seconds, price(more, even(4, RATES), S).seconds)


# -- trees ---------------------------------------------------------------------------------------------------------


def test_a_racks_line_carries_the_traffic_of_all_its_servers():
    """Flat cps over two racks of two: each rack's line carries 4 flows of a quarter, each server's 3."""
    tree = racks((2, 2), server=1e-9, uplink=1e-9)
    found = price(groups.cps(4), of_tree(tree, Rates(0, 0)), 4e9)
    assert found.seconds == pytest.approx(2 * 4.0)
    two_level = price(of_groups(groups.nested(range(4), (2, 2)), "two"), of_tree(tree, Rates(0, 0)), 4e9)
    assert two_level.seconds == pytest.approx(2 * (2.0 + 2 * 1.0)), "half the vector inside, then a quarter of it each"


def test_lines_above_the_switch_where_two_ways_meet_are_not_used():
    deep = Switch((Switch((Server(0, 1.0, 1.0), Server(1, 1.0, 1.0)), 100.0, 100.0), Server(2, 1.0, 1.0)))
    ports = of_tree(deep, Rates(0, 0))
    pair = rounds.Plan("pair", 3, 1, ((rounds.Transfer(0, 1, 0, 1),),))
    across = rounds.Plan("across", 3, 1, ((rounds.Transfer(0, 2, 0, 1),),))
    assert price(pair, ports, 1.0).seconds == 1.0
    assert price(across, ports, 1.0).seconds == 100.0


def test_flows_beyond_what_a_line_bears_cost_epsilon_each():
    tree = racks((2, 2), server=0.0, uplink=0.0, w_t=3, epsilon=1.0)
    found = price(groups.cps(4), of_tree(tree, Rates(0, 0)), 1.0)
    assert found.degrees == [5, 5]
    assert found.terms.epsilon == pytest.approx(2 * (5 - 3) * 1.0), "4 flows of a quarter on a rack's line"


def test_up_and_down_may_differ():
    tree = Switch((Server(0, 1.0, 5.0), Server(1, 2.0, 3.0)))
    one = rounds.Plan("one", 2, 1, ((rounds.Transfer(0, 1, 0, 1),),))
    assert price(one, of_tree(tree, Rates(0, 0)), 1.0).seconds == 3.0


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: of_tree(Switch((Server(0, 1.0, 1.0), Server(2, 1.0, 1.0))), RATES), r"its servers are \[0, 2\]"),
        (lambda: of_tree(Switch((Server(0, -1.0, 1.0), Server(1, 1.0, 1.0))), RATES), "a negative time"),
        (lambda: price(groups.ring(3), even(4, RATES), S), "a plan of 3 workers for a network of 4"),
        (
            lambda: of_network(Network((Connection(1e6, 1e6),) * 2, ((0, 1, Connection(0.0)),)), RATES),
            "nothing carries",
        ),
    ],
)
def test_what_cannot_be_priced_is_refused_in_words(build, says):
    with pytest.raises(ConfigError, match=says):
        build()
