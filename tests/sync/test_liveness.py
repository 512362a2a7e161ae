"""Who answers: the first so many living workers of an order."""

from hypothesis import given
from hypothesis import strategies as st

from laconic.sync.liveness import Probe


def probe(order, wanted, me=0, gone=(), timeout=5.0, resend=1.0):
    return Probe(order, wanted, me, gone, timeout, resend)


def test_the_first_are_asked_at_once_and_i_need_no_question():
    p = probe([3, 0, 5, 1], 3)
    assert p.ask(0.0) == [3, 5]
    assert not p.ended
    p.answered(5)
    p.answered(3)
    assert p.ended
    assert p.alive == [0, 5, 3]


def test_who_is_silent_is_asked_once_more_and_then_the_next_in_its_place():
    p = probe([3, 5, 1], 2)
    assert p.ask(10.0) == [3, 5]
    p.answered(5)
    assert p.deadline == 11.0
    assert p.late(10.9) == []
    assert p.late(11.0) == [3]
    assert p.deadline == 15.0
    assert p.late(14.0) == []
    assert p.late(15.0) == []
    assert p.ask(15.0) == [1]
    p.answered(3)  # too late
    assert not p.ended
    p.answered(1)
    assert (p.ended, p.alive) == (True, [5, 1])


def test_an_order_that_is_exhausted_ends_with_those_who_answered():
    p = probe([3, 5], 4)
    assert p.ask(0.0) == [3, 5]
    p.answered(5)
    p.late(1.0)
    p.late(5.0)
    assert p.ask(5.0) == []
    assert (p.ended, p.alive) == (True, [5])


def test_who_is_gone_is_not_asked_and_whose_connection_closes_is_not_awaited():
    p = probe([3, 5, 1, 2], 2, gone=[3])
    assert p.ask(0.0) == [5, 1]
    p.lost(5)
    assert p.ask(0.0) == [2]
    p.answered(1)
    p.lost(1)
    p.answered(2)
    assert (p.ended, p.alive) == (True, [2])


@given(st.permutations(range(8)), st.integers(1, 8), st.sets(st.integers(1, 7)))
def test_it_finds_the_first_living_ones_whoever_is_dead(order, wanted, dead):
    p, now = probe(order, wanted), 0.0
    while not p.ended:
        for peer in p.ask(now):
            if peer not in dead:
                p.answered(peer)
        if not p.ended and p._asked:
            now = p.deadline
            p.late(now)
    assert sorted(p.alive) == sorted([peer for peer in order if peer not in dead][:wanted])
