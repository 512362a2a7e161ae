"""Codes packed tight: nothing lost, no bit wasted, in the order that is written down."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress.bits import pack, packed_size, unpack


@given(bits=st.integers(1, 8), n=st.integers(0, 100), seed=st.integers(0, 999))
def test_what_was_packed_comes_back_and_takes_its_bits_and_no_more(bits, n, seed):
    codes = torch.randint(0, 1 << bits, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == packed_size(n, bits) == -(-n * bits // 8)
    assert torch.equal(unpack(packed, bits, n), codes)


@given(bits=st.integers(1, 8), n=st.integers(1, 40), seed=st.integers(0, 999))
def test_the_codes_lie_one_after_another_from_the_lowest_bit(bits, n, seed):
    codes = torch.randint(0, 1 << bits, (n,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == number.to_bytes(packed_size(n, bits), "little")


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_meta_tensors_have_the_sizes_of_real_ones(bits):
    packed = pack(torch.empty(13, dtype=torch.uint8, device="meta"), bits)
    assert packed.shape == (packed_size(13, bits),)
    assert unpack(packed, bits, 13).shape == (13,)
