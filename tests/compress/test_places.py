"""Places as bytes: back again for any set, near the entropy bound, and strict with what nobody wrote."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import kernels
from laconic.compress.places import BITMAP, decode, encode, expected_bits, low_bits
from laconic.errors import PacketError
from laconic.packet import Packet


def some(numel, k, seed):
    return torch.randperm(numel, generator=torch.Generator().manual_seed(seed))[:k].sort().values.int()


def packet(data, low):
    return Packet({"places": data}, {"low": low})


@given(numel=st.integers(1, 5000), share=st.floats(0, 1), seed=st.integers(0, 99), clustered=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_set_of_places_comes_back_and_both_forms_write_the_same_bytes(numel, share, seed, clustered):
    k = int(share * numel)
    places = torch.arange(numel - k, numel).int() if clustered else some(numel, k, seed)
    data, low = encode(places, numel)
    with kernels.plain():
        plain, plain_low = encode(places, numel)
        assert torch.equal(decode(packet(data, low), numel, k), places)
    assert torch.equal(data, plain)
    assert low == plain_low
    assert torch.equal(decode(packet(data, low), numel, k), places)


@pytest.mark.parametrize("density", [1e-4, 3e-4, 1e-3, 1e-2, 0.03, 0.0625, 0.1, 0.2, 0.3, 0.4, 0.5])
def test_random_places_take_at_most_a_tenth_more_than_the_bound(density):
    numel = 2_000_000
    k = int(density * numel)
    bound = (math.lgamma(numel + 1) - math.lgamma(k + 1) - math.lgamma(numel - k + 1)) / math.log(2)
    data, low = encode(some(numel, k, 0), numel)
    assert bound <= data.numel() * 8 <= 1.1 * bound
    on_meta, meta_low = encode(torch.empty(k, dtype=torch.int32, device="meta"), numel)
    assert meta_low == low
    assert on_meta.numel() == pytest.approx(data.numel(), rel=0.01)


def test_clustered_places_take_no_more_than_random_ones():
    numel, k = 1_000_000, 10_000
    assert encode(torch.arange(k).int() + 777, numel)[0].numel() <= encode(some(numel, k, 0), numel)[0].numel()


def test_dense_sets_are_bitmaps_and_thin_ones_are_not():
    assert low_bits(1000, 600) == BITMAP
    assert low_bits(1 << 24, 1 << 17) == 6
    assert expected_bits(0.01, 6) == pytest.approx(8.11, abs=0.01)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_that_nobody_wrote_are_refused_or_read_as_rising_places(data):
    numel = data.draw(st.integers(0, 3000))
    k = data.draw(st.integers(0, 400))
    low = data.draw(st.integers(-3, 40) | st.sampled_from([None, True, "6", 1.0]))
    raw = torch.tensor(list(data.draw(st.binary(max_size=200))), dtype=torch.uint8)
    answers = []
    for forced in (False, True):
        try:
            if forced:
                with kernels.plain():
                    answers.append(decode(packet(raw, low), numel, k).tolist())
            else:
                answers.append(decode(packet(raw, low), numel, k).tolist())
        except PacketError:
            answers.append(None)
    assert answers[0] == answers[1]
    if answers[0] is not None:
        assert len(answers[0]) == k
        assert all(a < b for a, b in zip(answers[0], answers[0][1:], strict=False))
        assert all(0 <= a < numel for a in answers[0])
