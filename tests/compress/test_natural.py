"""Natural compression: unbiased, an eighth of the variance at most, and powers of two stay."""

import math

import pytest
import torch

from laconic.compress import error_feedback, natural
from laconic.errors import ConfigError, NotANumber
from tests.compress.repeated import is_unbiased, normal, often, once, relative_error

both = pytest.mark.parametrize("bits", [8, 9])


@both
def test_it_is_unbiased(bits):
    assert is_unbiased(natural(bits), normal(300) ** 3)


@both
def test_its_error_is_an_eighth_at_four_thirds_and_less_elsewhere(bits):
    assert relative_error(natural(bits), torch.full((20_000,), 4 / 3), 10) == pytest.approx(1 / 8, rel=0.02)
    for value in (1.01, 1.2, 1.5, 1.9):
        assert relative_error(natural(bits), torch.full((20_000,), -value), 10) < 1 / 8
    assert relative_error(natural(bits), normal(100_000), 4) < natural().omega(100_000) == 1 / 8


@pytest.mark.parametrize(("bits", "low", "high"), [(8, -107, 18), (9, -126, 127)])
def test_powers_of_two_stay_what_they_are(bits, low, high):
    x = torch.ldexp(torch.ones(high - low + 1), torch.arange(low, high + 1))
    for values in (x, -x):
        assert torch.equal(often(natural(bits), values, 20), values.double().expand(20, -1))


@both
def test_each_value_goes_to_one_of_the_two_powers_beside_it_with_its_sign(bits):
    x = normal(500)
    down = torch.exp2(x.abs().log2().floor())
    for row in often(natural(bits), x, 20).float():
        assert bool((row.sign() == x.sign()).all())
        assert bool(((row.abs() == down) | (row.abs() == 2 * down)).all())


def test_the_mirrored_tensor_gets_the_mirrored_distribution():
    x = torch.full((1000,), 1.3)
    up = [float((often(natural(seed=s), sign * x, 20).abs() == 2).double().mean()) for s, sign in ((1, 1), (2, -1))]
    assert up == pytest.approx([0.3, 0.3], abs=4 * math.sqrt(0.21 / 20_000))


def test_nine_bits_are_nine_bits_and_eight_are_eight():
    x = torch.ones(8000)
    sizes = [sum(t.numel() for t in natural(b).compress(x, natural().init(x))[0].tensors.values()) for b in (9, 8)]
    assert sizes == [9000, 8000]
    packet, _ = natural(8).compress(x, natural().init(x))
    assert torch.equal(natural(9).decompress(packet), x)  # the header says which


def test_subnormal_values_are_unbiased_too_with_nine_bits_and_the_largest_do_not_become_infinite():
    tiny = torch.full((5000,), 2.0**-126 * 0.3)
    assert float(often(natural(), tiny, 20).mean()) == pytest.approx(float(tiny[0]), rel=0.05)
    assert once(natural(), torch.full((100,), -3.4e38)).tolist() == [-(2.0**127)] * 100


def test_eight_bits_refuse_what_is_beyond_their_range_and_drop_what_is_beneath():
    assert not once(natural(8), torch.full((100,), 2.0**-110)).any()
    with pytest.raises(NotANumber, match=r"beyond 2\^18.*natural\(9\)"):
        natural(8).compress(torch.tensor([1.0, 2.0**18 * 1.01]), natural().init(torch.ones(1)))


def test_feedback_around_it_is_sound():
    x = normal(300)
    compressor = error_feedback(natural())
    state = compressor.init(x)
    for _ in range(200):
        _, state = compressor.compress(x, state)
    assert float(state.residual.norm()) < float(x.norm())


def test_other_bits_are_refused():
    with pytest.raises(ConfigError, match="natural: bits must be 8 or 9, got 7"):
        natural(7)
