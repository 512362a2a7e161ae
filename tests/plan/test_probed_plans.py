"""What a probe measured bears on a plan: sums, crowding at ports, and how fast machines compress."""

import math
from dataclasses import replace

import pytest

from laconic.links.network import of_cluster, parse
from laconic.plan import charging, site
from laconic.plan.choosing import USUAL, options
from laconic.plan.cluster import Line, read_cluster
from laconic.plan.collectives import Rates
from laconic.plan.fitting import Probed, fit_fans, fit_machine
from laconic.plan.groups import cps
from laconic.plan.job import Job, Step
from laconic.plan.measured import Fan, MachineMeasured, Measured, Speed, Spread
from laconic.plan.ports import even, of_network
from laconic.plan.ranking import Goal, Way, rank
from laconic.plan.turns import seconds

JOB = Job("small", tuple((f"blocks.{i}.weight", (96, 64)) for i in range(4)), 128, 1e6, 2e6)
STEP = Step(0.01, 0.02)
BETA = 8e-8


def fans(epsilon, w_t, most=8):
    """A port's fans, as GenModel has them."""
    return {peers: BETA + max(peers + 1 - w_t, 0) * epsilon for peers in range(1, most)}


def probed(cluster, **found):
    """A shipped cluster, each of whose machines was found to be so."""
    known = read_cluster(cluster)
    measured = Measured(machines={machine.name: MachineMeasured(**found) for machine in known.machines})
    return replace(known, measured=measured)


@pytest.mark.parametrize("w_t", [2, 3, 5])
@pytest.mark.parametrize("epsilon", [2e-8, 8e-8])
def test_fans_give_back_how_a_port_crowds(w_t, epsilon):
    assert fit_fans(fans(epsilon, w_t)) == (pytest.approx(epsilon), w_t)


def test_fans_that_take_no_longer_do_not_crowd_and_one_fan_says_nothing():
    assert fit_fans({1: 1.0, 2: 0.99, 4: 1.01}) == (0.0, math.inf)
    assert fit_fans({1: 2.0, 2: 1.0}) == (0.0, math.inf)  # one peer's own link was slower than the port
    assert fit_fans({2: 1.0}) is None


def test_a_probed_machine_has_its_own_rates():
    sums = {parts: Spread(((parts - 1) * 2e-10 + (parts + 1) * 3e-10,)) for parts in (2, 4, 8)}
    into = {peers: Fan(peers, Spread((1 / each,)), 0.0) for peers, each in fans(2e-8, 3).items()}
    found = fit_machine(MachineMeasured(sums=sums, into=into))
    assert (found.gamma, found.delta) == (pytest.approx(2e-10), pytest.approx(3e-10))
    assert found.into == (pytest.approx(2e-8), 3)
    assert found.out is None
    ports = of_network(of_cluster(probed("homes6", sums=sums, into=into), 6), USUAL)
    assert ports.gamma.tolist() == pytest.approx([2e-10] * 6)
    assert ports.delta.tolist() == pytest.approx([3e-10] * 6)
    assert ports.epsilon.tolist() == pytest.approx([0.0] * 6 + [2e-8] * 6)  # out and in
    assert ports.w_t[6:].tolist() == [3] * 6
    plain = of_network(of_cluster(read_cluster("homes6"), 6), USUAL)
    assert plain.gamma.tolist() == [USUAL.gamma] * 6


def test_what_crowds_at_a_port_takes_longer_by_each_workers_clock():
    nbytes, free = 8e6, Rates(0.0, BETA)
    crowded = free._replace(epsilon=2e-8, w_t=3)
    bare, late = (seconds(cps(8), even(8, rates), nbytes) for rates in (free, crowded))
    assert late == pytest.approx(bare * (1 + 5 * 2e-8 / BETA))
    assert seconds(cps(3), even(3, crowded), nbytes) == seconds(cps(3), even(3, free), nbytes)


def test_a_port_that_crowds_changes_the_plan_that_is_chosen():
    even_links = parse("100mbit", 8)
    known = replace(even_links, probed=(Probed(into=(8e-8, 2), out=(8e-8, 2)),) * 8)
    before, after = (options(8, 4e6, network)[0].plan for network in (even_links, known))
    assert before.name == "cps"
    assert max(map(len, after.rounds)) < max(map(len, before.rounds))


def test_a_machine_that_was_probed_to_compress_slowly_takes_that_much_longer(monkeypatch):
    here = {"int8": Speed(Spread((4e8,)), Spread((4e8,)), 0.25), "half": Speed(Spread((2e9,)), Spread((2e9,)), 0.5)}
    slow = {
        name: Speed(Spread((s.compress.median / 3,)), Spread((s.decompress.median / 3,)), 1) for name, s in here.items()
    }
    assert charging.slower_by(slow, here) == pytest.approx(3)
    monkeypatch.setattr(site, "speeds_here", lambda names, threads: {name: here[name] for name in names})
    usual = site.of_cluster_file(read_cluster("homes6"), 4, JOB)
    place = site.of_cluster_file(probed("homes6", compressors=slow), 4, JOB)
    assert (usual.compressing, place.compressing) == ((), (pytest.approx(3),) * 4)
    assert place.one_more().compressing == (pytest.approx(3),) * 5
    way = Way("ddp compress=int8", "ddp", {"compress": "int8"})
    prices = [rank(JOB, each, Goal(1e6), [way], paces={way.name: 1e-7}).ranked for each in (usual, place)]
    own, slower = (next(one.price.compressing for one in found if one.way == way) for found in prices)
    assert slower == pytest.approx(3 * own, rel=0.05)


def test_a_compressor_is_timed_here_as_a_probe_times_it():
    found = charging.speeds_here(["half"])
    assert charging.slower_by(found, found) == pytest.approx(1)
    assert found["half"].nbytes == pytest.approx(0.5, rel=0.01)


def test_workers_on_one_machine_share_its_speed_and_memory():
    cluster = read_cluster("homes6")
    first, second = cluster.machines[:2]
    lines = {**cluster.lines, (first.name, first.name): Line(1e9, 1e-4)}
    shared = replace(cluster, lines=lines, workers=(first.name, first.name, second.name))
    place, apart = site.of_cluster_file(shared, 3, JOB), site.of_cluster_file(cluster, 2, JOB)
    assert place.memory == (first.memory / 2, first.memory / 2, second.memory)
    assert place.steps == (apart.steps[0].times(2), apart.steps[0].times(2), apart.steps[1])
    probed_step = MachineMeasured(operations=3e6, step=Spread((0.6,)))
    measured = replace(shared, measured=Measured(machines={first.name: probed_step}))
    assert site.of_cluster_file(measured, 3, JOB).steps[0].seconds == pytest.approx(1.2)
