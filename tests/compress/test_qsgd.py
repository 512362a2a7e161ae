"""QSGD: unbiased, within the published variance, sparse where levels are few, and packed tight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import damped, error_feedback, qsgd
from laconic.errors import ClashError, ConfigError
from tests.compress.repeated import is_unbiased, normal, often, once, relative_error


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("levels", [1, 4, 127])
def test_it_is_unbiased(levels, norm):
    assert is_unbiased(qsgd(levels, 64, norm), normal(150))


@given(
    levels=st.sampled_from([1, 3, 7, 40]),
    bucket=st.sampled_from([8, 64, 512]),
    norm=st.sampled_from(["l2", "max"]),
    power=st.sampled_from([1, 3, 7]),
    seed=st.integers(0, 999),
)
@settings(max_examples=25)
def test_its_mean_error_is_within_omega_which_is_within_the_papers(levels, bucket, norm, power, seed):
    x, compressor = normal(600, seed=seed) ** power, qsgd(levels, bucket, norm)
    assert relative_error(compressor, x, 60) <= compressor.omega(600) * (1 + 4 / 60**0.5)
    if norm == "l2":
        assert compressor.omega(600) <= min(bucket / levels**2, math.sqrt(bucket) / levels)


@pytest.mark.parametrize(("levels", "omega", "nonzero"), [(1, 24.8, 25.8), (4, 5.44, 103), (32, 0.166, 646)])
def test_error_and_entries_that_are_not_zero_are_the_measured_ones_of_1024_gaussian_values(levels, omega, nonzero):
    x = normal(1024 * 64, seed=3)
    rows = often(qsgd(levels, 1024), x, 4)
    assert float((rows - x).square().sum(1).mean() / x.square().sum()) == pytest.approx(omega, rel=0.05)
    count = float((rows != 0).double().sum(1).mean()) / 64
    assert count == pytest.approx(nonzero, rel=0.05)
    assert count <= levels * (levels + math.sqrt(1024))


@pytest.mark.parametrize(
    ("levels", "bits"), [(1, 2), (2, 3), (3, 3), (4, 4), (7, 4), (8, 5), (63, 7), (64, 8), (127, 8)]
)
def test_it_costs_the_bits_that_its_levels_need_and_four_bytes_a_bucket(levels, bits):
    assert bits == math.ceil(math.log2(2 * levels + 1))
    x = torch.ones(512 * 5 + 3)
    packet, _ = qsgd(levels).compress(x, qsgd().init(x))
    assert packet.tensors["codes"].numel() == math.ceil(x.numel() * bits / 8)
    assert packet.tensors["scales"].numel() == 6
    other = qsgd(1 if levels > 1 else 2)
    assert torch.equal(other.decompress(packet), qsgd(levels).decompress(packet))  # the header says how many bits


def test_with_many_levels_it_is_nearly_the_identity_and_the_largest_norm_is_exact_on_its_levels():
    x = normal(4000)
    assert relative_error(qsgd(127, 64, "max"), x) < 1e-4
    whole = torch.arange(-63, 64).float()
    torch.testing.assert_close(once(qsgd(63, 128, "max"), whole), whole, rtol=1e-6, atol=1e-6)


def test_values_whose_squares_overflow_or_vanish_in_float32_keep_their_norm():
    for scale in (1e-30, 1e-20, 1e25, 3e37):
        x = normal(512) * scale
        assert relative_error(qsgd(127, 64), x) < 0.01
    assert bool(once(qsgd(7), torch.full((600,), 3.4e38)).isfinite().all())


def test_feedback_around_it_is_refused_where_it_can_diverge_and_sound_when_damped():
    x = normal(600)
    with pytest.raises(ClashError, match=r"error_feedback: qsgd is unbiased with an omega of 2.6.*damped\(qsgd\)"):
        error_feedback(qsgd()).init(x)
    error_feedback(qsgd(127)).init(x)
    error_feedback(qsgd()).init(torch.zeros(4))  # four entries have no such omega
    compressor = error_feedback(damped(qsgd()))
    state, largest = compressor.init(x), 0.0
    for _ in range(200):
        _, state = compressor.compress(x, state)
        largest = max(largest, float(state.residual.norm() / x.norm()))
    assert largest < 2 * (1 + qsgd().omega(600))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"levels must be in \[1, 127\], got 128"):
        qsgd(128)
    with pytest.raises(ConfigError, match="qsgd: block must be a multiple of 8"):
        qsgd(7, 100)
    with pytest.raises(ConfigError, match="l3"):
        qsgd(norm="l3")
