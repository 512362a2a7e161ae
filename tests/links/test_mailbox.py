"""Messages from anyone, as they come: on channels of their own, past those who are gone."""

import threading
import time

import pytest
import torch

from laconic.errors import ConfigError, PeerLost, PeerTimeout
from laconic.links import memory
from laconic.links.mailbox import Mailbox
from laconic.packet import Packet, message_nbytes
from tests.links import workers
from tests.links.test_conformance import KINDS, joined

STARTS = [memory.run, joined]
starts = pytest.mark.parametrize("start", STARTS, ids=["memory", "tcp"])


def said(link, words, to, channel=1):
    link.send([Packet({"x": torch.full((50,), float(link.rank))}, {"says": words})], to, channel)


@starts
def test_the_next_message_comes_from_whoever_spoke_first_and_names_the_speaker(start):
    turns, over = [threading.Event() for _ in range(3)], threading.Barrier(3)

    def work(link):
        if link.rank == 0:
            heard = []
            for turn in (turns[2], turns[1]):
                turn.set()
                source, message = link.recv_any()
                assert torch.equal(message[0].tensors["x"], torch.full((50,), float(source)))
                heard.append((source, message[0].header["says"]))
            over.wait(10)
            return heard
        assert turns[link.rank].wait(10)
        said(link, f"I am {link.rank}", 0)
        over.wait(10)
        return None

    assert start(3, work)[0] == [(2, "I am 2"), (1, "I am 1")]


@starts
def test_messages_of_two_channels_and_of_an_exchange_are_never_taken_for_one_another(start):
    def work(link):
        other = 1 - link.rank
        for number in range(3):
            said(link, f"b{number}", other, channel=2)
            link.send([Packet({}, {"says": f"plain{number}"})], other)
            said(link, f"a{number}", other, channel=1)
        plain = [link.recv(other)[0].header["says"] for _ in range(3)]
        link.all_reduce(torch.ones(3))
        return [plain, *([link.recv_any(channel=c)[1][0].header["says"] for _ in range(3)] for c in (1, 2))]

    wanted = [[f"{kind}{n}" for n in range(3)] for kind in ("plain", "a", "b")]
    assert start(2, work) == [wanted, wanted]


@starts
def test_who_is_not_among_the_sources_is_heard_later(start):
    ready, over = threading.Barrier(3), threading.Barrier(3)

    def work(link):
        if link.rank:
            said(link, link.rank, 0)
            ready.wait(10)
            over.wait(10)
            return None
        ready.wait(10)
        two = link.recv_any([2], timeout=10)[0]
        with pytest.raises(PeerTimeout, match=r"nothing from worker 2 for 0\.01 s"):
            link.recv_any([2], timeout=0.01)
        heard = [two, link.recv_any(timeout=10)[0]]
        over.wait(10)
        return heard

    assert start(3, work)[0] == [2, 1]


@starts
def test_a_lost_peer_is_reported_once_after_its_last_words_and_the_living_are_heard_on(start):
    gone, heard = threading.Event(), threading.Event()

    def work(link):
        if link.rank == 1:
            said(link, "last", 0)
            return None
        if link.rank == 2:
            assert gone.wait(10)
            said(link, "alive", 0)
            assert heard.wait(10)
            return None
        first = link.recv_any(timeout=10)[1][0].header["says"]
        with pytest.raises(PeerLost, match="worker 1 is gone") as caught:
            link.recv_any(timeout=10)
        assert caught.value.peer == 1
        gone.set()
        source, message = link.recv_any(timeout=10)
        said(link, "to myself", 0)
        both = first, source, message[0].header["says"], link.recv_any(timeout=10)[0]
        for _ in range(2):  # of those who are all gone there is nothing to wait for
            with pytest.raises(PeerLost, match="worker 1 is gone"):
                link.recv_any([1], timeout=10)
        with pytest.raises(PeerLost, match="worker 1 is gone"):  # nobody has told this channel
            link.recv_any(timeout=10, channel=7)
        heard.set()
        return both

    assert start(3, work)[0] == ("last", 2, "alive", 0)


@starts
def test_what_i_send_to_myself_crosses_nothing(start):
    def work(link):
        before = link.meter.reading()
        message = [Packet({"x": torch.zeros(9)})]
        link.send(message, link.rank, 3)
        assert link.recv_any(channel=3)[1] is message
        with pytest.raises(ConfigError, match="channels 1 to 255"):
            link.send(message, link.rank)
        after = link.meter.reading()
        return [after[key] - before[key] for key in ("bytes_out", "bytes_in", "messages_out", "messages_in")]

    assert start(2, work) == [[0, 0, 0, 0]] * 2


@starts
def test_what_comes_on_a_channel_is_counted_as_any_message(start):
    envelope = 0 if start is memory.run else 16

    def work(link):
        message = [Packet({"x": torch.zeros(1000)}, {"k": 1})]
        before = link.meter.reading()
        link.send(message, 1 - link.rank, 1)
        link.recv_any()
        after = link.meter.reading()
        for way in ("out", "in"):
            assert after[f"bytes_{way}"] - before[f"bytes_{way}"] == message_nbytes(message) + envelope
            assert after[f"messages_{way}"] - before[f"messages_{way}"] == 1
        return True

    assert start(2, work) == [True, True]


@starts
def test_closing_lets_go_who_waits_on_another_lane_which_is_then_over(start):
    def work(link):
        def serve():
            with pytest.raises(ConfigError, match="the link is closed"):
                link.recv_any([link.rank], timeout=1000)  # of the others one may hear that they close sooner
            return "let go"

        handle = link.lane("service").start(serve)
        assert link.start(lambda: 5).result() == 5  # the lane of exchanges goes on beside it
        link.barrier()
        link.close()
        return handle.result()

    assert start(2, work) == ["let go"] * 2


def test_what_is_due_later_lets_what_is_due_now_pass():
    box = Mailbox(0)
    box.put(1, 1, "late", time.monotonic_ns() + 20_000_000)
    box.put(1, 2, "now")
    assert [box.take(1, [1, 2], 10.0) for _ in range(2)] == [(2, "now"), (1, "late")]


def from_anyone(kind):
    with workers.connect(kind) as link:
        if link.rank == 2:
            link.send([Packet({}, {"last": True})], 0, 1)
            workers.vanish("killed")
        if link.rank == 1:
            link.send([Packet({"x": torch.zeros(50_000)})], 0, 1)
            assert link.recv_any([0])[1][0].header == {"thanks": True}
            return True
        told = []
        for _ in range(3):
            try:
                told.append(link.recv_any(timeout=10)[0])
            except PeerLost as lost:
                told.append(-lost.peer)
        link.send([Packet({}, {"thanks": True})], 1, 1)
        return sorted(told)


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
def test_processes_hear_anyone_and_go_on_when_one_is_killed(kind):
    zero, one, two = workers.run(3, from_anyone, kind)
    assert (zero, one, two) == (("ok", [-2, 1, 2]), ("ok", True), ("died",))
