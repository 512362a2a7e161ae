"""Random pairs: a partition, a new one each round, one left over when the number is odd."""

import threading
import time
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.aggregate import majority, weighted_mean
from laconic.errors import ClashError, ConfigError, PacketError, PeerLost
from laconic.exchange import pairs
from laconic.exchange.pairs import members, partner
from laconic.links import memory
from laconic.packet import Packet
from tests.links.workers import connect, fine, run, vanish


@given(size=st.integers(1, 40), seed=st.integers(0, 99), round=st.integers(0, 10**6))
def test_the_pairing_is_a_partition_and_one_is_left_over_when_the_number_is_odd(size, seed, round):
    others = [partner(rank, size, seed, round) for rank in range(size)]
    assert all(others[others[rank]] == rank for rank in range(size))
    assert sum(others[rank] == rank for rank in range(size)) == size % 2


def test_the_pairing_changes_with_the_round_and_the_seed_and_everyone_meets_everyone():
    by_round = [tuple(partner(rank, 8, 0, r) for rank in range(8)) for r in range(60)]
    assert len(set(by_round)) > 30
    assert all({pairing[rank] for pairing in by_round} == set(range(8)) - {rank} for rank in range(8))
    assert [tuple(partner(rank, 8, 1, r) for rank in range(8)) for r in range(60)] != by_round


def test_with_an_odd_number_everyone_is_left_over_in_turn():
    left = [next(rank for rank in range(5) if partner(rank, 5, 0, r) == rank) for r in range(60)]
    assert set(left) == set(range(5))


@pytest.mark.parametrize("workers", [1, 2, 4, 5])
def test_a_pair_gets_the_same_bits_of_its_mean_and_the_one_left_over_keeps_its_own(workers):
    def mine(rank, step):
        return torch.randn(6, 5, generator=torch.Generator().manual_seed(10 * step + rank), dtype=torch.float64)

    def work(link):
        talk = pairs()
        state, out = talk.init([mine(link.rank, 0)]), []
        for step in range(4):
            (mean,), state = talk.run([mine(link.rank, step)], state, link)
            out.append(mean)
        return out, link.meter.messages_out

    results = memory.run(workers, work)
    for step in range(4):
        for rank in range(workers):
            other = partner(rank, workers, 0, step)
            got = results[rank][0][step]
            assert torch.equal(got, results[other][0][step])
            torch.testing.assert_close(got, (mine(rank, step) + mine(other, step)) / 2, rtol=1e-15, atol=1e-15)
    for rank in range(workers):
        assert results[rank][1] == sum(partner(rank, workers, 0, step) != rank for step in range(4))


# -- larger groups, and who is missing -------------------------------------------------------------------------------


@given(size=st.integers(1, 40), group=st.integers(2, 9), seed=st.integers(0, 99), round=st.integers(0, 10**6))
def test_groups_are_a_partition_into_their_size_and_one_smaller(size, group, seed, round):
    found = {tuple(members(rank, size, seed, round, group)) for rank in range(size)}
    assert sorted(rank for part in found for rank in part) == list(range(size))
    assert all(rank in members(rank, size, seed, round, group) for rank in range(size))
    sizes = sorted(len(part) for part in found)
    assert sizes == sorted([group] * (size // group) + [size % group] * bool(size % group))


@pytest.mark.parametrize("group", [3, 4])
def test_a_group_gets_the_same_bits_of_its_mean(group):
    def work(link):
        talk = pairs(group=group)
        x = torch.randn(5, generator=torch.Generator().manual_seed(link.rank), dtype=torch.float64)
        state = talk.init([x])
        out = []
        for _ in range(3):
            (mean,), state = talk.run([x], state, link)
            out.append(mean)
        return x, out

    results = memory.run(7, work)
    for step in range(3):
        for rank in range(7):
            met = members(rank, 7, 0, step, group)
            torch.testing.assert_close(results[rank][1][step], sum(results[r][0] for r in met) / len(met))
            assert all(torch.equal(results[rank][1][step], results[r][1][step]) for r in met)


def test_groups_of_more_workers_than_there_are_are_refused_and_the_rest_is_said():
    with pytest.raises(ConfigError, match=r"groups of 5 among 4 workers; use group=4 or less, or everyone"):
        pairs(group=5).among(4)
    assert pairs().among(7) == "each round 3 random groups of 2 of 7 workers, 1 left over"
    assert "left over" not in pairs(group=4).among(8)
    with pytest.raises(ConfigError, match="group must be a whole number of at least 2"):
        pairs(group=1)
    with pytest.raises(ConfigError, match="patience must be positive"):
        pairs(patience=0)
    with pytest.raises(ConfigError, match="did you mean 'alone'"):
        pairs(missing="lone")


def x(rank):
    return torch.full((3,), float(rank), dtype=torch.float64)


@pytest.mark.parametrize(("group", "left"), [(2, "alone"), (4, "with 2 of 3")])
def test_a_partner_that_is_gone_is_left_out_with_a_warning_and_the_others_do_not_notice(group, left):
    gone = next(other for other in members(0, 4, 0, 0, group) if other != 0)

    def work(link):
        talk = pairs(group=group)
        if link.rank == gone:
            return None
        met = [r for r in members(link.rank, 4, 0, 0, group) if r != gone]
        (mean,), state = talk.run([x(link.rank)], talk.init([x(0)]), link)
        return met, mean, state.alone

    with warnings.catch_warnings(record=True) as said:  # of all threads: what warns is the process's
        warnings.simplefilter("always")
        results = memory.run(4, work)
    for rank in set(range(4)) - {gone}:
        met, mean, alone = results[rank]
        torch.testing.assert_close(mean, sum(x(r) for r in met) / len(met))
        assert alone == (gone in members(rank, 4, 0, 0, group))
    wanted = f"worker {gone} is gone; worker 0 goes on {left} in round 0"
    assert any(wanted in str(warning.message) for warning in said)


def test_the_error_is_given_instead_if_that_is_asked_for():
    def work(link):
        talk = pairs(missing="raise")
        if link.rank == 0:
            with pytest.raises(PeerLost, match="worker 1 is gone"):
                talk.run([x(0)], talk.init([x(0)]), link)
        return True

    assert memory.run(2, work) == [True, True]


def test_a_message_that_came_too_late_is_dropped_when_the_two_meet_again():
    """Worker 1 is silent in round 0: worker 0 goes on, and in round 1 does not take the old message for the new."""
    given_up, caught_up = threading.Event(), threading.Event()

    def work(link):
        talk = pairs(patience=0.05 if link.rank == 0 else 20.0)
        state = talk.init([x(0)])
        if link.rank == 1:
            assert given_up.wait(20)
        (first,), state = talk.run([x(link.rank)], state, link)
        given_up.set()
        if link.rank == 1:
            caught_up.set()
        else:
            assert caught_up.wait(20)
        talk = pairs(patience=20.0)
        (second,), state = talk.run([10 + x(link.rank)], state, link)
        return float(first[0]), float(second[0]), state.alone

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert memory.run(2, work) == [(0.0, 10.5, 1), (0.5, 10.5, 0)]


def test_a_partner_in_a_round_that_has_not_begun_here_is_refused():
    def work(link):
        talk = pairs()
        state = talk.init([x(0)])._replace(round=4 * link.rank)
        if link.rank == 0:
            with pytest.raises(PacketError, match="worker 1 is in round 4, worker 0 in round 0; a state of another"):
                talk.run([x(0)], state, link)
        else:
            link.send([Packet({}, {"round": 4}), Packet({"x": x(1)})], 0)
        return True

    assert memory.run(2, work) == [True, True]


def killed_in_round_1():
    """Three rounds of one of four processes, of which the last is killed when the second begins."""
    with connect("tcp", timeout=20.0) as link:
        talk = pairs()
        state = talk.init([x(0)])
        out, seconds = [], []
        for round in range(3):
            if link.rank == 3 and round == 1:
                vanish("killed")
            start = time.monotonic()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (mean,), state = talk.run([x(link.rank)], state, link)
            seconds.append(time.monotonic() - start)
            out.append(float(mean[0]))
        link.roll_call()
        return out, state.alone, max(seconds)


@pytest.mark.processes
def test_killing_one_of_four_processes_touches_only_those_who_meet_it():
    answers = run(4, killed_in_round_1)
    assert answers[3] == ("died",)
    for rank, (out, alone, seconds) in enumerate(fine(answers[:3])):
        met = [[r for r in members(rank, 4, 0, n) if n < 1 or r != 3] for n in range(3)]
        assert out == [sum(part) / len(part) for part in met]
        assert alone == sum(3 in members(rank, 4, 0, n) for n in (1, 2))
        assert seconds < 10, "nobody waits for the link's patience"


@pytest.mark.parametrize("rule", [majority(), weighted_mean(9.0)], ids=["majority", "weighted"])
def test_any_rule_but_the_plain_mean_is_refused(rule):
    with pytest.raises(ClashError, match="plain mean of a few workers' weights"):
        pairs(combine=rule)
