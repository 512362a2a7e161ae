"""Every link does what a link does, and says who is gone."""

import socket
import threading
import time
from datetime import timedelta

import pytest
import torch

from laconic.errors import ConfigError, PacketError, PeerLost, PeerTimeout
from laconic.links import memory, tcp
from laconic.links.base import Link
from laconic.links.process_group import ProcessGroupLink, _known
from laconic.links.tcp import ENVELOPE, HELLO, HELLO_MAGIC, TcpLink
from laconic.packet import Packet
from tests.links import suite, workers

KINDS = ["tcp", "paced", "process_group"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_threads_on_a_memory_link_pass_the_suite(size):
    assert len(set(memory.run(size, lambda link: suite.everything(link, 0)))) == 1


def whole_suite(kind):
    with workers.connect(kind) as link:
        return suite.everything(link, ENVELOPE.size)


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3])
def test_processes_pass_the_suite(kind, size):
    assert len(set(workers.fine(workers.run(size, whole_suite, kind)))) == 1


def vanishing(kind, how, what, timeout):
    link = workers.connect(kind, timeout)
    link.all_reduce(torch.zeros(10_000))
    link.barrier()
    if link.rank == 2:
        if what == "reduce":  # in the middle: the others have sent me their first parts
            time.sleep(0.05)
        workers.vanish(how)
    if what == "gather":
        link.all_gather([Packet({"x": torch.zeros(100_000)})])
    elif what == "recv":
        link.recv(2)
    else:
        link.all_reduce(torch.zeros(300_000))


@pytest.mark.processes
@pytest.mark.parametrize(("what", "kind"), [("reduce", k) for k in KINDS] + [("gather", "tcp"), ("recv", "tcp")])
def test_a_worker_killed_in_a_collective_is_named_by_all_others_within_seconds(kind, what):
    *others, gone = workers.run(3, vanishing, kind, "killed", what, 20.0)
    assert gone == ("died",)
    for status, *rest in others:
        assert status == "peer", (status, rest)
        kind_of_error, peer, message, seconds = rest
        assert (kind_of_error, peer) == ("PeerLost", 2), message
        assert "worker 2 is gone" in message
        assert seconds < 10


@pytest.mark.processes
@pytest.mark.parametrize(("what", "kind"), [("reduce", "process_group"), ("reduce", "tcp"), ("recv", "paced")])
def test_a_worker_that_stands_still_is_named_by_all_others_after_the_timeout(kind, what):
    *others, silent = workers.run(3, vanishing, kind, "stopped", what, 1.5, silent=(2,))
    assert silent == ("silent",)
    for status, *rest in others:
        assert status == "peer", (status, rest)
        kind_of_error, peer, message, seconds = rest
        assert kind_of_error in ("PeerLost", "PeerTimeout")
        assert peer == 2, message
        assert 1.0 < seconds < 10


def elsewhere(timeout):
    """Worker 2 is alive, and answers, but busy with something else than the sum that the others wait in."""
    link = workers.connect("process_group", timeout)
    link.all_reduce(torch.ones(4))
    if link.rank == 2:
        workers.time.sleep(3 * timeout)
        return None
    return link.all_reduce(torch.ones(100_000))


@pytest.mark.processes
def test_a_worker_that_answers_but_does_not_come_to_a_native_collective_is_named_after_the_timeout():
    *others, _ = workers.run(3, elsewhere, 1.5, silent=(2,))
    for status, *rest in others:
        assert status == "peer", (status, rest)
        kind_of_error, peer, message, _ = rest
        assert (kind_of_error, peer) == ("PeerTimeout", 2), message
        assert "has not come to the all-reduce" in message


def one_after_the_other(kind, closing):
    links, sums = [], []
    for _ in range(3):
        links.append(workers.connect(kind))
        sums.append(float(links[-1].all_reduce(torch.ones(5_000))[0]))
        links[-1].barrier()
        if closing:
            links.pop().close()
    return [*sums, *(float(link.all_reduce(torch.ones(5_000))[0]) for link in links)]


@pytest.mark.processes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("closing", [True, False], ids=["closed", "kept"])
def test_a_process_may_make_several_links_at_once_or_one_after_the_other(kind, closing):
    answers = workers.fine(workers.run(2, one_after_the_other, kind, closing))
    assert answers == [[2.0] * (3 if closing else 6)] * 2


class Board(dict):
    """A key-value store as torch's, for threads of one process."""

    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def set(self, key, value):
        with self.changed:
            self[key] = value.encode() if isinstance(value, str) else value
            self.changed.notify_all()

    def get(self, key):
        with self.changed:
            assert self.changed.wait_for(lambda: key in self, timeout=10), key
            return self[key]


def joined(size, work, before=lambda board: None, timeout=10.0):
    """Threads, each with a real TcpLink to the others."""
    board, results, errors = Board(), [None] * size, {}

    def one(rank):
        try:
            with TcpLink(rank, size, board, timeout=timeout, host="127.0.0.1") as link:
                results[rank] = work(link)
        except BaseException as error:
            errors[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(size)]
    threads[0].start()
    before(board)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[min(errors)]
    return results


def test_bytes_that_leave_after_gloos_all_reduce_has_returned_are_counted_by_the_next(monkeypatch):
    link = object.__new__(ProcessGroupLink)
    Link.__init__(link, 0, 2)
    link.backend, link.exact, link._counted, link.group = "gloo", True, 50, None
    sent = iter([90, 250])  # 60 of the first 100 were still in the kernel
    monkeypatch.setattr(link, "_bytes_sent", lambda: next(sent))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)
    counts = []
    for _ in range(2):
        link.all_reduce(torch.zeros(25))
        counts.append(link.meter.bytes_out)
    assert counts == [40, 200]


@pytest.mark.parametrize(
    ("own", "wanted", "says"),
    [
        ("undefined", None, "needs gloo or nccl alone"),
        ("cpu:gloo,cuda:nccl", None, "needs gloo or nccl alone"),
        ("gloo", "nccl", "backend is gloo, not nccl"),
        ("nccl", "gloo", "backend is nccl, not gloo"),
    ],
)
def test_a_group_of_several_backends_or_of_another_is_refused(own, wanted, says):
    with pytest.raises(ConfigError, match=says):
        _known(own, wanted)
    assert _known("gloo") == _known("gloo", "gloo") == "gloo"


def test_strangers_on_the_port_are_not_let_in_and_keep_nobody_out():
    refused = []

    def strangers(board):
        host, port = board.get("laconic/address/0").decode().split()
        wrong = HELLO.pack(HELLO_MAGIC, 1, b"0" * 16)
        too_high = HELLO.pack(HELLO_MAGIC, 9, bytes.fromhex(board.get("laconic/secret").decode()))
        for hello in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + b" " * 20, wrong, too_high, b""):
            stranger = socket.create_connection((host, int(port)), timeout=5)
            try:
                stranger.sendall(hello)
                stranger.shutdown(socket.SHUT_WR)
                refused.append(stranger.recv(1) == b"")
            except OSError:  # the door was shut before all was said
                refused.append(True)
            stranger.close()

    def work(link):
        link.barrier()
        return link.rank

    assert joined(2, work, strangers) == [0, 1]
    assert refused == [True] * 4


def test_bytes_that_are_no_message_are_refused_by_the_receiver():
    def work(link):
        if link.rank == 0:
            connection = link._peers[1].connection
            connection.sendall(ENVELOPE.pack(40, 0) + b"x" * 40)
            link.recv(1)
            connection.sendall(ENVELOPE.pack(1 << 63, 0))
            link.recv(1)
        else:
            with pytest.raises(PacketError, match=r"worker 1: from worker 0: .* is the other end laconic"):
                link.recv(0)
            link.send([], 0)
            with pytest.raises(PeerLost, match="announced a message of"):
                link.recv(0)
            link.send([], 0)
        return True

    assert joined(2, work) == [True, True]


def test_a_message_that_no_memory_holds_loses_the_peer_and_not_the_thread_that_reads(monkeypatch):
    monkeypatch.setattr(tcp, "MAX_MESSAGE", 1 << 62)
    near, far = socket.socketpair()
    with near, far:
        peer = tcp.Peer(1, near)
        far.sendall(ENVELOPE.pack((1 << 48) - 8, 0))
        peer.read()
    assert "memory" in str(peer.lost)
    assert peer.inbox.get(timeout=1) is None


def test_two_workers_that_send_at_once_do_not_block_one_another():
    big = [Packet({"x": torch.zeros(4_000_000)})]  # 16 MB: more than any socket's buffer

    def work(link):
        link.send(big, 1 - link.rank)
        return link.recv(1 - link.rank)[0].tensors["x"].numel()

    assert joined(2, work) == [4_000_000] * 2


def test_a_worker_that_never_joins_is_named():
    board = Board()
    board.set("laconic/secret", "00" * 16)
    with pytest.raises(PeerTimeout, match=r"worker 1 did not join within 0\.2 s") as caught:
        TcpLink(0, 2, board, timeout=0.2, host="127.0.0.1")
    assert caught.value.peer == 1


@pytest.mark.parametrize("there", [{}, {"laconic/secret": "00" * 16}], ids=["nothing", "a secret and no address"])
def test_a_worker_whose_address_never_comes_is_named(there):
    store = torch.distributed.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    for key, value in there.items():
        store.set(key, value)
    with pytest.raises(PeerTimeout, match=r"worker 1: worker 0 did not join within 0\.2 s") as caught:
        TcpLink(1, 2, store, timeout=0.2, host="127.0.0.1")
    assert caught.value.peer == 0


def test_silence_is_a_timeout_that_names_the_peer_and_may_be_asked_again():
    for start in (memory.run, joined):
        asked = threading.Event()

        def work(link, asked=asked):
            if link.rank == 1:
                assert asked.wait(10)
                link.send([Packet({}, {"late": True})], 0)
                return True
            with pytest.raises(PeerTimeout, match=r"nothing from worker 1 for 0\.05 s") as caught:
                link.recv(1, timeout=0.05)
            assert caught.value.peer == 1
            asked.set()
            return link.recv(1)[0].header == {"late": True}

        assert start(2, work) == [True, True]


def test_a_peer_that_closed_is_lost_after_its_last_message_and_stays_lost():
    for start in (memory.run, joined):

        def work(link):
            if link.rank == 1:
                link.send([Packet({}, {"last": 1})], 0)
                return True
            assert link.recv(1)[0].header == {"last": 1}
            for _ in range(2):
                with pytest.raises(PeerLost, match="worker 1 is gone"):
                    link.recv(1)
            return True

        assert start(2, work) == [True, True]


def test_a_worker_that_fails_on_a_memory_link_fails_the_run_with_its_own_error():
    def work(link):
        if link.rank == 1:
            raise KeyError("mine")
        link.recv(1)

    with pytest.raises(KeyError, match="mine"):
        memory.run(2, work)


def test_a_rank_outside_the_workers_and_a_run_without_workers_are_refused():
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        Link(2, 2)
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        memory.run(0, lambda link: None)


def test_tensors_of_another_number_in_a_broadcast_are_refused():
    def work(link):
        if link.rank == 0:
            link.broadcast([torch.zeros(2)])
            return True
        with pytest.raises(PacketError, match="do all workers build the same model"):
            link.broadcast([torch.zeros(2), torch.zeros(3)])
        return True

    assert memory.run(2, work) == [True, True]


def test_an_all_reduce_of_tensors_that_differ_between_workers_is_refused():
    def work(link):
        with pytest.raises(PacketError, match="'x' is f32"):
            link.all_reduce(torch.zeros(3 + link.rank))
        return True

    assert memory.run(2, work) == [True, True]
