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


def thrice(link, sender, receiver, nbytes, repeat=1):
    """Three such measurements."""
    return [timed(link, sender, receiver, nbytes, repeat) for _ in range(3)]


def holds(took, seconds, rel, least=0.0):
    """Whether no measurement is too short, and the least disturbed of them not too long."""
    slack = max(rel * seconds, least)
    return seconds - slack <= min(took) <= seconds + slack


def held(rate, seconds):
    nbytes = parse(rate, 1).connections[0].up * seconds
    with workers.connect("paced", network=parse(rate, 2)) as link:
        return thrice(link, 0, 1, nbytes / 4, 4)


@pytest.mark.processes
@pytest.mark.parametrize("rate", ["5mbit", "100mbit", "1gbit"])
def test_the_rate_is_held_within_5_percent(rate):
    took = [left for _, left in workers.fine(workers.run(2, held, rate, 0.2))[1]]
    assert holds(took, 0.2, 0.05), took


def directions():
    network = parse("80mbit,20ms", 3, ["1:80mbit/8mbit,50ms", "0-2:4mbit,120ms"])
    with workers.connect("paced", network=network) as link:
        return {
            "down to 1": thrice(link, 0, 1, 1e6),
            "up from 1": thrice(link, 1, 0, 1e5),
            "0 to 2": thrice(link, 0, 2, 5e4),
            "2 to 0": thrice(link, 2, 0, 1e6),
            "nothing": thrice(link, 2, 1, 0),
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
        took = [arrived for arrived, _ in seen[receiver][name]]
        assert holds(took, seconds, 0.08, 0.01), (name, took)
    busy = [left for _, left in seen[1]["down to 1"]]
    assert holds(busy, 0.1, 0.08, 0.01), f"the sender is busy while it sends: {busy}"
    assert all(worker["meter"] for worker in seen)


def sharing():
    with workers.connect("paced", network=parse("40mbit", 3)) as link:
        return [shared(link) for _ in range(3)]


def shared(link):
    """Seconds until both peers have got a message from worker 0 and answered with one."""
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
    assert holds(took, 0.3, 0.08), took


def test_a_network_for_another_number_of_workers_is_refused():
    with pytest.raises(ConfigError, match="a network of 3 workers for 2"):
        PacedLink(0, 2, None, parse("1mbit", 3))
