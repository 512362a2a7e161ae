"""Block top-k: whole blocks, those of largest norm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import block_topk, topk
from laconic.compress.base import accumulate, carry
from laconic.errors import ConfigError, NotANumber, PacketError
from laconic.packet import Packet


def draw(n, seed, dtype=torch.float32):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(
    n=st.integers(0, 600),
    density=st.floats(0.001, 1.0),
    block=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_the_blocks_of_largest_norm_are_sent_whole_and_the_error_is_within_the_bound(
    n, density, block, dtype, scale, seed
):
    x = draw(n, seed, dtype) * scale
    compressor = block_topk(density, block)
    packet, _ = compressor.compress(x, ())
    back = compressor.decompress(packet)
    parts, got = (t.double().split(block) if n else () for t in (x, back))
    k = math.ceil(density * len(parts))
    norms = torch.tensor([p.norm() for p in parts], dtype=torch.float64)
    kept = torch.tensor([bool(torch.equal(g, p)) for g, p in zip(got, parts, strict=True)], dtype=torch.bool)
    assert all(keeps or not bool(g.any()) for keeps, g in zip(kept, got, strict=True)), "a block is sent whole or not"
    assert int(kept.sum()) == k
    if 0 < k < len(parts):
        assert norms[kept].min() >= norms[~kept].max() * (1 - 1e-5)
    error, energy = ((t.double() / scale).square().sum() for t in (x - back, x))
    assert error <= (1 - compressor.delta(n)) * energy * (1 + 1e-5) + 1e-12


@given(n=st.integers(1, 500), density=st.floats(0.01, 1.0), block=st.integers(1, 80), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_residual_is_what_was_not_sent(n, density, block, seed):
    x, residual = draw(n, seed), draw(n, seed + 1)
    compressor = block_topk(density, block)
    packet, left, _ = carry(compressor, x, residual, ())
    assert torch.equal(compressor.decompress(packet) + left, x + residual)
    into = residual.clone()
    accumulate(compressor, packet, into, 0.5)
    assert torch.equal(into, residual + 0.5 * compressor.decompress(packet))


def test_blocks_of_one_entry_are_topk():
    x = draw(2000, 1)
    a, b = block_topk(0.03, 1), topk(0.03)
    assert torch.equal(a.decompress(a.compress(x, ())[0]), b.decompress(b.compress(x, ())[0]))


def test_at_density_1_nothing_is_dropped():
    x = draw(1000, 3)
    assert torch.equal(block_topk().decompress(block_topk(1.0, 64).compress(x, ())[0]), x)


def test_a_place_costs_a_byte_for_a_whole_block_at_1_percent():
    x = draw(64 * 10_000, 0)
    packet, _ = block_topk(0.01, 64).compress(x, ())
    assert packet.tensors["values"].numel() == 100 * 64
    assert packet.tensors["places"].numel() <= 110


def test_values_that_fill_no_whole_blocks_are_refused():
    x = draw(100, 0)
    packet, _ = block_topk(0.5, 8).compress(x, ())
    cut = Packet(packet.tensors | {"values": packet.tensors["values"][:-1]}, packet.header)
    with pytest.raises(PacketError, match="values for blocks"):
        block_topk().decompress(cut)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_value_that_is_not_finite_is_refused_wherever_it_is(bad):
    for dtype in (torch.float32, torch.float64):
        for place in (0, 63, 99):
            x = draw(100, 0, dtype)
            x[place] = bad
            with pytest.raises(NotANumber):
                block_topk(0.1, 8).compress(x, ())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="block_topk: density"):
        block_topk(0)
    with pytest.raises(ConfigError, match="block_topk: block"):
        block_topk(0.1, 0)
