"""Random pairs: a partition, a new one each round, one left over when the number is odd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.exchange import pairs
from laconic.exchange.pairs import partner
from laconic.links import memory


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
