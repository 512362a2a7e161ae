"""TernGrad: unbiased for what clipping leaves, its second moment, and five digits a byte."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import error_feedback, ternary
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.packet import Packet
from tests.compress.repeated import is_unbiased, normal, often, once, relative_error


def clipped(x, clip):
    limit = clip * float(x.double().square().mean().sqrt())
    return x.clamp(-limit, limit)


def test_without_clipping_it_is_unbiased_and_its_second_moment_is_the_product_of_the_norms():
    x = normal(200)
    assert is_unbiased(ternary(None), x)
    wanted = float(x.abs().max() * x.abs().sum())
    assert float(often(ternary(None), x, 1000).square().sum(1).mean()) == pytest.approx(wanted, rel=0.02)


def test_its_mean_is_the_clipped_tensor_and_only_three_values_are_sent():
    x = normal(200) ** 3
    x_clipped = clipped(x, 2.5)
    assert not torch.equal(x, x_clipped)
    assert is_unbiased(ternary(), x, wanted=x_clipped)
    assert not is_unbiased(ternary(), x)
    rows = often(ternary(), x, 50)
    assert torch.equal(rows.unique(), torch.tensor([-1.0, 0.0, 1.0]) * x_clipped.max())


@given(n=st.integers(1, 400), seed=st.integers(0, 999), power=st.sampled_from([1, 3, 9]))
def test_its_error_is_within_omega_and_clipped_within_its_bound_whatever_the_size(n, seed, power):
    x = normal(n, seed=seed) ** power
    slack = 1 + 4 / 50**0.5
    assert relative_error(ternary(None), x, 50) <= ternary(None).omega(n) * slack + 1e-6
    assert relative_error(ternary(), x, 50) <= 3.5 * slack


def test_omega_is_met_where_one_value_is_1_plus_sqrt_d_times_the_others():
    x = torch.ones(100)
    x[0] = 11.0
    assert ternary(None).omega(100) == 4.5
    assert relative_error(ternary(None), x, 2000) == pytest.approx(4.5, rel=0.03)


def test_on_gaussian_values_clipping_at_two_and_a_half_leaves_an_error_of_about_one():
    x = normal(1 << 17)
    assert relative_error(ternary(), x) == pytest.approx(1.0, abs=0.03)
    assert relative_error(ternary(None), x) > 2


def test_a_tensor_of_equal_values_is_not_clipped_away():
    x = torch.full((50,), -0.25)
    assert torch.equal(once(ternary(), x), x)


def test_five_values_share_a_byte():
    x = torch.tensor([1.0, 0.0, -1.0, 0.0, 1.0, -1.0, 1.0])
    packet, _ = ternary(None).compress(x, ternary().init(x))
    assert packet.tensors["trits"].tolist() == [2 + 3 * 1 + 9 * 0 + 27 * 1 + 81 * 2, 0 + 3 * 2]
    for n in (0, 1, 5, 6, 1001):
        packet, _ = ternary().compress(torch.ones(n), ternary().init(x))
        assert packet.tensors["trits"].numel() == math.ceil(n / 5)


def test_a_byte_that_is_no_five_digits_is_refused():
    bad = Packet(
        {"trits": torch.tensor([243], dtype=torch.uint8), "scale": torch.ones(1)}, {"shape": [3], "dtype": "f32"}
    )
    with pytest.raises(PacketError, match="243 is no five digits of base 3"):
        ternary().decompress(bad)


def test_feedback_is_refused_where_it_can_diverge():
    with pytest.raises(ClashError, match=r"ternary \(clipped\) may miss by more than it was given"):
        error_feedback(ternary())
    with pytest.raises(ClashError, match=r"damped\(ternary\)"):
        error_feedback(ternary(None)).init(torch.ones(100))
    error_feedback(ternary(None)).init(torch.ones(8))


@pytest.mark.parametrize("clip", [0, -1.0, math.inf, math.nan])
def test_a_clip_that_is_not_positive_is_refused(clip):
    with pytest.raises(ConfigError, match="ternary: clip must be positive"):
        ternary(clip)
