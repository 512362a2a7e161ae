"""Who takes part, as each knows it: views merge in any order, and draw samples alike."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import PacketError
from laconic.exchange.views import Entry, everybody, heard, merge, order, read_view, view_packet
from laconic.packet import Packet, from_bytes, to_bytes

ENTRIES = st.builds(Entry, st.integers(-1, 5), st.integers(0, 3), st.booleans())
VIEWS = st.dictionaries(st.integers(0, 6), ENTRIES, max_size=7)


@given(VIEWS, VIEWS, VIEWS)
def test_merging_is_commutative_associative_and_idempotent(a, b, c):
    assert merge(a, b) == merge(b, a)
    assert merge(a, merge(b, c)) == merge(merge(a, b), c)
    assert merge(a, a) == a
    assert merge(a, {}) == a


@given(VIEWS, VIEWS)
def test_nothing_known_is_lost_by_merging(a, b):
    both = merge(a, b)
    for view in (a, b):
        for rank, entry in view.items():
            assert both[rank].active >= entry.active
            assert both[rank].counter >= entry.counter


def test_the_word_with_the_larger_counter_holds():
    joined, left = {1: Entry(3, 4, True)}, {1: Entry(7, 5, False)}
    assert merge(joined, left) == {1: Entry(7, 5, False)}
    assert merge({1: Entry(9, 6, True)}, left) == {1: Entry(9, 6, True)}


def test_who_is_heard_is_active_and_takes_part_if_its_counter_is_new():
    view = {1: Entry(3, 4, False)}
    assert heard(view, 1, 5, 4) == {1: Entry(5, 4, False)}
    assert heard(view, 1, 2, 5) == {1: Entry(3, 5, True)}
    assert heard(view, 2, 6, 0) == {1: Entry(3, 4, False), 2: Entry(6, 0, False)}
    assert view == {1: Entry(3, 4, False)}


@given(VIEWS.filter(bool), st.integers(0, 99))
def test_two_nodes_with_equal_views_draw_equal_samples_for_a_thousand_rounds(view, seed):
    other = dict(reversed(list(view.items())))  # the same, learnt in another order
    me = min(view)
    for round in range(0, 1000, 13 if seed else 1):
        assert order(view, round, 50, me, seed) == order(other, round, 50, me, seed)


def test_each_node_is_drawn_as_often_as_any_other_and_rounds_are_independent():
    size, sample, rounds = 40, 8, 5000
    view = everybody(size)
    drawn = torch.zeros(rounds, size, dtype=torch.float64)
    for round in range(rounds):
        drawn[round, order(view, round, 10**6, 0)[:sample]] = 1
    expected = rounds * sample / size
    spread = rounds * sample / size * (1 - sample / size)
    chi = float(((drawn.sum(0) - expected).square() / spread).sum()) * (size - 1) / size
    assert chi < size - 1 + 4 * math.sqrt(2 * (size - 1)), chi  # 4 deviations of chi-squared's
    for lag in (1, 2, 7):
        together = float((drawn[lag:] * drawn[:-lag]).mean())
        alone = (sample / size) ** 2
        assert abs(together - alone) < 4 * math.sqrt(alone * (1 - alone) / (rounds * size))


def test_the_hash_has_the_round_in_it_and_the_seed():
    view = everybody(30)
    assert order(view, 1, 50, 0) != order(view, 2, 50, 0)
    assert order(view, 1, 50, 0) != order(view, 1, 50, 0, seed=1)


def test_who_left_or_was_silent_for_the_window_is_not_asked_but_i_always_am():
    view = {0: Entry(10), 1: Entry(40), 2: Entry(99, 3, False), 3: Entry(), 4: Entry(49)}
    assert set(order(view, 99, 50, 0)) == {0, 4}
    assert set(order(view, 90, 50, 1)) == {1, 4}
    assert set(order(view, 49, 50, 1)) == {0, 1, 3, 4}
    assert 2 in order(view, 99, 50, 2)


@given(VIEWS)
def test_a_view_crosses_a_link_in_16_bytes_a_worker(view):
    packet = from_bytes(to_bytes([view_packet(view)]))[0]
    assert read_view(packet, 7) == view
    assert packet.tensors["view"].numel() * 4 == 16 * len(view)


@pytest.mark.parametrize(
    "rows",
    [[0, 1, 2], [7, 0, 0, 1], [-1, 0, 0, 1], [0, -2, 0, 1], [0, 0, -1, 1], [0, 0, 0, 2], [0, 0, 0, 1, 0, 0, 0, 1]],
    ids=["cut", "rank too high", "rank under 0", "round", "counter", "member", "twice"],
)
def test_what_is_no_view_is_refused(rows):
    with pytest.raises(PacketError, match="no view of 7 workers"):
        read_view(Packet({"view": torch.tensor(rows, dtype=torch.int32)}), 7)
    with pytest.raises(PacketError, match="lacks 'view'"):
        read_view(Packet({}), 7)
