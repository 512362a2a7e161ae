"""A whole probe on simulated links, whose rates are known: what it finds, what it sends, and the file it makes."""

import math
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError, PeerError
from laconic.links import kernel, simulated
from laconic.links.network import Connection, Network, of_cluster, on_the_wire, parse
from laconic.plan.cluster import read_cluster
from laconic.plan.measured import Fan, LinkMeasured, MachineMeasured, Measured, Spread
from laconic.plan.measured_tables import tables_of
from laconic.plan.probing import talk
from laconic.plan.probing.conduct import Notes, conduct, remarks
from laconic.plan.probing.refine import check_joined, fanned, refined, settled
from laconic.plan.probing.schedule import ALONE, TOGETHER, experiments, limits, most
from laconic.plan.writing import dump, write_cluster

MACHINE = Measured(
    machines={
        "x": MachineMeasured(
            memory=8e9, workload="shakespeare", operations=5e9, step=Spread((0.25,) * 3), loopback=Spread((2e9,))
        )
    }
)


def look(order):
    """A machine of four workers' memory; one of them slower."""
    found = tables_of(MACHINE)["machines"][0]
    return {key: value for key, value in found.items() if key != "name"}


def probed(network, seconds=60.0, nbytes=1e9, clocks=None, repeats=3, known=()):
    """What a probe finds on a simulated network, the bytes all links carried, and what it said it would send."""
    size = network.workers
    names = [f"m{rank}" for rank in range(size)]
    planned = experiments(size, known, repeats)
    bound = limits(planned, seconds, nbytes)
    looking = {"workload": "shakespeare", "clocks": clocks or ["one"] * size}

    def worker(link):
        found = None
        if link.rank:
            talk.serve(link, look)
        else:
            found = conduct(link, names, planned, bound, look, looking, "simulated")
        return found, link.meter.bytes_out

    ends = simulated.run(network, worker)
    return ends[0][0], sum(sent for _, sent in ends), most(planned, bound)


def rate(found, a, b):
    return found.links[f"m{a}", f"m{b}"].bandwidth.median


def test_two_workers_learn_their_uneven_connection_both_ways():
    found, _, _ = probed(parse("20mbit,10ms", 2, ["0:50mbit/5mbit,30ms"]))
    assert rate(found, 0, 1) == pytest.approx(5e6 / 8, rel=0.01)
    assert rate(found, 1, 0) == pytest.approx(20e6 / 8, rel=0.01)
    assert found.links["m0", "m1"].latency.median == pytest.approx(0.030, abs=5e-4)
    assert found.links["m1", "m0"].latency.median == pytest.approx(0.010, abs=5e-4)
    assert found.machines["m1"].flops == 2e10


def test_workers_that_share_no_clock_have_half_of_there_and_back():
    found, _, _ = probed(parse("20mbit,10ms", 2, ["0:20mbit,30ms"]), clocks=["one", "another"])
    for ends in (("m0", "m1"), ("m1", "m0")):
        assert found.links[ends].latency.median == pytest.approx(0.020, abs=5e-4)
        assert not found.links[ends].one_way


@settings(max_examples=8)
@given(data=st.data(), size=st.integers(2, 4))
def test_every_link_of_any_network_is_found_within_two_hundredths(data, size):
    rates = st.sampled_from([1e5, 5e5, 1.25e6, 6e6])
    pairs = [(a, b) for a in range(size) for b in range(size) if a != b]
    links = tuple(
        (a, b, Connection(data.draw(rates), latency=data.draw(st.sampled_from([0.0, 0.04])))) for a, b in pairs
    )
    found, sent, said = probed(Network((Connection(),) * size, links), repeats=1)
    for a, b, link in links:
        assert rate(found, a, b) == pytest.approx(link.up, rel=0.02)
        assert found.links[f"m{a}", f"m{b}"].latency.median == pytest.approx(link.latency, abs=0.002)
    assert sent <= said


def test_a_connection_that_all_of_a_workers_links_share_is_found_as_its_own(tmp_path):
    found, _, _ = probed(parse("20mbit,5ms", 4, ["1:80mbit/8mbit"]), seconds=300, nbytes=1e10)
    cluster = write_cluster(tmp_path / "c.toml", refined(None, None, found, "c"))
    ups = [machine.up for machine in cluster.machines]
    assert ups == [pytest.approx(20e6 / 8, rel=0.02), pytest.approx(1e6, rel=0.02), *ups[2:]]
    assert cluster.machines[0].down == pytest.approx(20e6 / 8, rel=0.02)
    assert cluster.machines[1].down == math.inf  # three others cannot fill its 80 Mbit/s
    fans = found.machines["m0"].into
    assert sorted(fans) == [2, 3]
    assert fans[3].bandwidth.median == pytest.approx(20e6 / 8, rel=0.02)


def test_what_is_slower_together_for_a_reason_no_file_can_say_is_remarked_on():
    notes = Notes()
    notes.rates[ALONE][0, 1], notes.rates[TOGETHER][0, 1] = [1e6, 1e6], [5e5]
    notes.rates[ALONE][1, 0] = notes.rates[TOGETHER][1, 0] = [1e6]
    (sentence,) = remarks(notes, ["attic", "cellar"])
    assert sentence.startswith("1 of 2 links are slower when all pairs are busy, most from attic to cellar, 2 times")
    found, _, _ = probed(parse("20mbit", 2))
    assert found.notes == ()


@pytest.mark.parametrize(("seconds", "nbytes"), [(6.0, 1e9), (60.0, 5e6)])
def test_a_limit_is_kept_and_what_it_left_out_is_said(seconds, nbytes):
    found, sent, said = probed(parse("100mbit,5ms", 4), seconds, nbytes)
    assert sent <= said <= nbytes
    assert found.nbytes <= nbytes
    assert found.seconds <= seconds * 1.1
    assert len(found.links) == 12
    assert any("left out, for the limits" in note for note in found.notes)


def test_on_long_links_each_is_measured_once_and_it_is_said_that_this_took_longer():
    found, *_ = probed(parse("20mbit,300ms", 6), seconds=12.0)
    assert len(found.links) == 30
    assert 12 < found.seconds < 20  # 5 rounds of 11 round trips would take 33 by themselves
    assert any("where 12.0 s were meant: each is measured once" in note for note in found.notes)


def test_a_peer_that_falls_silent_is_given_up_soon_after_the_probes_own_time():
    planned = experiments(3)
    bound = limits(planned, 10.0, 1e9)
    gone = {}

    def worker(link):
        if link.rank == 1:
            talk.ready(link)
            talk.heard(link, 0)
            link.recv(0, timeout=1e6)  # it has an order, and never answers
        try:
            if link.rank:
                talk.serve(link, look)
            else:
                conduct(link, ["a", "b", "c"], planned, bound, look, {"workload": "", "clocks": ["one"] * 3}, "x")
        except PeerError:
            gone[link.rank] = link.now()
            raise

    with pytest.raises(PeerError):
        simulated.run(parse("20mbit,5ms", 3), worker)
    assert gone[0] < 10 + 2 * talk.GRACE


def test_what_was_sent_again_is_counted_from_before_anything_is_sent(monkeypatch):
    order = []

    class Handle:
        def __init__(self, value):
            self.value = value

        def result(self):
            return self.value

    class Link:
        def lane(self, name):
            return self

        def start(self, run, *given):
            order.append(run.__name__)
            return Handle(0 if run is talk.pour else [])

    def wire(link, peer):
        order.append("wire")
        return kernel.Connection(0, 0, 0, 0)

    monkeypatch.setattr(talk, "wire", wire)
    talk.flows(Link(), [1], [1], 1000, 1.0)
    assert order.index("wire") < order.index("pour")


def test_what_is_known_well_is_not_measured_again_and_what_is_new_is(tmp_path):
    network = parse("20mbit,5ms", 3, ["2:5mbit"])
    path = tmp_path / "c.toml"
    first, *_ = probed(Network(network.connections[:2]))
    cluster = write_cluster(path, refined(None, None, first, "c"))
    names = ["m0", "m1", "m2"]
    known = settled(cluster, names)
    assert known == {(0, 1), (1, 0)}
    assert fanned(cluster, names, 2) == set()
    check_joined(cluster, names, "c.toml")
    second, *_ = probed(network, known=known)
    assert ("m0", "m1") not in {ends for ends, link in second.links.items() if link.alone}
    merged = write_cluster(path, refined(tomllib.loads(path.read_text()), cluster, second, "c"))
    assert rate(merged.measured, 0, 1) == pytest.approx(rate(first, 0, 1))
    of = of_cluster(merged, 3)
    assert of.link(0, 2).up == pytest.approx(5e6 / 8, rel=0.02)
    assert of.link(0, 1).up == pytest.approx(20e6 / 8, rel=0.02)
    assert settled(merged, names) == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_probing_some_machines_of_a_file_with_a_new_one_is_refused():
    cluster = read_cluster("aws10")
    known = [machine.name for machine in cluster.machines]
    check_joined(cluster, known[:3], "aws10.toml")
    check_joined(cluster, [*known, "new"], "aws10.toml")
    with pytest.raises(ConfigError, match=rf"has {known[1]}, which is not probed, and not new, which is"):
        check_joined(cluster, [known[0], "new"], "aws10.toml")
    with pytest.raises(ConfigError, match=r"two workers are on a; start one on each machine"):
        check_joined(None, ["a", "a"], "c.toml")


def test_refined_by_nothing_a_file_says_what_it_said(tmp_path):
    path = tmp_path / "c.toml"
    found, *_ = probed(parse("20mbit,5ms", 3))
    write_cluster(path, refined(None, None, found, "c", "mine"))
    once = tomllib.loads(path.read_text())
    again = refined(once, read_cluster(path), Measured(), "other")
    write_cluster(path, again)
    twice = tomllib.loads(path.read_text())
    for part in ("name", "about", "machines", "between"):
        assert twice[part] == once[part]
    assert twice["measured"]["links"] == once["measured"]["links"]


def test_what_a_hand_wrote_and_a_probe_does_not_measure_stays(tmp_path):
    path = tmp_path / "c.toml"
    by_hand = {
        "name": "home",
        "workers": ["m0", "m0", "m1", "m9"],
        "errors": [
            {
                "method": "ddp",
                "link": "here",
                "workers": 2,
                "workload": "adult",
                "predicted": 1.0,
                "measured": 1.1,
            }
        ],
        "machines": [
            {"name": "m0", "memory": 1e9, "flops": 1e9, "group": "up"},
            {"name": "m1", "memory": 1e9, "flops": 1e9, "group": "up"},
            {"name": "m9", "memory": 3e9, "flops": 3e9, "up": 1e6},
        ],
        "between": {
            "places": ["up", "m9"],
            "bandwidth": [[1e9, 2e6], [1e6, 1e9]],
            "latency": [[0.0001, 0.02], [0.03, 0.0]],
        },
    }
    path.write_text(dump(by_hand))
    found, *_ = probed(parse("20mbit,5ms", 2))
    assert refined(by_hand, read_cluster(path), found, "c")["errors"] == by_hand["errors"]
    merged = write_cluster(path, refined(by_hand, read_cluster(path), found, "c"))
    m0, m1, m9 = merged.machines
    assert (merged.name, merged.workers, m0.group, m9.up) == ("home", ("m0", "m0", "m1", "m9"), "up", 1e6)
    assert (m0.flops, m9.flops) == (2e10, 3e9)
    assert merged.line(m0, m1).bandwidth == pytest.approx(2.5e6, rel=0.01)
    assert merged.line(m0, m9).bandwidth == 2e6
    assert merged.line(m9, m1).latency == 0.03
    assert merged.line(m0, m0).bandwidth == 2e9
    assert merged.line(m9, m9).bandwidth == 1e9


def test_a_wire_for_a_clusters_rates_is_wider_by_the_frames_and_bounded_by_the_links():
    links = ((0, 1, Connection(1e6, 1e6, 0.01)), (0, 2, Connection(2e6, 2e6)), (1, 0, Connection(4e6, 4e6)))
    network = on_the_wire(Network((Connection(), Connection(up=3e6), Connection()), links), frames=1.05)
    assert [c.up for c in network.connections] == pytest.approx([3.15e6, 3.15e6, math.inf])
    assert [c.down for c in network.connections] == pytest.approx([4.2e6, 1.05e6, 2.1e6])
    assert network.link(0, 1) == Connection(1.05e6, 1.05e6, 0.01)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [((1e6,), set()), ((1e6, 2e6, 3e6), set()), ((1e6, 1e6, 1.01e6), {(0, 1), (1, 0)})],
)
def test_a_link_measured_once_is_not_settled_nor_is_one_that_varies(tmp_path, values, wanted):
    link = LinkMeasured(Spread(values), latency=Spread((0.01,)))
    machine = MACHINE.machines["x"]
    found = Measured({("a", "b"): link, ("b", "a"): link}, {"a": machine, "b": machine})
    cluster = write_cluster(tmp_path / "c.toml", refined(None, None, found, "c"))
    assert settled(cluster, ["a", "b"]) == wanted
    assert settled(cluster, ["a", "new"]) == set()


def test_a_fan_among_fewer_machines_says_nothing_of_a_connection_with_more_links():
    link, fan = LinkMeasured(Spread((1e6,)), latency=Spread((0.01,))), Fan(2, Spread((2e6,)), 0.0)
    names = ["a", "b", "c", "d"]
    machine = MACHINE.machines["x"]
    machines = {name: replace(machine, out={2: fan}, into={2: fan}) for name in names}
    links = {(a, b): link for a in names for b in names if a != b}
    three = {ends: of for ends, of in links.items() if "d" not in ends}
    four = refined(None, None, Measured(links, machines), "c")
    assert all("up" not in entry and "down" not in entry for entry in four["machines"])
    slower = {name: replace(machine, out={2: fan._replace(bandwidth=Spread((1.2e6,)))}) for name in names[:3]}
    assert [entry.get("up") for entry in refined(None, None, Measured(three, slower), "c")["machines"]] == [1.2e6] * 3
