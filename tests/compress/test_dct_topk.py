"""DCT top-k: tiles as DeMo cuts them, the largest coefficients of each, and exactly back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import kernels
from laconic.compress import dct_topk, error_feedback
from laconic.compress.base import accumulate
from laconic.compress.dct import basis
from laconic.compress.dct_topk import _side
from laconic.errors import ConfigError, NotANumber

CPU = torch.device("cpu")
SHAPES = [(128, 192), (60, 50), (130,), (7,), (4, 6, 10), (1, 64), (64, 1), (37, 41), ()]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_all_coefficients_the_tensor_comes_back(shape):
    x = draw(*shape)
    compressor = dct_topk(1.0, 16)
    torch.testing.assert_close(compressor.decompress(compressor.compress(x, ())[0]), x, rtol=0, atol=1e-12)


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), keep=st.floats(0.01, 1.0), seed=st.integers(0, 99))
@settings(deadline=None)
def test_each_tile_keeps_its_largest_coefficients_and_the_error_is_the_rest_of_the_energy(rows, columns, keep, seed):
    x = draw(rows, columns, seed=seed)
    compressor = dct_topk(keep, 8)
    back = compressor.decompress(compressor.compress(x, ())[0])
    tall, wide = _side(rows, 8), _side(columns, 8)
    down, across = basis(tall, torch.float64, CPU), basis(wide, torch.float64, CPU)
    k = math.ceil(keep * tall * wide)
    for i in range(0, rows, tall):
        for j in range(0, columns, wide):
            tile = slice(i, i + tall), slice(j, j + wide)
            energies = (down @ x[tile] @ across.T).square().reshape(-1).sort(descending=True).values
            error = (x[tile] - back[tile]).square().sum()
            torch.testing.assert_close(error, energies[k:].sum(), rtol=1e-9, atol=1e-12)
    assert (x - back).square().sum() <= (1 - compressor.delta(x.numel())) * x.square().sum() + 1e-12


def test_a_full_tile_sends_32_coefficients_of_12_bits_more_each():
    packet, _ = dct_topk().compress(draw(256, 512, dtype=torch.float32), ())
    assert packet.tensors["values"].numel() == 4 * 8 * 32
    assert packet.tensors["places"].numel() == 4 * 8 * 32 * 12 // 8


def test_sides_are_the_largest_divisors_not_above_the_chunk():
    assert [_side(n, 64) for n in (64, 128, 768, 1000, 50257, 67, 1, 63)] == [64, 64, 64, 50, 29, 1, 1, 63]


def test_a_smooth_matrix_is_sent_nearly_whole():
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 128), torch.linspace(0, 2, 128), indexing="ij")
    x = (rows * columns).sin()
    back = dct_topk().decompress(dct_topk().compress(x, ())[0])
    assert (x - back).square().sum() < 1e-3 * x.square().sum()


def test_with_feedback_nothing_is_lost():
    x = draw(48, 80)
    compressor = error_feedback(dct_topk(0.05, 16))
    state, sent = compressor.init(x), torch.zeros_like(x)
    for step in range(100):
        packet, state = compressor.compress(x * (1 + step % 3), state)
        accumulate(compressor, packet, sent)
    total = sum(1 + step % 3 for step in range(100)) * x
    torch.testing.assert_close(sent + state.residual, total, rtol=0, atol=1e-9)
    assert state.residual.norm() < 40 * x.norm(), "about 1/delta = 20 times what comes in each step"


def test_the_loops_choose_what_the_plain_form_does():
    x = draw(256, 192, dtype=torch.float32)
    packet, _ = dct_topk().compress(x, ())
    with kernels.plain():
        plain, _ = dct_topk().compress(x, ())
        back = dct_topk().decompress(packet)
    assert all(torch.equal(t, plain.tensors[name]) for name, t in packet.tensors.items())
    assert torch.equal(back, dct_topk().decompress(packet))


def test_a_coefficient_beyond_float16_is_refused_by_its_name():
    with pytest.raises(NotANumber, match="smaller chunk"):
        dct_topk().compress(torch.full((64, 64), 3000.0, dtype=torch.float16), ())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="dct_topk: keep"):
        dct_topk(0)
    with pytest.raises(ConfigError, match="dct_topk: chunk"):
        dct_topk(0.1, 0)
