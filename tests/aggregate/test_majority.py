"""The majority vote: counted by hand, blind to sizes, deaf to a minority, and one bit each way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.aggregate import majority
from laconic.compress import identity, sign
from laconic.errors import PacketError
from laconic.exchange import everyone, two_phase
from laconic.links import memory
from laconic.methods import build
from laconic.packet import Packet
from tests.tiny import equal


def draw(rank, shape=(61, 53), dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=7))
def test_it_is_the_sign_that_most_voted_for_and_1_of_a_tie(rows):
    got = majority().combine([torch.tensor(row).float() for row in rows], [1.0] * len(rows))
    for place in range(4):
        up, down = (sum(row[place] * way > 0 for row in rows) for way in (1, -1))
        assert float(got[place]) == (0 if up == down == 0 else -1 if down > up else 1)


def test_a_minority_changes_nothing_where_the_rest_agree():
    honest = [torch.tensor([0.1, -0.1]), torch.tensor([0.3, -5.0]), torch.tensor([2.0, -1e-3])]
    liars = [torch.tensor([-1e9, 1e9]), torch.tensor([-float("inf"), float("inf")])]
    assert majority().combine([*honest, *liars], [1.0] * 5).tolist() == [1, -1]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_votes_in_two_phases_of_one_bit_are_the_signs_of_the_sum_of_signs(workers, dtype):
    votes = sum(torch.where(draw(rank, dtype=dtype) >= 0, 1, -1) for rank in range(workers))
    wanted = torch.where(votes >= 0, 1, -1).to(dtype)

    def work(link, build):
        talk = build(sign("none"), majority())
        given = [draw(link.rank, dtype=dtype)]
        return talk.run(given, talk.init(given), link)[0][0]

    for exchange in (everyone, lambda c, r: two_phase(c, r, feedback=False)):
        for got in memory.run(workers, lambda link, e=exchange: work(link, e)):
            assert torch.equal(got, wanted)


def test_signsgd_steps_by_the_majoritys_sign_and_sends_a_bit_a_value_each_way():
    shapes = [(256, 128), (300,)]

    def work(link):
        method = build("signsgd")
        grads = [draw(link.rank, shape) for shape in shapes]
        got, _ = method.after_backward(grads, method.init(grads), link)
        return got, link.meter.bytes_out

    votes = [sum(torch.where(draw(rank, shape) >= 0, 1.0, -1.0) for rank in range(3)) for shape in shapes]
    for got, out in memory.run(3, work):
        assert equal(got, [v.sign() for v in votes])
        assert out < 2 * 2 / 3 * (256 * 128 + 300) / 8 + 1000


def test_signsgd_with_feedback_is_ef_signsgd_in_two_phases_of_mean_magnitudes():
    shape, number = (64, 48), 4

    def work(link):
        method = build("signsgd", {"feedback": True})
        state, total = method.init([draw(0, shape)]), torch.zeros(shape)
        for step in range(number):
            got, state = method.after_backward([draw(10 * step + link.rank, shape)], state, link)
            total += got[0]
        return total, state

    (one, mine), (two, theirs) = memory.run(2, work)
    came = sum((draw(10 * step, shape) + draw(10 * step + 1, shape)) / 2 for step in range(number))
    kept = sum(state.cuts[0].out[0].residual for state in (mine, theirs)) / 2
    torch.testing.assert_close(one + kept, came, rtol=1e-5, atol=1e-5)
    assert torch.equal(one, two)


def test_nobody_can_give_its_own_vote_a_weight():
    exchange = everyone(identity(), majority())

    def work(link):
        mine = torch.ones(2, 2) * (1 - 2 * (link.rank == 2))
        if link.rank == 2:
            link.all_gather([Packet({}, {"weight": 1e9}), Packet({"values": mine.reshape(-1)}, {"shape": [2, 2]})])
            return True
        with pytest.raises(PacketError, match="packets came, wanted"):
            exchange.run([mine], exchange.init([mine]), link)
        return True

    assert memory.run(3, work) == [True] * 3
