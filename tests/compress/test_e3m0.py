"""E3M0's laws: a fixed point, the nearest of fifteen values, the sign, never above the block's largest."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import e3m0
from laconic.compress.e3m0 import MAGNITUDES
from laconic.errors import ConfigError
from tests.compress.repeated import is_unbiased, relative_error


def draw(n, seed, scale=1.0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale


def once(x, block):
    return e3m0(block).decompress(e3m0(block).compress(x, ())[0])


case = given(
    n=st.integers(1, 600),
    block=st.sampled_from([2, 6, 64, 128]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 3.7, 1e20]),
    seed=st.integers(0, 2**31),
)


@case
def test_what_was_decompressed_compresses_to_itself(n, block, scale, seed):
    back = once(draw(n, seed, scale), block)
    assert torch.equal(once(back, block), back)


@case
def test_no_sign_flips_and_nothing_exceeds_the_blocks_largest(n, block, scale, seed):
    x = draw(n, seed, scale)
    back = once(x, block)
    assert bool((back * x.sign() >= 0).all())
    for a, b in zip(x.split(block), back.split(block), strict=True):
        assert b.abs().max() <= a.abs().max()


@case
def test_each_value_becomes_the_nearest_of_fifteen(n, block, scale, seed):
    x = draw(n, seed, scale)
    back = once(x, block)
    for a, b in zip(x.split(block), back.split(block), strict=True):
        top = float(b.abs().max())  # the block's scale: the largest value with its mantissa cut to bfloat16's
        assert top <= float(a.abs().max()) <= top * (1 + 2**-7)
        grid = torch.tensor(MAGNITUDES, dtype=torch.float64) * top
        grid = torch.cat([grid, -grid])
        best = (a.double()[:, None] - grid).abs().amin(1)
        assert bool(((a.double() - b.double()).abs() <= best * (1 + 1e-6)).all())


def test_the_error_is_at_most_a_quarter_of_the_largest_and_19_percent_on_gaussian_values():
    x = draw(1 << 16, 0)
    back = once(x, 64)
    error = (back - x).reshape(-1, 64)
    assert bool((error.abs().amax(1) <= 0.25 * x.reshape(-1, 64).abs().amax(1) * (1 + 1e-6)).all())
    assert float(error.square().mean().sqrt() / x.square().mean().sqrt()) == pytest.approx(0.19, abs=0.01)
    assert float(torch.cosine_similarity(x, back, dim=0)) == pytest.approx(0.98, abs=0.005)


def test_it_costs_half_a_byte_an_entry_and_two_a_block():
    small, big = (e3m0(128).compress(torch.ones(n), ())[0].nbytes for n in (12_800, 25_600))
    assert big - small == 6400 + 100 * 2


def test_zeros_beside_values_too_small_for_a_scale_stay_zeros():
    back = once(torch.tensor([1e-40, 0.0, 3e-42, -1e-40]), 4)
    assert back[1] == 0
    assert float(back.abs().max()) <= 1e-40


@pytest.mark.parametrize("block", [0, 1, 7, -2])
def test_a_block_that_two_codes_a_byte_do_not_fill_is_refused(block):
    with pytest.raises(ConfigError, match="e3m0: block must be even"):
        e3m0(block)


def test_at_random_it_is_unbiased_and_within_its_omega():
    for block in (16, 128):
        compressor = e3m0(block, stochastic=True)
        x = draw(300, 1) ** 3
        assert is_unbiased(compressor, x)
        assert relative_error(compressor, x, 200) <= compressor.omega(300)


def test_to_nearest_the_error_is_within_delta():
    for block in (2, 64, 4096):
        for power in (1, 5):
            x = draw(5000, 2) ** power
            assert relative_error(e3m0(block), x) <= 1 - e3m0(block).delta(5000)
