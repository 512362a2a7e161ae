"""Low rank: nearly the best approximation, or right on average, in one packet."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import error_feedback, low_rank
from laconic.compress.base import accumulate
from laconic.compress.low_rank import draw_without_replacement
from laconic.errors import ClashError, ConfigError, NotANumber
from laconic.exchange import pairs
from laconic.links import memory


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def best(x, rank):
    """The error of the best approximation of that rank, squared."""
    return torch.linalg.svdvals(x.reshape(x.shape[0], -1))[rank:].square().sum()


def error(compressor, x, state):
    packet, after = compressor.compress(x, state)
    return (x - compressor.decompress(packet)).square().sum(), after


@given(n=st.integers(8, 40), m=st.integers(8, 40), rank=st.integers(1, 3), seed=st.integers(0, 999))
@settings(deadline=None)
def test_a_matrix_of_that_rank_comes_back(n, m, rank, seed):
    x = draw(n, rank, seed=seed) @ draw(rank, m, seed=seed + 1)
    for compressor in (low_rank(rank), low_rank(rank, unbiased=True)):
        packet, _ = compressor.compress(x, compressor.init(x))
        assert set(packet.tensors) == {"left", "right"}
        torch.testing.assert_close(compressor.decompress(packet), x, rtol=0, atol=1e-9 * float(x.norm()))


def test_on_one_matrix_it_comes_to_the_best_approximation():
    """Measured once for the source: 1.040, 1.020, 1.0024, 1.00004 after 1, 2, 6, 21 steps, as norms."""
    x = draw(40, 60)
    compressor = low_rank(2)
    state, ratios = compressor.init(x), []
    for _ in range(40):
        err, state = error(compressor, x, state)
        ratios.append(float((err / best(x, 2)).sqrt()))
    assert ratios[0] < 1.1
    assert ratios[39] < 1.001
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(ratios))


def test_more_iterations_are_more_exact():
    x = draw(50, 30, 3)
    errors = []
    for iterations in (1, 3, 30):
        compressor = low_rank(4, iterations=iterations, warm_start=False)
        errors.append(float(error(compressor, x, compressor.init(x))[0]))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] == pytest.approx(float(best(x, 4)), rel=0.01)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (24, 24)])
def test_cold_its_mean_error_is_within_the_bound_on_the_worst_matrix(shape):
    """All singular values alike: no direction is better than another."""
    x = torch.linalg.qr(draw(max(shape), min(shape))).Q
    x = x if shape[0] > shape[1] else x.T
    compressor = low_rank(3, warm_start=False)
    state, errors = compressor.init(x), []
    for _ in range(300):
        err, state = error(compressor, x, state)
        errors.append(float(err / x.square().sum()))
    assert sum(errors) / 300 <= 1 - 3 / min(shape) + 0.01
    assert 1 - 3 / min(shape) <= 1 - compressor.delta(x.numel()) + 1e-12


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_unbiased_its_mean_is_the_matrix_and_its_error_is_within_the_bound(shape):
    x = draw(*shape) * torch.logspace(0, 1, shape[1], dtype=torch.float64)
    compressor = low_rank(4, unbiased=True)
    state, total, errors, steps = compressor.init(x), torch.zeros_like(x), [], 4000
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        back = compressor.decompress(packet)
        total += back
        errors.append(float((back - x).square().sum() / x.square().sum()))
    mean_error = sum(errors) / steps
    off = float((total / steps - x).square().sum() / x.square().sum())
    assert off < 3 * mean_error / steps, "as small as the mean of so many draws is"
    assert 0.1 < mean_error <= min(shape) / 4 - 1
    assert compressor.omega(x.numel()) >= min(shape) / 4 - 1


@given(
    sizes=st.lists(st.floats(0, 100) | st.just(0.0), min_size=4, max_size=30),
    count=st.integers(1, 4),
    start=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_so_many_different_numbers_are_drawn_and_no_chance_is_above_1(sizes, count, start):
    chosen, chances = draw_without_replacement(sizes, count, start)
    assert len(set(chosen)) == len(chosen) == len(chances) == count
    assert all(chance > 0 and (chance <= 1 + 1e-12 or chance == math.inf) for chance in chances)
    assert all(
        sizes[i] < 1e-9 * (1 + max(sizes)) for i, chance in zip(chosen, chances, strict=True) if chance == math.inf
    )


def test_each_number_is_drawn_as_often_as_its_chance_says():
    sizes, count, draws = [9.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.0], 3, 20_000
    seen, told, source = [0] * 7, [0.0] * 7, random.Random(1)
    for _ in range(draws):
        for i, chance in zip(*draw_without_replacement(sizes, count, source.random()), strict=True):
            seen[i] += 1
            told[i] = chance
    assert told[0] == 1.0
    assert sum(told) == pytest.approx(count)
    for i in range(7):
        assert seen[i] / draws == pytest.approx(told[i], abs=0.02)
    assert told[2] / told[4] == pytest.approx(3)


def test_with_feedback_nothing_is_lost_and_the_residual_stays_bounded():
    compressor = error_feedback(low_rank(2))
    x = draw(16, 24)
    state, sent, sizes = compressor.init(x), torch.zeros_like(x), []
    for _ in range(300):
        packet, state = compressor.compress(x, state)
        accumulate(compressor, packet, sent)
        sizes.append(float(state.residual.norm()))
    torch.testing.assert_close(sent + state.residual, 300 * x, rtol=0, atol=1e-9)
    assert max(sizes[150:]) <= 1.2 * max(sizes[:150])


def test_it_goes_between_pairs_where_the_powersgd_exchange_cannot():
    xs = [draw(20, 2, seed=r) @ draw(2, 20, seed=r + 9) for r in range(2)]

    def run(link):
        exchange = pairs(low_rank(2))
        combined, _ = exchange.run([xs[link.rank]], exchange.init([xs[link.rank]]), link)
        return combined[0]

    for got in memory.run(2, run):
        torch.testing.assert_close(got, (xs[0] + xs[1]) / 2, rtol=0, atol=1e-9)


def test_it_sends_two_thin_factors_and_what_would_not_shrink_as_it_is():
    x = draw(100, 50).float()
    packet, _ = low_rank(3).compress(x, low_rank(3).init(x))
    assert sum(t.numel() for t in packet.tensors.values()) == 3 * 150
    for shape in ((100,), (5, 4), ()):
        x = draw(*shape)
        packet, _ = low_rank(3).compress(x, low_rank(3).init(x))
        assert torch.equal(low_rank().decompress(packet), x)


def test_after_zeros_it_finds_the_next_matrix_again():
    compressor = low_rank(2)
    x = draw(12, 2) @ draw(2, 15)
    _, state = compressor.compress(torch.zeros_like(x), compressor.init(x))
    for _ in range(3):
        err, state = error(compressor, x, state)
    assert err < 1e-12 * x.square().sum()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="low_rank: rank"):
        low_rank(0)
    with pytest.raises(ClashError, match="sends more than it was given"):
        error_feedback(low_rank(unbiased=True))
    x = torch.full((64, 64), 60000.0, dtype=torch.float16)
    with pytest.raises(NotANumber, match="factor is beyond"):
        low_rank().compress(x, low_rank().init(x))
