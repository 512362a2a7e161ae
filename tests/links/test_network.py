"""Text to a network: rates, times, overrides, and the sentence for what is neither."""

import pytest

from laconic.errors import ConfigError
from laconic.links import Connection, parse
from laconic.links.network import parse_connection, parse_rate, parse_time


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("8bit", 1),
        ("800kbit", 1e5),
        ("20mbit", 2.5e6),
        ("1.5gbit", 187.5e6),
        ("100Mbit/s", 12.5e6),
        ("1gbps", None),
        (" 5MBIT ", 625e3),
        ("100mbitps", 12.5e6),
    ],
)
def test_rates_are_bits_in_text_and_bytes_inside(text, nbytes):
    if nbytes is None:
        with pytest.raises(ConfigError):
            parse_rate(text)
    else:
        assert parse_rate(text) == pytest.approx(nbytes)


@pytest.mark.parametrize(
    "text", ["", "100", "100mb", "MB", "fast", "-5mbit", "0mbit", "1..5mbit", "mbit", "5 mbit mbit", "nanbit"]
)
def test_what_is_no_rate_is_refused_with_one_that_is(text):
    with pytest.raises(ConfigError, match="20mbit"):
        parse_rate(text)


@pytest.mark.parametrize(("text", "seconds"), [("30ms", 0.03), ("200us", 2e-4), ("1.5s", 1.5), ("0ms", 0)])
def test_times_are_seconds_inside(text, seconds):
    assert parse_time(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "ms", "-1ms", "1m", "1.2.3s"])
def test_what_is_no_time_is_refused_with_one_that_is(text):
    with pytest.raises(ConfigError, match="30ms"):
        parse_time(text)


def test_a_connection_is_down_slash_up_and_a_latency():
    assert parse_connection("20mbit") == Connection(2.5e6, 2.5e6, 0)
    assert parse_connection("50mbit/5mbit,40ms") == Connection(up=625e3, down=6.25e6, latency=0.04)


def test_overrides_change_one_worker_or_one_direction_of_one_pair():
    network = parse("100mbit,10ms", 3, ["1:8mbit/4mbit,20ms", "0-2:1mbit", "2-0:2mbit,80ms"])
    assert network.workers == 3
    assert network.connections[1] == Connection(up=5e5, down=1e6, latency=0.02)
    assert network.link(0, 2) == Connection(125e3, 125e3, 0.01), "the sender's latency where none is given"
    assert network.link(2, 0) == Connection(25e4, 25e4, 0.08)
    assert network.link(0, 1) == Connection(1e6, 1e6, 0.01), "the slower of two ends"
    assert network.link(1, 0) == Connection(5e5, 5e5, 0.02)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("3:5mbit", "worker 3 of 3"),
        ("0-7:5mbit", "worker 7 of 3"),
        ("1-1:5mbit", "joins 1 to itself"),
        ("x:5mbit", "write WORKER:RATE"),
        ("1", "write WORKER:RATE"),
        ("1:fast", "is not a rate"),
    ],
)
def test_an_override_that_names_no_link_is_refused(override, says):
    with pytest.raises(ConfigError, match=says):
        parse("10mbit", 3, [override])


def test_a_latency_of_0_that_is_said_is_not_the_senders():
    network = parse("100mbit,10ms", 2, ["0-1:1mbit,0ms"])
    assert network.link(0, 1) == Connection(125e3, 125e3, 0.0)


def test_in_which_order_overrides_are_given_changes_nothing():
    one, two = "0-1:1mbit", "0:20mbit,80ms"
    assert parse("100mbit", 2, [one, two]) == parse("100mbit", 2, [two, one])
    assert parse("100mbit", 2, [one, two]).link(0, 1).latency == 0.08


@pytest.mark.parametrize("workers", [0, -1, 100_001, 10**12])
def test_workers_that_nothing_is_made_for_are_refused_before_there_is_a_connection_for_each(workers):
    with pytest.raises(ConfigError, match=f"workers must be at .*, got {workers}"):
        parse("10mbit", workers)
