"""Recorded rounds: what is recorded is what is sent, however it is recorded, and its time is the simulated link's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.exchange import everyone
from laconic.links import simulated
from laconic.links.network import parse
from laconic.methods import METHODS
from laconic.packet import Packet, message_nbytes
from laconic.plan.collective_messages import gathered, laid_out, reduced, scattered, spread
from laconic.plan.fabric import fabric_of
from laconic.plan.flows import play
from laconic.plan.recording import ENVELOPE, messages_of, recorded


def program(messages, worker):
    """What a worker does, in words that do not hang on how messages are numbered."""
    found = []
    for op in messages.ops[messages.first[worker] : messages.first[worker + 1]]:
        t = abs(op) - 1
        if op > 0:
            other = int(messages.target[t])
            found.append(("to", other, float(messages.nbytes[t])))
        elif op < 0:
            other = int(messages.source[t])
            found.append(("from", other, float(messages.nbytes[t])))
    return found


def same(a, b):
    assert a.workers == b.workers
    for worker in range(a.workers):
        assert program(a, worker) == program(b, worker)


@settings(max_examples=12, deadline=None)
@given(workers=st.integers(2, 9), numel=st.sampled_from([1, 7, 2048, 2049, 2055, 5000]), root=st.integers(0, 1))
def test_collectives_laid_out_are_what_the_link_sends_in_its_order(workers, numel, root):
    tensor = torch.empty(numel, device="meta")
    pieces = [[Packet({"x": torch.empty(numel + to, device="meta")})] for to in range(workers)]

    def work(link):
        link.all_reduce(tensor.clone())
        link.all_gather([Packet({"x": tensor})])
        link.all_to_all(pieces)
        link.broadcast([tensor, tensor], root)
        link.barrier()
        yield

    calls = [
        reduced(tensor, workers),
        gathered(ENVELOPE + message_nbytes([Packet({"x": tensor})]), workers),
        scattered([ENVELOPE + message_nbytes(piece) for piece in pieces]),
        spread([tensor, tensor], root, workers),
        gathered(ENVELOPE + message_nbytes([Packet({})]), workers),
    ]
    same(laid_out(workers, calls), messages_of(parse("10mbit", workers), work))


@pytest.mark.parametrize("name", METHODS)
def test_a_round_of_every_method_is_the_same_from_three_workers_and_from_all(name):
    three = recorded(name, 4, 8192)
    same(three, recorded(name, 4, 8192, everyone=True))
    assert len(three.source) > 0 or name == "alone"


def test_a_rounds_bytes_are_those_that_the_links_meters_count():
    for name, expected in (("ddp", 2 * 3 / 4 * 4 * 2**20), ("noloco", None), ("d-psgd", 2 * 4 * 2**20)):
        messages = recorded(name, 4, 2**20)
        assert messages.sent.sum() == messages.received.sum() > 0
        if expected is not None:
            assert messages.sent == pytest.approx(np.full(4, expected), rel=1e-3)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_an_exchange_takes_as_long_as_on_the_simulated_link(workers):
    numel, network = 40_000, parse("10mbit,7ms", workers)
    exchange = everyone()

    def work(link):
        tensors = [torch.empty(numel, device="meta")]
        exchange.run(tensors, exchange.init(tensors), link)
        return link.now()

    def rounds(link):
        work(link)
        yield

    expected = simulated.run(network, work)
    timing = play(fabric_of(network), messages_of(network, rounds))
    np.testing.assert_allclose(timing.ended, expected, rtol=1e-9)


def test_workers_of_unlike_connections_take_as_long_as_on_the_simulated_link():
    network = parse("10mbit,7ms", 5, ["1:2mbit,20ms", "3-4:1mbit,90ms"])
    exchange = everyone()

    def work(link):
        tensors = [torch.empty(20_000, device="meta")]
        exchange.run(tensors, exchange.init(tensors), link)
        return link.now()

    def rounds(link):
        work(link)
        yield

    timing = play(fabric_of(network), messages_of(network, rounds))
    np.testing.assert_allclose(timing.ended, simulated.run(network, work), rtol=1e-9)


def test_what_cannot_be_recorded_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match="at least 2 workers, got 1"):
        recorded("ddp", 1)
    with pytest.raises(ConfigError, match="parameters from 1 and skip from 0"):
        recorded("ddp", 2, 0)
    with pytest.raises(ConfigError, match="3 workers on a network of 2"):
        recorded("noloco", 3, network=parse("1mbit", 2))
    with pytest.raises(ConfigError, match="did you mean 'ddp'"):
        recorded("dpd", 2)
