"""What a slow worker costs, exchanges and all: on simulated links, whose clock nothing else disturbs."""

import pytest

from laconic import attach
from laconic.links import simulated
from laconic.links.network import parse
from laconic.methods import build
from laconic.sync import diloco, uneven_steps
from tests.tiny import batch, loss, model, sgd

SLOW = [0.1, 0.1, 0.1, 0.4]
ROWS = 16


def spent(method, seconds, link, rounds=0, steps=0):
    """Steps of an ordinary batch that all workers took, and when the last was done; until so many rounds or steps."""

    def work(here):
        net, done, number = model(), 0.0, 0
        sync = attach(net, sgd(net), method, here)
        while (sync.rounds < rounds) if rounds else (number < steps):
            share = sync.share
            here.compute(seconds[here.rank] * share)
            loss(net, batch(here.rank, number, rows=round(ROWS * share))).backward()
            sync.step()
            sync.zero_grad()
            number, done = number + 1, done + share
        end = here.now()
        sync.drain()
        return done, end

    found = simulated.run(parse(link, len(seconds)), work)
    return sum(done for done, _ in found), max(end for _, end in found)


def of_own(found, seconds):
    """Steps a second of all workers, as a share of the sum of their own speeds."""
    steps, end = found
    return steps / end / sum(1 / s for s in seconds)


@pytest.mark.parametrize("link", ["100mbit,20ms", "1gbit,1ms"])
def test_a_worker_4_times_slower_costs_uneven_steps_less_than_a_tenth_and_even_ones_two_thirds(link):
    uneven = spent(build("uneven-diloco", {"every": 40}), SLOW, link, rounds=12)
    assert of_own(uneven, SLOW) > 0.9
    even = spent(diloco(every=40), SLOW, link, steps=240)
    assert of_own(even, SLOW) < 1 / 3


def test_a_worker_4_times_slower_costs_uneven_batches_less_than_a_tenth_and_even_ones_two_thirds():
    assert of_own(spent(build("uneven-ddp"), SLOW, "10gbit,100us", steps=150), SLOW) > 0.9
    assert of_own(spent(build("ddp"), SLOW, "10gbit,100us", steps=50), SLOW) < 1 / 3


def test_that_speeds_are_told_costs_time_once_and_then_none():
    latency, even = 0.04, [0.1] * 4
    rounds = 20
    told = spent(uneven_steps(diloco(every=1), every=10), even, "100mbit,40ms", rounds=rounds)
    silent = spent(diloco(every=10), even, "100mbit,40ms", steps=10 * rounds)
    assert told[0] == silent[0]
    assert told[1] - silent[1] < 3 * latency, "once each way, and not in each of the rounds"
