"""Directions: standard, independent, and a function of their numbers alone."""

import pytest
import torch

from laconic import kernels
from laconic.errors import ConfigError
from laconic.sync.directions import KINDS, add_direction, checked_kind, direction, gaussian, key_of, rademacher

MANY = torch.empty(1 << 20)
PINNED = [1061259429, -1076020150, -1087413709, 1065150660, 1061757418]
SIGNS = [-1, 1, 1, -1, -1, -1, 1, -1]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_entries_have_mean_0_and_variance_1_and_those_of_two_directions_are_not_correlated(kind):
    one, other = (kind(MANY, key_of(7, 3, sample, 0)).double() for sample in (0, 1))
    error = 1 / MANY.numel() ** 0.5
    assert abs(float(one.mean())) < 4 * error
    assert abs(float(one.square().mean()) - 1) < 4 * 2**0.5 * error
    assert abs(float((one * other).mean())) < 4 * error
    assert abs(float((one[1:] * one[:-1]).mean())) < 4 * error


def test_gaussian_numbers_have_the_normals_shares_and_fourth_moment():
    z = gaussian(MANY, 11).double()
    for bound, share in ((0.5, 0.382925), (1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300), (4.0, 0.999937)):
        error = (share * (1 - share) / MANY.numel()) ** 0.5
        assert abs(float((z.abs() < bound).double().mean()) - share) < 4 * error
    assert abs(float(z.pow(4).mean()) - 3) < 4 * (96 / MANY.numel()) ** 0.5


def test_rademacher_numbers_are_one_and_minus_one():
    assert set(rademacher(MANY, 3).unique().tolist()) == {-1.0, 1.0}


def test_directions_are_pinned():
    """Another machine, or another version, that drew others would fork the replicas."""
    bits = gaussian(torch.empty(5), key_of(0, 1, 2, 3)).view(torch.int32).tolist()
    assert bits == PINNED
    assert rademacher(torch.empty(8), key_of(0, 1, 2, 3)).int().tolist() == SIGNS


def test_the_numbers_of_a_key_may_not_be_confused():
    keys = {key_of(*numbers) for numbers in [(1, 12, 3, 0), (1, 1, 23, 0), (11, 2, 3, 0), (1, 1, 2, 30), (-1, 0, 0, 0)]}
    assert len(keys) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "axes"])
def test_a_direction_has_the_same_bits_whatever_the_parameters_dtype(kind, dtype):
    for i in range(2):
        one, other = (
            direction(kind, [torch.zeros(3, 5, dtype=d), torch.zeros(7, dtype=d)], 1, 2, 3, 8, i)
            for d in (torch.float32, dtype)
        )
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)


def test_along_axes_each_entry_has_its_turn():
    params = [torch.zeros(2, 2), torch.zeros(()), torch.zeros(3)]
    total = [torch.zeros_like(p) for p in params]
    for step in range(2):
        for sample in range(4):
            parts = [direction("axes", params, 0, step, sample, 4, i) for i in range(3)]
            assert sum(int((p != 0).sum()) for p in parts) == 1
            total = [t + p for t, p in zip(total, parts, strict=True)]
    assert all(bool((t == 8**0.5).all()) for t in total)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (300_001,), (33, 7)], ids=str)
def test_the_loop_adds_what_the_plain_form_adds_bit_for_bit(kind, shape):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(shape, generator=generator)
    for by in (1e-3, -0.37, 2630.0):
        looped, plain = start.clone(), start.clone()
        add_direction(looped, by, kind, [torch.zeros(3), start], 1, 2, 3, 4, 1)
        with kernels.plain():
            add_direction(plain, by, kind, [torch.zeros(3), start], 1, 2, 3, 4, 1)
        assert torch.equal(looped, plain)
        assert torch.equal(plain, start + direction(kind, [torch.zeros(3), start], 1, 2, 3, 4, 1) * by)


def test_an_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown one_byte directions 'gausian'; did you mean 'gaussian'"):
        checked_kind("one_byte", "gausian")
