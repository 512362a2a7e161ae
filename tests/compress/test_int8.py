"""Blockwise int8: the error bound, and that random rounding averages out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import int8
from laconic.errors import ConfigError
from tests.compress.repeated import relative_error

TINY = 127 * torch.finfo(torch.float32).tiny  # below it a block has no scale, and becomes zeros


def draw(n, seed, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def levels_of(x, block):
    """One level, ``max|block| / 127``, for each value."""
    padded = torch.nn.functional.pad(x.abs().double(), (0, -x.numel() % block)).reshape(-1, block)
    return (padded.amax(1, keepdim=True) / 127).expand_as(padded).reshape(-1)[: x.numel()]


@given(
    n=st.integers(1, 700),
    block=st.sampled_from([1, 2, 7, 64, 256, 1000]),
    scale=st.sampled_from([1e-30, 1e-4, 1.0, 1e30]),
    stochastic=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_error_is_under_a_level_and_half_of_one_when_rounding_to_nearest(n, block, scale, stochastic, seed):
    x = draw(n, seed) ** 3 * scale
    compressor = int8(block, stochastic)
    packet, _ = compressor.compress(x, compressor.init(x))
    error = (compressor.decompress(packet).double() - x.double()).abs()
    assert bool((error <= levels_of(x, block) * (1 if stochastic else 0.5) * (1 + 1e-4) + TINY).all())
    assert int(packet.tensors["codes"].min()) >= -127


def test_random_rounding_is_unbiased_over_steps():
    x = draw(64, 0)
    compressor, steps = int8(64), 4000
    state, total = compressor.init(x), torch.zeros(64)
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        total += compressor.decompress(packet)
    spread = levels_of(x, 64) / 2 / math.sqrt(steps)  # a rounding up or down by one level deviates by half at most
    assert bool(((total / steps - x).abs() < 5 * spread).all())


def test_workers_roundings_are_independent_though_they_share_the_seed():
    compressor = int8()
    x = draw(2000, 1)
    y = x + 1e-6 * draw(2000, 2)
    a, b = (compressor.decompress(compressor.compress(t, compressor.init(t))[0]) - t for t in (x, y))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.1


def test_nearest_rounding_matches_the_measured_error_on_gaussian_values():
    x = draw(1 << 16, 5)
    for block, expected in ((32, 2.9e-5), (64, 3.5e-5), (256, 4.8e-5)):
        compressor = int8(block, stochastic=False)
        back = compressor.decompress(compressor.compress(x, compressor.init(x))[0])
        assert float((back - x).square().mean() / x.square().mean()) == pytest.approx(expected, rel=0.05)


def test_it_costs_one_byte_an_entry_and_four_a_block():
    small, big = (int8(256).compress(torch.ones(n), int8().init(torch.ones(1)))[0].nbytes for n in (25_600, 51_200))
    assert big - small == 25_600 + 100 * 4


def test_zeros_beside_values_too_small_for_a_scale_stay_zeros():
    x = torch.tensor([1e-40, 0.0, 3e-42, -1e-40])
    back = int8().decompress(int8().compress(x, int8().init(x))[0])
    assert float((back - x).abs().max()) <= 1e-40
    assert back[1] == 0


def test_a_block_under_1_is_refused():
    with pytest.raises(ConfigError, match="int8: block must be at least 1"):
        int8(0)


def test_the_error_is_within_omega_at_random_and_within_delta_to_nearest():
    x = draw(5000, 6) ** 3
    for block in (1, 64, 5000):
        assert relative_error(int8(block), x, 20) <= int8(block).omega(5000) * 1.01
        nearest = int8(block, stochastic=False)
        assert relative_error(nearest, x) <= 1 - nearest.delta(5000) + 1e-12
