"""Tokens: what a neighbour says of them is checked, and a token is on its way before anyone hears that it has left."""

import pytest
import torch

from laconic.compress import identity
from laconic.errors import PacketError
from laconic.exchange.tokens import Holding, Token, pass_on
from laconic.links import memory
from laconic.packet import Packet


def holding(rank, degrees, here=None):
    return Holding(here or {}, {}, {}, {0: 0, 1: 0}, degrees)


@pytest.mark.parametrize(
    "header",
    [
        {"degree": 1, "passed": [[0]]},
        {"degree": 1, "passed": [True]},
        {"degree": 1, "passed": None},
        {"degree": 1, "passed": [0.5]},
        {"degree": 0, "passed": []},
        {"degree": 2, "passed": []},
        {"passed": []},
    ],
)
def test_a_neighbours_damaged_words_are_refused_and_name_it(header):
    def work(link):
        if link.rank == 1:
            link.send([Packet({}, header)], 0)
            return link.recv(0)
        with pytest.raises(PacketError, match="worker 1 sent"):
            pass_on(holding(0, {1: 1}), {}, [torch.zeros(3)], identity(), link)
        return True

    assert memory.run(2, work)[0]


@pytest.mark.parametrize(
    ("lead", "visits"),
    [
        ({"token": 2, "hops": 1, "epoch": 0}, [0.5, 0.5]),
        ({"token": 0, "hops": -1, "epoch": 0}, [0.5, 0.5]),
        ({"token": 0, "hops": 1, "epoch": "0"}, [0.5, 0.5]),
        ({"token": 0, "hops": 1, "epoch": 0}, [1.0, 0.0]),
        ({"token": 0, "hops": 1, "epoch": 0}, [1.0]),
    ],
)
def test_a_damaged_token_is_refused(lead, visits):
    def work(link):
        if link.rank == 1:
            body = Packet({"visits": torch.tensor(visits)}, lead)
            weights, _ = identity().compress(torch.zeros(3), ())
            link.send([Packet({}, {"degree": 1, "passed": []}), body, weights], 0)
            return link.recv(0)
        with pytest.raises(PacketError):
            pass_on(holding(0, {1: 1}), {}, [torch.zeros(3)], identity(), link)
        return True

    assert memory.run(2, work)[0]


def test_a_token_leaves_before_its_source_hears_that_it_has_left():
    order = []

    def work(link):
        if link.rank == 1:  # it came from worker 0, and goes to worker 2
            token = Token(0, 1, 0, 0, torch.full((3,), 1 / 3), [torch.ones(3)])
            own = link.send
            link.send = lambda message, to: (order.append((to, len(message))), own(message, to))
            pass_on(holding(1, {0: 2, 2: 2}), {2: token}, [torch.zeros(3)], identity(), link)
        else:
            pass_on(holding(link.rank, {1: 2}), {}, [torch.zeros(3)], identity(), link)

    memory.run(3, work)
    assert order == [(2, 3), (0, 1)]
