"""A plan in the flow simulator: its bytes, and that playing it takes what it is priced at."""

import numpy as np
import pytest

from laconic.errors import ConfigError
from laconic.links.network import parse
from laconic.plan import groups, rounds
from laconic.plan.collective_messages import of_plan
from laconic.plan.collectives import Rates
from laconic.plan.fabric import fabric_of, of_switches
from laconic.plan.flows import play
from laconic.plan.genmodel import price
from laconic.plan.gentree import gentree
from laconic.plan.ports import Server, Switch, groups_of, of_network, of_tree, racks
from laconic.plan.turns import seconds

S = 4e6
PLANS = [
    groups.ring(8),
    groups.rhd(8),
    groups.cps(8),
    groups.hcps(4, 2),
    rounds.doubling(8),
    rounds.star(8),
    rounds.tree(8),
]


@pytest.mark.parametrize("plan", [*PLANS, groups.rhd(6), groups.ring(5)])
def test_the_messages_of_a_plan_are_its_shares_and_its_messages(plan):
    sent = of_plan(plan, S)
    out, into = plan.shares()
    np.testing.assert_allclose(sent.sent, np.array(out) * S)
    np.testing.assert_allclose(sent.received, np.array(into) * S)
    assert np.bincount(sent.source, minlength=plan.workers).tolist() == plan.messages()


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_on_even_links_a_plan_plays_for_as_long_as_workers_clocks_say(plan):
    network, rates = parse("100mbit,5ms", 8), Rates(1e-3, 8e-8, 1e-9, 3e-9)
    played = play(fabric_of(network), of_plan(plan, S, rates)).seconds
    assert played == pytest.approx(seconds(plan, of_network(network, rates), S), rel=1e-9)


@pytest.mark.parametrize("uplink", [8e-10, 1e-10, 32e-10])
@pytest.mark.parametrize("name", ["ring", "rhd", "cps", "gentree"])
def test_on_a_tree_of_equal_racks_a_plan_plays_for_as_long_as_genmodel_says(name, uplink):
    # Behind a slow line workers start and add while it is busy, which common rounds do not know.
    tree, rates = racks((4, 4), 8e-10, uplink), Rates(3e-5, 0, 5e-11, 2e-10) if uplink <= 8e-10 else Rates(0, 0)
    ports = of_tree(tree, rates)
    plan = gentree(groups_of(tree), ports, S) if name == "gentree" else getattr(groups, name)(8)
    played = play(of_switches(tree), of_plan(plan, S, rates), together=True).seconds
    assert played == pytest.approx(price(plan, ports, S).seconds, rel=1e-9)


def test_crowding_takes_what_genmodel_says_where_all_flows_begin_and_end_together():
    tree, rates = racks((8,), 8e-10, 1e-12, w_t=3, epsilon=4e-10), Rates(0, 0)
    plan = groups.cps(8)
    played = play(of_switches(tree), of_plan(plan, S), together=True).seconds
    assert played == pytest.approx(2 * 7 / 8 * S * (8e-10 + 5 * 4e-10))
    assert played == pytest.approx(price(plan, of_tree(tree, rates), S).seconds)


def test_a_tree_of_switches_has_its_servers_in_the_order_of_their_ranks():
    tree = Switch((Server(2, 1e-6, 1e-6), Switch((Server(0, 1e-6, 1e-6), Server(1, 1e-6, 2e-6)), 4e-6, 1e-6)))
    fabric = of_switches(tree)
    assert fabric.workers == 3
    timing = play(fabric, of_plan(rounds.Plan("one", 3, 1, ((rounds.Transfer(0, 2, 0, 1),),)), 1e6))
    assert timing.seconds == pytest.approx(4.0)
    within = play(fabric, of_plan(rounds.Plan("one", 3, 1, ((rounds.Transfer(0, 1, 0, 1),),)), 1e6))
    assert within.seconds == pytest.approx(2.0)
    with pytest.raises(ConfigError, match=r"its servers are \[0, 2\], wanted the workers from 0 on"):
        of_switches(Switch((Server(0, 1, 1), Server(2, 1, 1))))
