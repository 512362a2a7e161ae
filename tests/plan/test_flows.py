"""Flows: exact against fractions, the laws of max-min fairness, and rounds whose times are known."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links.network import Connection, Network, parse
from laconic.plan.cluster import read_cluster
from laconic.plan.fabric import Incast, Laid, fabric_of, tree
from laconic.plan.flows import Messages, bound, in_rounds, play, rates
from tests.plan.slow_flows import fair, port, simulate

few = settings(max_examples=60, deadline=None)


class Drawn:
    """A fabric of stated resources, (capacity, degree, epsilon), and a route and a latency for each message."""

    def __init__(self, workers, resources, routes, latencies):
        self.workers, self.resources, self.routes, self.latencies = workers, resources, routes, latencies

    def lay(self, source, target, via):
        depth = max([1, *map(len, self.routes)])
        rows = [[*route, *[-1] * (depth - len(route))] for route in self.routes] or [[-1]]
        columns = np.array([[float(x) for x in each] for each in self.resources]).T
        pair = np.arange(len(self.routes), dtype=np.int32)
        return Laid(pair, np.array(rows, np.int32), np.array(self.latencies, float), *columns)


def messages_of(workers, ends, nbytes, programs):
    """Messages from programs of ("send", t), ("wait", t), ("pause", seconds)."""
    code = {"send": lambda t: t + 1, "wait": lambda t: -t - 1, "pause": lambda seconds: 0}
    ops = [code[kind](what) for program in programs for kind, what in program]
    pauses = [float(what) if kind == "pause" else 0.0 for program in programs for kind, what in program]
    first = np.cumsum([0, *map(len, programs)])
    source, target = (np.array([pair[k] for pair in ends], np.int32) for k in (0, 1))
    via = np.full(len(ends), -1, np.int32)
    return Messages(workers, source, target, np.array(nbytes, float), via, first, np.array(ops, int), np.array(pauses))


numbers = st.fractions(min_value=Fraction(1, 2), max_value=4, max_denominator=4)


@st.composite
def scenes(draw, incast=True):
    """Workers, messages in an order that no worker can be stuck in, routes, and resources; all in small fractions."""
    workers, resources = draw(st.integers(2, 4)), draw(st.integers(1, 4))
    degree = st.integers(1, 3) if incast else st.just(100)
    epsilon = st.sampled_from([Fraction(0), Fraction(1, 8), Fraction(1, 3)]) if incast else st.just(Fraction(0))
    ports = [(draw(numbers), draw(degree), draw(epsilon)) for _ in range(resources)]
    programs = [[] for _ in range(workers)]
    messages, ends = [], []
    for t in range(draw(st.integers(1, 7))):
        a = draw(st.integers(0, workers - 1))
        b = (a + draw(st.integers(1, workers - 1))) % workers
        route = draw(st.lists(st.integers(0, resources - 1), min_size=0, max_size=3, unique=True))
        size = draw(st.sampled_from([Fraction(0), Fraction(1), Fraction(2), Fraction(3, 2), Fraction(5)]))
        latency = draw(st.sampled_from([Fraction(0), Fraction(1, 4), Fraction(1)]))
        if draw(st.booleans()):
            programs[a].append(("pause", draw(st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(3)]))))
        programs[a].append(("send", t))
        if draw(st.booleans()):  # what is waited for has been sent before it in this order, so nobody is stuck
            programs[b].append(("wait", t))
        messages.append((a, size, route, latency))
        ends.append((a, b))
    return workers, ports, programs, messages, ends


@few
@given(scene=scenes(), together=st.booleans())
def test_every_moment_is_that_of_an_exact_simulation_in_fractions(scene, together):
    workers, ports, programs, messages, ends = scene
    left, there, ended = simulate(programs, messages, ports, together)
    fabric = Drawn(workers, ports, [m[2] for m in messages], [m[3] for m in messages])
    timing = play(fabric, messages_of(workers, ends, [m[1] for m in messages], programs), together=together)
    order = range(len(messages))
    np.testing.assert_allclose(timing.left, [float(left[t]) for t in order], rtol=1e-9)
    np.testing.assert_allclose(timing.arrived, [float(there[t]) for t in order], rtol=1e-9)
    np.testing.assert_allclose(timing.ended, [float(e) for e in ended], rtol=1e-9)


def drawn_rates(scene):
    workers, ports, _, messages, ends = scene
    fabric = Drawn(workers, ports, [m[2] for m in messages], [m[3] for m in messages])
    programs = [[("send", t) for t, (a, _) in enumerate(ends) if a == w] for w in range(workers)]
    return rates(fabric, messages_of(workers, ends, [1.0] * len(messages), programs))


@few
@given(scene=scenes())
def test_no_rate_can_grow_without_a_smaller_or_equal_one_shrinking(scene):
    _, ports, _, messages, _ = scene
    found = drawn_rates(scene)
    routes = [m[2] for m in messages]
    limits = [float(port(*p, sum(r in route for route in routes))) for r, p in enumerate(ports)]
    for t, route in enumerate(routes):
        if not route:
            assert found[t] == np.inf
            continue
        tight = []
        for r in route:
            users = [found[other] for other, its in enumerate(routes) if r in its]
            assert sum(users) <= limits[r] * (1 + 1e-9)
            tight.append(sum(users) >= limits[r] * (1 - 1e-9) and found[t] >= max(users) * (1 - 1e-9))
        assert any(tight), f"flow {t} has no resource that is full and on which it is among the fastest"


def test_a_message_of_no_bytes_has_a_rate_too():
    shared = in_rounds(3, [[(0, 1, 0.0), (0, 2, 1e6)]])
    assert rates(fabric_of(parse("8mbit", 3)), shared).tolist() == [5e5, 5e5]


@few
@given(scene=scenes())
def test_rates_are_those_of_progressive_filling_in_fractions(scene):
    _, ports, _, messages, _ = scene
    routes = [m[2] for m in messages if m[2]]
    limits = [port(*p, sum(r in route for route in routes)) for r, p in enumerate(ports)]
    found = [rate for rate in drawn_rates(scene) if rate < np.inf]
    np.testing.assert_allclose(found, [float(rate) for rate in fair(routes, limits)], rtol=1e-9)


@few
@given(scene=scenes(incast=False), factor=st.sampled_from([2.0, 3.0, 0.25]))
def test_times_are_the_inverse_of_all_capacities_where_nothing_else_takes_time(scene, factor):
    workers, ports, programs, messages, ends = scene
    programs = [[op for op in program if op[0] != "pause"] for program in programs]
    sent = messages_of(workers, ends, [m[1] for m in messages], programs)
    times = [
        play(
            Drawn(workers, [(c * f, d, e) for c, d, e in ports], [m[2] for m in messages], [0.0] * len(messages)), sent
        )
        for f in (1, Fraction(factor))
    ]
    np.testing.assert_allclose(times[0].left, times[1].left * factor, rtol=1e-9)


@few
@given(scene=scenes())
def test_a_worker_that_nobody_talks_to_changes_nothing(scene):
    workers, ports, programs, messages, ends = scene
    routes, latencies = [m[2] for m in messages], [m[3] for m in messages]
    sizes = [m[1] for m in messages]
    one = play(Drawn(workers, ports, routes, latencies), messages_of(workers, ends, sizes, programs))
    other = play(Drawn(workers + 1, ports, routes, latencies), messages_of(workers + 1, ends, sizes, [*programs, []]))
    np.testing.assert_array_equal(one.arrived, other.arrived)
    assert other.ended[-1] == 0


@few
@given(seed=st.integers(0, 2**31), n=st.integers(2, 7))
def test_a_resource_that_all_share_is_never_idle_before_all_is_through(seed, n):  # work conservation
    draw = np.random.default_rng(seed)
    rows = [(0, 1 + i, draw.integers(1, 100)) for i in range(n)]
    fabric = fabric_of(Network((Connection(up=7.0), *[Connection(down=d) for d in draw.uniform(7, 20, n)])))
    timing = play(fabric, in_rounds(n + 1, [rows]), together=True)
    assert timing.seconds == pytest.approx(sum(row[2] for row in rows) / 7.0)
    assert timing.seconds == pytest.approx(bound(fabric, in_rounds(n + 1, [rows])))


def ring(workers, nbytes):
    return [[(w, (w + 1) % workers, nbytes) for w in range(workers)]] * (2 * workers - 2)


def test_a_ring_takes_its_steps_and_a_slow_worker_holds_all_of_them():
    fabric = fabric_of(parse("100mbit,20ms", 8))
    assert play(fabric, in_rounds(8, ring(8, 1e6))).seconds == pytest.approx(14 * (1e6 / 12.5e6 + 0.02))
    slow = fabric_of(parse("100mbit,20ms", 8, ["3:10mbit,20ms"]))
    found = play(slow, in_rounds(8, ring(8, 1e6))).seconds
    assert 14 * (1e6 / 1.25e6) <= found <= 14 * (1e6 / 1.25e6 + 0.02) + 0.08  # the slow one sends without a pause


def test_incast_adds_its_seconds_for_each_byte_beyond_the_degree():
    workers, nbytes = 8, 1e6
    rows = [(w, 0, nbytes) for w in range(1, workers)]
    plain = fabric_of(parse("100mbit", workers))
    assert play(plain, in_rounds(workers, [rows]), together=True).seconds == pytest.approx(7 * nbytes / 12.5e6)
    epsilon = 3e-9
    crowded = fabric_of(parse("100mbit", workers), incast=Incast(5, epsilon))
    # w = N = 8 flows' degree, B = 7 MB: B beta + (w - w_t) B epsilon.
    found = play(crowded, in_rounds(workers, [rows]), together=True).seconds
    assert found == pytest.approx(7 * nbytes * (1 / 12.5e6 + 3 * epsilon))
    few_flows = in_rounds(workers, [rows[:4]])
    assert play(crowded, few_flows, together=True).seconds == play(plain, few_flows, together=True).seconds


def test_a_group_shares_its_way_out_and_a_pair_within_it_does_not():
    cluster = read_cluster("homes6")
    names = [machine.name for machine in cluster.machines]
    open_, shut = fabric_of(cluster), fabric_of(cluster, trunks={names[0]: (1e5, 1e5)})
    rows = [(0, 1, 1e6), (0, 2, 1e6), (3, 4, 1e6)]
    a, b = (play(f, in_rounds(6, [rows]), together=True) for f in (open_, shut))
    assert b.left[0] == pytest.approx(2e6 / 1e5)
    assert b.left[2] == pytest.approx(a.left[2])
    with pytest.raises(ConfigError, match="trunk is of 'nowhere', which is no group and no machine of homes6"):
        fabric_of(cluster, trunks={"nowhere": (1e5, 1e5)})


def test_a_trees_edge_is_shared_by_all_below_it():
    #      0
    #    1   2      two racks of three; the racks' edges carry no more than a server's
    parents = [-1, 0, 0, 1, 1, 1, 2, 2, 2]
    fabric = tree(parents, [1e6] * 9, [1e6] * 9, latency=0.001)
    assert fabric.workers == 6
    across = in_rounds(6, [[(0, 3, 1e6), (1, 4, 1e6), (2, 5, 1e6)]])
    assert play(fabric, across).seconds == pytest.approx(3.0 + 4 * 0.001)
    within = in_rounds(6, [[(0, 1, 1e6), (3, 4, 1e6)]])
    assert play(fabric, within).seconds == pytest.approx(1.0 + 2 * 0.001)
    with pytest.raises(ConfigError, match="got 2 roots"):
        tree([-1, -1, 0], [1e6] * 3, [1e6] * 3)
    with pytest.raises(ConfigError, match="node 1 does not hang on the tree's root"):
        tree([-1, 2, 1], [1e6] * 3, [1e6] * 3)


def test_a_next_round_begins_where_its_own_inputs_have_come():
    fabric = fabric_of(parse("8mbit", 4, ["2:0.8mbit"]))
    timing = play(fabric, in_rounds(4, [[(0, 1, 1e6), (2, 3, 1e6)], [(1, 0, 1e6), (3, 2, 1e6)]]))
    np.testing.assert_allclose(timing.begin, [0.0, 0.0, 1.0, 10.0])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(0, 4, 1.0)], "a message from or to worker 4 of 4; count from 0"),
        ([(0, 1, 1.0), (2, -1, 1.0)], "a message from or to worker -1 of 4; count from 0"),
        ([(1, 1, 1.0)], "worker 1 sends to itself"),
        ([(0, 1, -1.0)], "bytes must be a number from 0 on"),
        ([(0, 1, float("nan"))], "bytes must be a number from 0 on"),
        ([(0, 1)], "got 2 a row"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_a_sentence(rows, told):
    with pytest.raises(ConfigError, match=told):
        in_rounds(4, [rows])


def test_what_cannot_be_played_is_refused_in_a_sentence():
    sent = in_rounds(4, [[(0, 3, 1.0)]])
    with pytest.raises(ConfigError, match="4 workers send, and the network joins 3"):
        play(fabric_of(parse("8mbit", 3)), sent)
    with pytest.raises(ConfigError, match="worker 1 waits for a message that is never sent"):
        play(fabric_of(parse("8mbit", 2)), messages_of(2, [(0, 1)], [1.0], [[], [("wait", 0)]]))
    with pytest.raises(ConfigError, match="there is one each"):
        play(fabric_of(parse("8mbit", 4)), in_rounds(4, [[(0, 3, 1.0, 0)]]))
