"""Speeds, and what is dealt by them: laws over all speeds, and what one bad moment does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import PacketError
from laconic.links import memory
from laconic.packet import Packet
from laconic.sync.speed import Speed, begun, ended, measured, parts_together, steps_together, told

speeds = st.lists(st.floats(0.001, 1.0), min_size=1, max_size=6)


@given(seconds=speeds, every=st.integers(1, 500), least=st.integers(1, 20))
def test_all_end_a_round_within_one_own_step_before_the_slowest_or_a_tenth_after(seconds, every, least):
    dealt = steps_together(seconds, every, least)
    times = [steps * s for steps, s in zip(dealt, seconds, strict=True)]
    last = times[seconds.index(max(seconds))]
    assert all(-0.1 * s * (1 + 1e-6) <= last - t < s * (1 + 1e-6) for t, s in zip(times, seconds, strict=True))
    assert min(dealt) >= least


@given(seconds=speeds, every=st.integers(1, 500))
def test_a_round_has_about_the_nominal_number_of_steps_however_they_are_dealt(seconds, every):
    dealt = steps_together(seconds, every)
    even = len(seconds) * every / sum(1 / s for s in seconds)
    # The slowest takes a whole number of steps, at least one, and each of the others loses less than one.
    slowest = max(seconds)
    assert abs(dealt[seconds.index(slowest)] * slowest - even) <= slowest * (0.5 + 1e-6) or even < slowest


@given(workers=st.integers(1, 8), every=st.integers(1, 500), parts=st.integers(1, 64), s=st.floats(1e-6, 10.0))
def test_equal_workers_are_dealt_exactly_the_nominal_amount(workers, every, parts, s):
    assert steps_together([s] * workers, every) == [every] * workers
    assert parts_together([s] * workers, parts) == [parts] * workers


@given(seconds=speeds, parts=st.integers(1, 32))
def test_parts_add_up_and_moving_one_from_the_last_would_end_no_earlier(seconds, parts):
    dealt = parts_together(seconds, parts)
    assert sum(dealt) == parts * len(seconds)
    assert min(dealt) >= 1
    last = max(range(len(dealt)), key=lambda i: dealt[i] * seconds[i])
    if dealt[last] > 1:
        end = dealt[last] * seconds[last]
        others = [(dealt[i] + 1) * seconds[i] for i in range(len(dealt)) if i != last]
        assert all(other >= end * (1 - 1e-6) for other in others)


@given(seconds=st.lists(st.sampled_from([0.1, 0.3, 1.0]), min_size=2, max_size=3), parts=st.integers(1, 4))
def test_no_way_of_dealing_the_parts_ends_earlier(seconds, parts):
    whole = parts * len(seconds)
    ways = (way for way in itertools.product(range(1, whole + 1), repeat=len(seconds)) if sum(way) == whole)
    best = min(max(d * s for d, s in zip(way, seconds, strict=True)) for way in ways)
    got = max(d * s for d, s in zip(parts_together(seconds, parts), seconds, strict=True))
    assert got == pytest.approx(best, rel=1e-6)


def after(pieces, speed=None):
    speed, now = begun(speed or Speed(), 0.0), 0.0
    for seconds in pieces:
        now += seconds
        speed = ended(speed, now)
    return measured(speed)


def test_one_slow_step_in_a_round_changes_nothing():
    assert after([0.1, 0.1, 9.0, 0.1]).seconds == pytest.approx(0.1)


def test_one_slow_round_counts_as_at_most_twice_what_was_known_and_a_lasting_one_is_followed():
    speed = after([100.0] * 5, after([0.1] * 5))
    assert speed.seconds == pytest.approx(0.1 + 0.3 * 0.1)
    for _ in range(30):
        speed = after([0.4] * 5, speed)
    assert speed.seconds == pytest.approx(0.4, rel=0.01)
    for _ in range(30):
        speed = after([0.1] * 5, speed)
    assert speed.seconds == pytest.approx(0.1, rel=0.01)


def test_a_step_that_another_process_began_is_not_timed():
    speed = ended(begun(Speed(), 100.0)._replace(session=1), 5000.0)
    assert speed.pieces == 0
    assert speed.began == 5000.0


def test_who_has_measured_nothing_is_taken_to_be_like_the_others():
    assert memory.run(3, lambda link: told([0.2, 0.0, 0.4][link.rank], link)) == [[0.2, pytest.approx(0.3), 0.4]] * 3
    assert memory.run(2, lambda link: told(0.0, link)) == [[1.0, 1.0]] * 2


@pytest.mark.parametrize("said", [None, -1.0, "fast", [1.0], True])
def test_what_a_peer_says_is_checked(said):
    def work(link):
        if link.rank:
            link.all_gather([Packet({}, {"speed": said} if said is not None else {})])
            return None
        with pytest.raises(PacketError, match="seconds of a step"):
            told(0.1, link)
        return True

    assert memory.run(2, work)[0]
