"""Blockwise int4: four bits are four bits, the error bound, and that random rounding averages out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import int4
from laconic.compress.bits import unpack
from laconic.errors import ConfigError
from tests.compress.repeated import is_unbiased, normal, once, relative_error


@given(
    n=st.integers(1, 700),
    block=st.sampled_from([2, 6, 32, 64, 128, 1000]),
    scale=st.sampled_from([1e-20, 1.0, 1e30]),
    stochastic=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_error_is_under_a_level_and_half_of_one_when_rounding_to_nearest(n, block, scale, stochastic, seed):
    x = normal(n, seed=seed) ** 3 * scale
    compressor = int4(block, stochastic)
    packet, _ = compressor.compress(x, compressor.init(x))
    back = compressor.decompress(packet)
    for a, b in zip(x.double().split(block), back.double().split(block), strict=True):
        level = a.abs().max() / 7
        assert bool(((a - b).abs() <= level * (1 if stochastic else 0.5) * (1 + 1e-5)).all())
    codes = unpack(packet.tensors["codes"], 4, n)
    assert not bool((codes == 8).any()), "-8 is never used"


def test_four_bits_a_value_are_four_bits_and_two_lie_in_a_byte_the_first_lower():
    x = torch.tensor([7.0, -7.0, 1.0, 0.0, -1.0])
    packet, _ = int4(8, stochastic=False).compress(x, ())
    assert packet.tensors["codes"].tolist() == [0x97, 0x01, 0x0F]
    small, big = (int4(64).compress(torch.ones(n), int4().init(torch.ones(1)))[0].nbytes for n in (12_800, 25_600))
    assert big - small == 6400 + 200 * 4


@pytest.mark.parametrize(("block", "expected"), [(32, 9.4e-3), (64, 1.2e-2), (256, 1.6e-2), (2048, 2.3e-2)])
def test_its_error_on_gaussian_values_is_the_measured_one_and_about_twice_that_at_random(block, expected):
    x = normal(1 << 17, seed=5)
    assert relative_error(int4(block, stochastic=False), x) == pytest.approx(expected, rel=0.05)
    assert relative_error(int4(block), x) == pytest.approx(2 * expected, rel=0.1)


def test_random_rounding_is_unbiased_and_within_its_omega():
    for seed, block in ((0, 16), (1, 128), (2, 64)):
        x = normal(200, seed=seed) ** 3
        assert is_unbiased(int4(block), x)
        assert relative_error(int4(block), x, 100) <= int4(block).omega(200)


@given(n=st.integers(1, 300), block=st.sampled_from([2, 8, 64]), seed=st.integers(0, 2**31))
def test_to_nearest_what_was_decompressed_compresses_to_itself_and_the_error_is_within_delta(n, block, seed):
    x, compressor = normal(n, seed=seed) ** 5, int4(block, stochastic=False)
    back = once(compressor, x)
    assert torch.equal(once(compressor, back), back)
    assert float((x - back).square().sum()) <= (1 - compressor.delta(n)) * float(x.square().sum()) * (1 + 1e-5)


@pytest.mark.parametrize(("block", "words"), [(0, "at least 1"), (7, "multiple of 2")])
def test_a_block_that_two_codes_a_byte_do_not_fill_is_refused(block, words):
    with pytest.raises(ConfigError, match=f"int4: block must be .*{words}"):
        int4(block)
