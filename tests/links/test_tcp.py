"""Links over TCP: where they listen, and who is known to be gone."""

import socket

import pytest
import torch

from laconic.errors import ConfigError
from laconic.links.tcp import Peer, TcpLink


@pytest.mark.parametrize("address", ["192.0.2.1", "::1", "a..b"])  # kept for documents, of another family, no name
def test_a_wrong_address_in_the_environment_is_told_in_a_sentence(address, monkeypatch):
    monkeypatch.setenv("LACONIC_ADDRESS", address)
    with pytest.raises(ConfigError, match=rf"worker 0: {address} is no address of this machine: .*; set LACONIC_ADDR"):
        TcpLink(0, 2, torch.distributed.HashStore())


def test_a_peer_whose_connection_breaks_is_gone_and_one_that_said_goodbye_is_not():
    link = TcpLink(0, 1, None)
    ends = [socket.socketpair() for _ in range(3)]
    link._peers = {rank: Peer(rank, ours) for rank, (ours, _) in enumerate(ends, start=1)}
    for (_, theirs), said in zip(ends, (b"", b"\xfd" + b"\xff" * 7 + b"\0" * 8), strict=False):
        theirs.sendall(said)
        theirs.close()
    for rank in (1, 2):
        link._peers[rank].read()  # to the connection's end
    assert [link.gone(rank) for rank in range(4)] == [False, True, False, False]
    for pair in ends:
        for end in pair:
            end.close()
