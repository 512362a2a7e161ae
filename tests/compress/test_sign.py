"""Signs: one bit a value, the published errors, and the contraction that feedback needs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import error_feedback, identity, sign
from laconic.errors import ClashError, ConfigError
from tests.compress.repeated import normal, once, relative_error


@given(
    n=st.integers(1, 3000), power=st.sampled_from([1, 3, 9]), block=st.sampled_from([0, 8, 64]), seed=st.integers(0, 99)
)
def test_the_error_is_what_the_mean_magnitude_leaves_and_within_delta(n, power, block, seed):
    x = normal(n, seed=seed) ** power
    error = (x.double() - once(sign(block=block), x)).square().sum()
    parts = x.double().split(block or n)
    wanted = sum(float(p.square().sum() - p.abs().sum() ** 2 / p.numel()) for p in parts)
    total = float(x.double().square().sum())
    assert float(error) == pytest.approx(wanted, rel=1e-5, abs=1e-6 * total)
    assert float(error) <= (1 - sign(block=block).delta(n)) * total * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize(("scale", "expected"), [("l1", 0.363), ("l2", 0.404)])
def test_the_error_on_gaussian_values_is_the_published_one(scale, expected):
    exact = {"l1": 1 - 2 / math.pi, "l2": 2 - 2 * math.sqrt(2 / math.pi)}[scale]
    assert exact == pytest.approx(expected, abs=6e-4)
    assert relative_error(sign(scale), normal(1 << 18)) == pytest.approx(exact, abs=2e-3)


def test_each_scale_is_the_mean_magnitude_or_the_root_mean_square_or_one():
    x = torch.tensor([3.0, -1.0, 0.0, -4.0])
    assert once(sign(), x).tolist() == [2.0, -2.0, 2.0, -2.0]  # of zero: +1
    assert once(sign("l2"), x).tolist() == pytest.approx([v * math.sqrt(6.5) for v in (1, -1, 1, -1)])
    assert once(sign("none"), x).tolist() == [1.0, -1.0, 1.0, -1.0]
    assert once(sign("l1", 8), torch.cat([x, x, 10 * x])).tolist()[8:] == [20.0, -20.0, 20.0, -20.0]


def test_it_costs_one_bit_an_entry_and_four_bytes_a_block():
    x = torch.ones(1001)
    for compressor, scales in ((sign(), 1), (sign(block=64), 16), (sign("none"), 0)):
        packet, _ = compressor.compress(x, ())
        assert packet.tensors["bits"].numel() == 126
        assert sum(t.numel() for n, t in packet.tensors.items() if n == "scales") == scales


@pytest.mark.parametrize("scale", ["l1", "l2"])
@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e19, 3e38])
def test_magnitudes_whose_sums_or_squares_leave_float32_have_their_scale(scale, size):
    x = torch.full((5000,), size)
    torch.testing.assert_close(once(sign(scale), x), x, rtol=1e-5, atol=0)


def test_what_was_decompressed_compresses_to_itself():
    for block in (0, 64):
        back = once(sign(block=block), normal(1000))
        torch.testing.assert_close(once(sign(block=block), back), back, rtol=1e-6, atol=0)


def test_with_feedback_signs_go_the_way_of_the_mean_gradient_and_without_the_other_way():
    """The published counterexample: the gradient is 4 once and -1 three times in four, so that most signs are wrong."""

    def end(compressor):
        draws, x = torch.Generator().manual_seed(0), torch.zeros(64, dtype=torch.float64)
        state = compressor.init(x)
        for _ in range(1000):
            gradient = torch.where(torch.rand(64, generator=draws) < 0.25, 4.0, -1.0).double()
            packet, state = compressor.compress(0.01 * gradient, state)
            x = x - compressor.decompress(packet)
        return float(x.mean())

    assert end(sign()) > 5
    assert end(error_feedback(sign())) == pytest.approx(end(identity()), abs=0.05)
    assert end(identity()) == pytest.approx(-2.5, abs=0.3)


def test_feedback_around_signs_without_a_scale_is_refused_and_so_are_other_settings():
    with pytest.raises(ClashError, match="sign sends ones, whatever the size"):
        error_feedback(sign("none"))
    with pytest.raises(ConfigError, match="l3"):
        sign("l3")
    with pytest.raises(ConfigError, match="sign: block must be a multiple of 8, got 12"):
        sign(block=12)
