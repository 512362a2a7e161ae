"""The simulated link: the suite, its clock against sums by hand, and one order whatever runs first."""

import gc
import itertools
import math
import random
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError, PeerLost, PeerTimeout
from laconic.links import simulated
from laconic.links.clockwork import Clockwork
from laconic.links.lines import Lines
from laconic.links.network import Connection, Network, parse
from laconic.links.simulated import ENVELOPE
from laconic.packet import Packet, message_nbytes
from tests import tiny
from tests.links import suite

MEGABYTE = [Packet({"x": torch.zeros(1_000_000 // 4)})]
NBYTES = message_nbytes(MEGABYTE) + ENVELOPE
RATE = 12.5e6  # bytes a second of 100mbit


def uniform(workers, text="100mbit,10ms", *apart):
    return parse(text, workers, apart)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_simulated_workers_pass_the_suite(size):
    ends = simulated.run(uniform(size), lambda link: (suite.everything(link, ENVELOPE), link.now()))
    assert len({digest for digest, _ in ends}) == 1
    assert all(seconds > 0 for _, seconds in ends) or size == 1


def test_a_message_takes_its_bytes_over_the_rate_and_then_the_latency():
    def work(link):
        if link.rank == 0:
            link.send(MEGABYTE, 1)
            return link.now(), link.meter.seconds_waiting
        link.recv(0)
        return link.now(), link.meter.seconds_waiting

    (left, sending), (came, waiting) = simulated.run(uniform(2), work)
    assert left == sending == pytest.approx(NBYTES / RATE)
    assert came == waiting == pytest.approx(NBYTES / RATE + 0.01)


def test_messages_to_several_peers_queue_at_the_senders_uplink_and_from_several_at_the_receivers_downlink():
    def scatter(link):
        if link.rank == 0:
            for to in (1, 2, 3):
                link.send(MEGABYTE, to)
        else:
            link.recv(0)
        return link.now()

    def collect(link):
        if link.rank == 0:
            for source in (3, 1, 2):
                link.recv(source)
        else:
            link.send(MEGABYTE, 0)
        return link.now()

    each = NBYTES / RATE
    assert simulated.run(uniform(4), scatter) == pytest.approx(
        [3 * each, each + 0.01, 2 * each + 0.01, 3 * each + 0.01]
    )
    assert simulated.run(uniform(4), collect)[0] == pytest.approx(3 * each + 0.01)


def test_a_late_message_does_not_hold_up_those_that_are_there():
    def collect(link):
        if link.rank == 0:
            link.recv(1)
            link.recv(2)
            return link.now()
        link.compute(5.0 if link.rank == 1 else 0.0)
        link.send(MEGABYTE, 0)
        return None

    assert simulated.run(uniform(3), collect)[0] == pytest.approx(5.0 + NBYTES / RATE + 0.01)


def test_a_pair_with_a_rate_of_its_own_goes_at_it_one_way_only():
    def work(link):
        link.send(MEGABYTE, 1 - link.rank)
        link.recv(1 - link.rank)
        return link.now()

    there, back = simulated.run(uniform(2, "100mbit,10ms", "0-1:10mbit,50ms"), work)
    assert back == pytest.approx(NBYTES / RATE * 10 + 0.05)
    assert there == pytest.approx(NBYTES / RATE * 10)  # it had to send, too


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(2, 6))
def test_no_line_ever_carries_more_than_its_rate(seed, size):
    draw = random.Random(seed)
    network = Network(
        tuple(Connection(draw.uniform(1, 9), draw.uniform(1, 9), draw.uniform(0, 2)) for _ in range(size)),
        tuple((0, i, Connection(draw.uniform(1, 9), 1.0, 0.5)) for i in range(1, size)),
    )
    lines, sent, taken = Lines(network), {}, {}
    for _ in range(40):
        a, b = draw.sample(range(size), 2)
        nbytes, asked = draw.uniform(0.1, 20), draw.uniform(0, 30)
        left, first, last = lines.depart(a, b, nbytes, asked)
        latency = network.link(a, b).latency
        assert first >= asked + latency - 1e-9
        assert last == pytest.approx(left + latency)
        assert left - asked >= nbytes / min(network.connections[a].up, network.link(a, b).up) - 1e-9
        sent.setdefault(a, []).append(nbytes)
        moment = lines.arrive(b, nbytes, last)
        assert moment >= last - 1e-9
        taken.setdefault(b, []).append((moment - nbytes / network.connections[b].down, moment))
    for spans in taken.values():
        for (_, before), (after, _) in itertools.pairwise(sorted(spans)):
            assert after >= before - 1e-9


def test_computing_takes_virtual_time_only_and_the_lane_works_beside_it():
    def work(link):
        handle = link.start(link.all_reduce, torch.ones(250_000))
        assert not handle.done()
        link.compute(0.05)
        assert not handle.done()
        link.compute(50.0)
        assert handle.done()
        assert float(handle.result()[0]) == 2.0
        return link.now(), link.meter.seconds_waiting

    begun = time.perf_counter()
    assert simulated.run(uniform(2), work) == [(50.05, 0.0)] * 2
    assert time.perf_counter() - begun < 10


def test_what_is_not_hidden_is_waited_for():
    def work(link):
        handle = link.start(link.all_reduce, torch.ones(250_000))
        link.compute(0.05)
        handle.result()
        return link.now(), link.meter.seconds_waiting

    alone = simulated.run(uniform(2), lambda link: (link.all_reduce(torch.ones(250_000)), link.now())[1])
    for (now, waited), expected in zip(simulated.run(uniform(2), work), alone, strict=True):
        assert now == pytest.approx(expected)
        assert waited == pytest.approx(expected - 0.05)


def gossip(link):
    """Unequal computing, a lane, timeouts, and whoever comes first: all that could depend on an order."""
    draw, seen = random.Random(link.rank), []

    def tell(step, of, to):
        link.send([Packet({"y": torch.ones(500 * (link.rank + 1))}, {"step": step, "of": of})], to, 1)

    for step in range(8):
        link.compute(draw.uniform(0, 0.3))
        first, second = draw.sample(link.peers(), 2)
        handle = link.start(tell, step, "lane", first)
        link.compute(draw.uniform(0, 0.1))
        tell(step, "main", second)
        if draw.random() < 0.5:
            handle.result()
        try:
            source, message = link.recv_any(timeout=draw.uniform(0, 0.2))
            seen.append((source, message[0].header, link.now()))
        except PeerTimeout:
            seen.append(("silence", {}, link.now(), handle.done()))
        except PeerLost as error:
            seen.append(("gone", error.peer, link.now()))
    return seen, link.now(), link.meter.reading()


def jostled(monkeypatch, seed):
    """The gossip, each thread delayed now and then."""
    draw, enter = random.Random(seed), Clockwork._enter

    def slowly(self, fibre):
        enter(self, fibre)
        if draw.random() < 0.2:
            time.sleep(0.0005)

    with monkeypatch.context() as patch:
        patch.setattr(Clockwork, "_enter", slowly)
        return simulated.run(uniform(5, "10mbit,5ms", "3:1mbit"), gossip)


def test_a_simulation_is_the_same_to_the_bit_whatever_runs_first(monkeypatch):
    once = simulated.run(uniform(5, "10mbit,5ms", "3:1mbit"), gossip)
    assert any(entry[0] == "silence" for seen, *_ in once for entry in seen)
    assert any(entry[0] != "silence" for seen, *_ in once for entry in seen)
    for seed in range(4):
        assert jostled(monkeypatch, seed) == once


def test_training_gives_the_bits_that_memory_links_give():
    for method, settings_ in (
        ("ddp", {}),
        ("topk", {"density": 0.1}),
        ("streaming-diloco", {"every": 4, "overlap": 1}),
    ):
        here = tiny.together(3, method, 9, **settings_)
        there = simulated.run(uniform(3), lambda link, m=method, s=settings_: tiny.train(link, m, 9, **s))
        assert all(tiny.equal(a, b) for a, b in zip(here, there, strict=True)), method


def test_with_a_seed_each_worker_draws_what_it_would_draw_as_a_process():
    def draws(link):
        seen = []
        for _ in range(3):
            seen.append(torch.rand(2))
            link.barrier()
        return torch.cat(seen)

    together = simulated.run(uniform(3), draws, seed=5)
    assert not torch.equal(together[0], together[1])
    again = simulated.run(uniform(3), lambda link: torch.rand(6), seed=5)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))


def test_whoever_comes_first_is_heard_first_and_never_an_earlier_one_later():
    def work(link):
        if link.rank == 0:
            heard = [link.recv_any() for _ in range(3)]
            now = link.now()
            link.barrier()
            return [(source, message[0].header["n"]) for source, message in heard], now
        link.compute([0, 3.0, 1.0, 2.0][link.rank])
        link.send([Packet({}, {"n": link.rank})], 0, 1)
        return link.barrier()

    heard, now = simulated.run(uniform(4), work)[0]
    assert heard == [(2, 2), (3, 3), (1, 1)]
    assert 3.0 < now < 3.1


def test_recv_any_gives_up_after_its_virtual_timeout_and_hears_the_rest_later():
    def work(link):
        if link.rank == 0:
            with pytest.raises(PeerTimeout, match=r"worker 0: nothing from any of 2 workers for 2 s$"):
                link.recv_any([1, 2], timeout=2.0)
            then = link.now()
            heard = [link.recv_any([1, 2])[0] for _ in range(2)]
            link.barrier()
            return then, heard
        link.compute(3.0 + link.rank)
        link.send([Packet({})], 0, 1)
        return link.barrier()

    assert simulated.run(uniform(3), work)[0] == (2.0, [1, 2])


def test_recv_any_says_once_who_is_gone_after_its_last_message_and_always_when_all_are():
    def work(link):
        if link.rank == 0:
            heard = []
            for _ in range(5):
                try:
                    source, _ = link.recv_any([1, 2], channel=3)
                    heard.append((source, "speaks"))
                except PeerLost as error:
                    heard.append((error.peer, "is gone"))
            return heard, link.now()
        link.compute(float(link.rank))
        link.send([Packet({})], 0, 3)
        return None

    heard, now = simulated.run(uniform(3), work)[0]
    assert heard[:4] == [(1, "speaks"), (1, "is gone"), (2, "speaks"), (2, "is gone")]
    assert heard[4][1] == "is gone"
    assert 2.01 < now < 2.02


def test_a_worker_hears_itself_on_a_channel_at_no_cost_and_its_lanes_do_not_wait_for_one_another():
    def work(link):
        talk = link.lane("talk").start(link.recv_any, None, 60.0, 7)
        link.lane("more").start(link.send, MEGABYTE, 1 - link.rank, 9)
        link.compute(1.0)
        assert not talk.done()
        link.send([Packet({}, {"to": "myself"})], link.rank, 7)
        source, message = talk.result()
        assert (source, message[0].header) == (link.rank, {"to": "myself"})
        assert link.now() == 1.0
        assert link.recv_any(channel=9)[0] == 1 - link.rank
        link.barrier()
        return link.meter.messages_out

    assert simulated.run(uniform(2), work) == [2, 2]


def test_whoever_waits_on_a_lane_is_let_go_when_the_link_closes():
    def work(link):
        talk = link.lane("talk").start(link.recv_any, None, 1e6, 7)
        link.compute(1.0)
        assert not talk.done()
        link.close()
        with pytest.raises(ConfigError, match="the link is closed"):
            talk.result()
        return link.now()

    assert simulated.run(uniform(2), work) == [1.0, 1.0]


def test_a_timeout_is_virtual_and_what_comes_later_is_still_there():
    def work(link):
        if link.rank == 0:
            with pytest.raises(PeerTimeout, match=r"worker 0: nothing from worker 1 for 3 s$"):
                link.recv(1, timeout=3.0)
            assert link.now() == 3.0
            return link.recv(1)[0].header, link.now()
        link.compute(7.0)
        link.send([Packet({}, {"late": True})], 0)
        return None

    begun = time.perf_counter()
    header, now = simulated.run(uniform(2), work)[0]
    assert header == {"late": True}
    assert 7.0 < now < 7.1
    assert time.perf_counter() - begun < 5


def test_bytes_that_still_come_are_not_silence():
    def work(link):
        if link.rank == 0:
            return link.recv(1, timeout=1.0)[0].tensors["x"].numel(), link.now()
        link.send(MEGABYTE, 0)
        return None

    numel, now = simulated.run(uniform(2, "1mbit"), work)[0]
    assert numel == 250_000
    assert now == pytest.approx(NBYTES / 125_000)


def test_a_deadlock_is_told_at_once_and_names_who_waits_for_whom():
    begun = time.perf_counter()
    with pytest.raises(PeerTimeout) as caught:
        simulated.run(uniform(3), lambda link: link.recv((link.rank + 1) % 3))
    assert str(caught.value) == (
        "worker 0: nothing from worker 1 for 120 s; nobody can go on: worker 0 waits for worker 1, "
        "worker 1 waits for worker 2, worker 2 waits for worker 0"
    )
    assert time.perf_counter() - begun < 5


def test_a_wait_without_an_end_for_what_nobody_sends_ends_too():
    with pytest.raises(PeerTimeout, match="nobody can go on"):
        simulated.run(uniform(2), lambda link: link.recv(1 - link.rank), timeout=math.inf)


def test_a_worker_that_fails_is_gone_for_its_peers_and_its_error_is_raised():
    lost = []

    def work(link):
        if link.rank == 1:
            link.compute(2.0)
            raise OSError("the disk is full")
        try:
            link.all_reduce(torch.ones(5_000))
        except PeerLost as error:
            lost.append((link.rank, error.peer, link.now()))
            raise

    with pytest.raises(OSError, match="the disk is full"):
        simulated.run(uniform(3), work)
    assert (0, 1, 2.01) in lost or (2, 1, 2.01) in lost


def test_what_is_queued_on_the_lane_leaves_before_the_goodbye():
    def work(link):
        if link.rank == 0:
            link.start(link.send, MEGABYTE, 1)
            return None
        return link.recv(0)[0].tensors["x"].numel()

    assert simulated.run(uniform(2), work)[1] == 250_000


def test_an_error_on_the_lane_is_raised_to_whoever_asks_and_nothing_behind_it_runs():
    def work(link):
        ran = []

        def fail():
            raise OSError("the wire is cut")

        handles = [link.start(fail), link.start(ran.append, 1)]
        for handle in handles:
            with pytest.raises(OSError, match="the wire is cut"):
                handle.result()
        assert ran == []
        with pytest.raises(ConfigError, match="cannot wait for what is queued behind it"):
            simulated.run(uniform(1), lambda one: one.start(lambda: one.start(int).result()).result())
        link.close()
        with pytest.raises(ConfigError, match="it is closed"):
            link.start(int)

    simulated.run(uniform(1), work)


def test_what_was_sent_is_what_comes_even_if_the_sender_writes_to_it_afterwards():
    def work(link):
        mine = torch.full((10,), float(link.rank))
        link.send([Packet({"x": mine}, {"t": (1, 2)})], 1 - link.rank)
        mine.fill_(9.0)
        (heard,) = link.recv(1 - link.rank)
        assert heard.header == {"t": [1, 2]}, "as JSON would carry it"
        heard.tensors["x"].fill_(7.0)
        return float(mine[0])

    assert simulated.run(uniform(2), work) == [9.0, 9.0]


def test_meta_tensors_cost_what_real_ones_do():
    def work(device):
        def inner(link):
            link.all_gather([Packet({"x": torch.empty(1000, device=device)})])
            return link.now(), link.meter.reading()

        return inner

    assert simulated.run(uniform(3), work("meta")) == simulated.run(uniform(3), work("cpu"))


def test_no_thread_is_left_when_a_simulation_has_ended():
    before = threading.active_count()
    simulated.run(uniform(4), gossip)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_step_waits_until_what_others_did_before_it_is_done():
    order = []

    def work(link):
        for step in range(3):
            link.compute(0.1 * (link.rank + 1))
            link.after_all()
            order.append((round(link.now(), 6), link.rank, step))

    simulated.run(uniform(4), work)
    assert [entry[:2] for entry in order] == sorted(entry[:2] for entry in order)


def test_the_collector_waits_for_more_while_simulations_run_and_is_then_as_it_was():
    before = gc.get_threshold()
    inner_ended = threading.Event()

    def outer(link):
        if link.rank == 0:  # a second simulation beside this one, which ends first
            seen = simulated.run(uniform(64), lambda inner: gc.get_threshold()[0] if inner.rank == 0 else None)
            assert seen[0] == before[0] * 64 // simulated.FEW
            inner_ended.set()
        return gc.get_threshold()[0]

    try:
        assert min(simulated.run(uniform(16), outer)) >= before[0] * 16 // simulated.FEW
        assert inner_ended.is_set()
        assert gc.get_threshold() == before
        gc.disable()
        gc.set_threshold(0)
        assert set(simulated.run(uniform(16), lambda link: gc.get_threshold()[0])) == {0}
    finally:
        gc.enable()
        gc.set_threshold(*before)
