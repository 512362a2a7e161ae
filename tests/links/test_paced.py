"""The paced link: rates within 5 %, latency, uneven directions and single links, over real processes."""

import time

import pytest
import torch

from laconic.errors import ConfigError
from laconic.links.network import parse
from laconic.links.paced import PacedLink
from laconic.packet import Packet
from tests.links import workers


def blob(nbytes):
    return [Packet({"x": torch.zeros(int(nbytes), dtype=torch.uint8)})]


def timed(link, sender, receiver, nbytes, repeat=1):
    """Seconds from before the first send to after the last receive, on one machine's one clock."""
    link.barrier()
    if link.rank == sender:
        message = blob(nbytes)
        start = time.monotonic()
        for _ in range(repeat):
            link.send(message, receiver)
        left = time.monotonic()
        link.send([Packet({}, {"start": start, "left": left})], receiver)
        return None
    if link.rank == receiver:
        for _ in range(repeat):
            link.recv(sender)
        end = time.monotonic()
        header = link.recv(sender)[0].header
        return end - header["start"], header["left"] - header["start"]
    return None


def held(rate, seconds):
    nbytes = parse(rate, 1).connections[0].up * seconds
    with workers.connect("paced", network=parse(rate, 2)) as link:
        return [timed(link, 0, 1, nbytes / 4, 4) for _ in range(3)]


@pytest.mark.processes
@pytest.mark.parametrize("rate", ["5mbit", "100mbit", "1gbit"])
def test_the_rate_is_held_within_5_percent(rate):
    took = min(left for _, left in workers.fine(workers.run(2, held, rate, 0.2))[1])  # the least disturbed of three
    assert took == pytest.approx(0.2, rel=0.05)


def directions():
    network = parse("80mbit,20ms", 3, ["1:80mbit/8mbit,50ms", "0-2:4mbit,120ms"])
    with workers.connect("paced", network=network) as link:
        return {
            "down to 1": timed(link, 0, 1, 1e6),
            "up from 1": timed(link, 1, 0, 1e5),
            "0 to 2": timed(link, 0, 2, 5e4),
            "2 to 0": timed(link, 2, 0, 1e6),
            "nothing": timed(link, 2, 1, 0),
            "meter": link.meter.seconds_waiting > 0.1,
        }


@pytest.mark.processes
def test_directions_single_links_and_latencies_are_what_the_network_says():
    seen = workers.fine(workers.run(3, directions))
    for name, receiver, seconds in [
        ("down to 1", 1, 0.1 + 0.02),
        ("up from 1", 0, 0.1 + 0.05),
        ("0 to 2", 2, 0.1 + 0.12),
        ("2 to 0", 0, 0.1 + 0.02),
        ("nothing", 1, 0.02),
    ]:
        assert seen[receiver][name][0] == pytest.approx(seconds, rel=0.08, abs=0.01), name
    assert seen[1]["down to 1"][1] == pytest.approx(0.1, rel=0.08, abs=0.01), "the sender is busy while it sends"
    assert all(worker["meter"] for worker in seen)


def sharing():
    with workers.connect("paced", network=parse("40mbit", 3)) as link:
        link.barrier()
        start = time.monotonic()
        if link.rank == 0:
            for to in (1, 2):
                link.send(blob(5e5), to)
            for source in (1, 2):
                link.recv(source)
            return time.monotonic() - start
        link.recv(0)
        link.send(blob(5e5), 0)
        return None


@pytest.mark.processes
def test_messages_to_two_peers_queue_at_the_senders_uplink_and_from_two_at_the_downlink():
    took = workers.fine(workers.run(3, sharing))[0]
    # Up: 0.1 s each, one after the other. Down: worker 1 answers at 0.1 and arrives at 0.2, worker 2 from 0.2 to 0.3.
    assert took == pytest.approx(0.3, rel=0.08)


def test_a_network_for_another_number_of_workers_is_refused():
    with pytest.raises(ConfigError, match="a network of 3 workers for 2"):
        PacedLink(0, 2, None, parse("1mbit", 3))
