"""Which plan: sites are found where rates fall, and the cheapest is the one that the network calls for."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.links.network import Connection, Network, of_cluster, parse
from laconic.plan.choosing import NAMES, USUAL, choice, options, plan_of
from laconic.plan.cluster import read_cluster
from laconic.plan.collectives import Rates, doubling_until, star_until
from laconic.plan.groups import Group, factorisations, workers_of
from laconic.plan.ports import BUFFERS, even, of_network
from laconic.plan.rounds import check
from laconic.plan.sites import sites
from laconic.plan.turns import seconds
from tests.exchange.test_planned import two_sites

S = 4e6


def shuffled(network, order):
    """The same network with its workers in another order."""
    place = {old: new for new, old in enumerate(order)}
    links = tuple((place[i], place[j], connection) for i, j, connection in network.links)
    return Network(tuple(network.connections[old] for old in order), links)


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=4), seed=st.integers(0, 10**6))
def test_sites_are_found_whatever_the_order_of_the_ranks(sizes, seed):
    network = two_sites(sizes)
    order = list(range(network.workers))
    random.Random(seed).shuffle(order)
    if max(sizes) == 1:
        assert sites(network) == Group(tuple(range(len(sizes))))
        return
    found = sites(shuffled(network, order))
    first = [sum(sizes[:k]) for k in range(len(sizes))]
    wanted = {frozenset(order.index(at + i) for i in range(size)) for at, size in zip(first, sizes, strict=True)}
    assert {frozenset(workers_of(member)) for member in found.members} == wanted


def test_sites_are_made_of_sites_where_rates_fall_twice():
    rate = lambda i, j: 1e9 if i // 2 == j // 2 else 1e7 if i // 4 == j // 4 else 1e5  # noqa: E731
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    links = tuple((i, j, Connection(rate(i, j), rate(i, j))) for i, j in pairs)
    found = sites(Network((Connection(),) * 8, links))
    assert found == Group((Group((Group((0, 1)), Group((2, 3)))), Group((Group((4, 5)), Group((6, 7))))))


@pytest.mark.parametrize("network", [parse("100mbit", 5), parse("100mbit", 1), parse("100mbit", 4, ["1:60mbit"])])
def test_where_rates_do_not_fall_there_is_one_site(network):
    assert sites(network) == Group(tuple(range(network.workers)))


def test_latency_alone_makes_no_sites():
    far = tuple(
        (i, j, Connection(1e7, 1e7, 0.0001 if i // 2 == j // 2 else 0.1)) for i in range(4) for j in range(4) if i != j
    )
    assert sites(Network((Connection(1e7, 1e7),) * 4, far)) == Group((0, 1, 2, 3))


def test_the_slower_direction_counts():
    one_way = Network((Connection(1e7, 1e7),) * 3, tuple((0, j, Connection(1e5, 1e5)) for j in (1, 2)))
    assert {frozenset(workers_of(member)) for member in sites(one_way).members} == {frozenset({0}), frozenset({1, 2})}


@pytest.mark.parametrize("workers", [2, 3, 5, 8, 9])
@pytest.mark.parametrize("nbytes", [100.0, 1e6])
def test_every_option_is_an_all_reduce_and_they_are_in_order(workers, nbytes):
    found = options(workers, nbytes)
    assert [option.seconds for option in found] == pytest.approx(sorted(option.seconds for option in found))
    for option in found:
        check(option.plan)


@pytest.mark.parametrize("name", [name for name in NAMES if ":" not in name])
@pytest.mark.parametrize("cluster", ["aws10", "homes6"])
def test_every_name_gives_a_plan_for_every_shipped_cluster(name, cluster):
    machines = read_cluster(cluster)
    network = of_cluster(machines, len(machines.machines))
    check(plan_of(name, network.workers, 1e6, network))
    assert plan_of(name, 1, 1e6).rounds == ()


def test_for_few_bytes_the_fewest_rounds_and_for_many_the_fewest_bytes():
    rates = Rates(1e-2, 8e-8)
    small, large = (options(8, nbytes, None, rates) for nbytes in (10.0, 1e9))
    assert len(small[0].plan.rounds) == 2
    assert max(large[0].plan.shares()[0]) == pytest.approx(2 * 7 / 8)


@pytest.mark.parametrize("workers", [4, 6, 8, 9, 12])
@pytest.mark.parametrize("nbytes", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("rates", [USUAL, USUAL._replace(epsilon=8e-8, w_t=2)])
def test_on_even_links_no_stages_and_no_rings_in_dimensions_beat_the_choice(workers, nbytes, rates):
    """So it need not try them one by one: GenTree tries all stages, and the rings that start least often are tried."""
    best = options(workers, nbytes, None, rates)[0].seconds
    for factors in factorisations(workers):
        text = "x".join(map(str, factors))
        for name in (f"hcps:{text}", f"rings:{text}"):
            assert best <= seconds(plan_of(name, workers, nbytes), even(workers, rates), nbytes) * (1 + 1e-9)


def test_of_plans_that_take_as_long_auto_takes_the_one_in_which_fewest_send_to_one():
    slow = Connection(1.25e6, 1.25e6)
    apart = tuple((i, j, slow) for i in range(4) for j in range(4) if i // 2 != j // 2)
    network = Network((Connection(1.25e7, 1.25e7),) * 4, apart)
    rates = USUAL._replace(alpha=2e-4)
    found = options(4, 4 << 20, network, rates, BUFFERS)
    by_name = {option.plan.name: option for option in found}
    assert by_name["cps"].seconds < by_name["sites"].seconds < 1.01 * by_name["cps"].seconds
    assert (by_name["cps"].plan.crowd, by_name["sites"].plan.crowd) == (3, 1)
    assert choice(found).plan.crowd == 1
    assert plan_of("auto", 4, 4 << 20, network, rates, BUFFERS).name == choice(found).plan.name != "cps"


def test_where_three_at_a_port_crowd_nine_workers_take_rings_of_three():
    found = options(9, 1e6, None, USUAL._replace(epsilon=8e-8, w_t=2))
    assert found[0].plan.name == "rings:3x3"
    check(found[0].plan)


@pytest.mark.parametrize("workers", [4, 8, 16])
def test_options_cross_over_where_the_formulas_say(workers):
    rates = USUAL._replace(gamma=0.0, delta=0.0)
    for until, quick, slow in ((doubling_until, "doubling", "rhd"), (star_until, "star", "ring")):
        for factor, better in ((0.98, True), (1.02, False)):
            by_name = {
                option.plan.name: option.seconds
                for option in options(workers, until(workers, rates) * factor, None, rates)
            }
            assert (by_name[quick] < by_name[slow]) == better


def test_a_ring_over_uneven_links_takes_the_order_that_suits_them():
    network = shuffled(two_sites((3, 3)), [0, 3, 1, 4, 2, 5])
    plan = plan_of("ring", 6, 1e6, network)
    site = [0, 1, 0, 1, 0, 1]
    assert sum(site[t.source] != site[t.target] for t in plan.rounds[0]) == 2


def test_a_star_stands_where_links_are_best():
    network = parse("10mbit", 4, ["2:100mbit"])
    assert plan_of("star", 4, 1e6, network).name == "star around 2"


def test_with_buffers_a_slow_peer_holds_up_nobody_else_and_without_them_it_does():
    """By cps on two sites: a share to each of two slow peers, one after the other or at once."""
    network, plan = two_sites(), plan_of("cps", 4, 1.0)
    waits, goes_on = (seconds(plan, of_network(network, Rates(0, 0), 1.0, ahead), 5e5) for ahead in (0.0, 1e9))
    up = 1.25e5 / 12.5e6  # of each message on the worker's own uplink; the last one begins after two others
    assert goes_on == pytest.approx(2 * (2 * up + 1.25e5 / 1.25e6))
    assert waits == pytest.approx(2 * (2 * 1.25e5 / 1.25e6 + 1.25e5 / 12.5e6))


@given(workers=st.integers(2, 9), data=st.data())
def test_more_buffers_never_take_longer_and_are_nothing_where_links_are_even(workers, data):
    name = data.draw(st.sampled_from(["ring", "rhd", "cps", "star", "tree", "doubling"]))
    even_links = parse("100mbit", workers)
    none, all_ = (
        seconds(plan_of(name, workers, S), of_network(even_links, Rates(0, 0), 1.0, a), S) for a in (0.0, 1e9)
    )
    assert all_ <= none * (1 + 1e-9)
    if name != "tree":  # in which workers send to others while the first messages are on their way
        assert all_ == pytest.approx(none)
