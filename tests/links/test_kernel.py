"""What the kernel says of a connection."""

import socket
import sys

import pytest

from laconic.links.kernel import Connection, connection, keep_little_unsent

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's account is Linux's")


@pytest.fixture
def ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
        with here, there:
            yield here, there


@linux
def test_the_kernel_counts_what_was_sent_and_how_it_is_cut(ends):
    here, there = ends
    before = connection(here)
    here.sendall(bytes(5000))
    got = 0
    while got < 5000:
        got += len(there.recv(5000))
    after = connection(here)
    assert after.sent - before.sent == 5000
    assert after.resent == 0
    assert after.segment > 1000
    assert after.headers in (54, 66)  # without and with timestamps


@linux
def test_a_sender_that_keeps_little_unsent_waits_for_its_receiver(ends):
    here, _ = ends
    keep_little_unsent(here, 1 << 14)
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 1 << 14


def test_frames_are_full_segments_with_their_headers():
    assert Connection(1448, 66, 0, 0).frames == pytest.approx(1514 / 1448)
    assert Connection(0, 0, 0, 0).frames == 1.0


def test_of_a_socket_that_is_not_tcp_nothing_is_known():
    here, there = socket.socketpair()
    with here, there:
        assert connection(here) == Connection(0, 0, 0, 0)
        keep_little_unsent(here, 1)
