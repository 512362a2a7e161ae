"""Top-k's law, and that its quick selection is exact."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import topk
from laconic.compress.topk import largest
from laconic.errors import ConfigError, NotANumber
from laconic.kernels.select import WORTH_GUESSING


def draw(n, seed, dtype=torch.float64):
    return torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(density=st.floats(0.001, 1.0), n=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_error_is_within_the_published_bound(density, n, seed):
    x = draw(n, seed)
    packet, _ = topk(density).compress(x, ())
    error = (x - topk(density).decompress(packet)).square().sum()
    assert error <= (1 - math.ceil(density * n) / n) * x.square().sum() + 1e-12


@given(density=st.floats(0.001, 1.0), n=st.integers(1, 500), seed=st.integers(0, 2**31))
def test_what_is_sent_is_exact_and_the_rest_is_zero(density, n, seed):
    x = draw(n, seed)
    packet, _ = topk(density).compress(x, ())
    back = topk(density).decompress(packet)
    k = math.ceil(density * n)
    assert packet.tensors["values"].numel() == k
    assert torch.equal(back[back != 0], x[back != 0])
    assert int((back != 0).sum()) == k


def test_at_density_1_nothing_is_dropped():
    x = draw(1000, 3)
    packet, _ = topk(1.0).compress(x, ())
    assert torch.equal(topk().decompress(packet), x)


def test_an_entry_at_1_percent_costs_4_bytes_of_value_and_1_of_place():
    x = draw(100_000, 0, torch.float32)
    packet, _ = topk(0.01).compress(x, ())
    assert packet.nbytes / 1000 == pytest.approx(5.02, abs=0.1)


def ranked(x, k):
    """The k-th largest magnitude and all magnitudes above it, by a full sort."""
    order = x.abs().sort(descending=True).values
    return order[:k]


@given(
    n=st.sampled_from([1, 2, 100, WORTH_GUESSING - 1, WORTH_GUESSING, WORTH_GUESSING + 1, 100_003]),
    density=st.sampled_from([1e-5, 0.001, 0.01, 0.1, 0.24, 0.26, 1.0]),
    kind=st.sampled_from(["normal", "heavy", "ties", "constant", "zeros", "sorted", "one large", "sparse"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80)
def test_largest_is_exact_against_a_full_sort_whatever_the_guess(n, density, kind, seed):
    x = draw(n, seed, torch.float32)
    if kind == "heavy":
        x = x**9
    elif kind == "ties":
        x = (x * 2).round()
    elif kind == "constant":
        x = torch.full((n,), -3.0)
    elif kind == "zeros":
        x = torch.zeros(n)
    elif kind == "sorted":
        x = x.sort().values
    elif kind == "one large":
        x = torch.zeros(n)
        x[seed % n] = -1e30
    elif kind == "sparse":
        x = x * (x > 2.5)
    k = math.ceil(density * n)
    places, values = largest(x, k)
    assert torch.equal(values, x[places])
    assert places.numel() == k
    assert bool((places[1:] > places[:-1]).all()), "rising, so all different"
    assert torch.equal(x[places].abs().sort(descending=True).values, ranked(x, k))


@pytest.mark.parametrize("n", [1000, WORTH_GUESSING * 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_nan_or_infinity_anywhere_is_found_out(n, bad):
    for place in (0, 1, n // 2, n - 1):
        x = draw(n, 0, torch.float32)
        x[place] = bad
        with pytest.raises(NotANumber, match="topk"):
            largest(x, math.ceil(0.001 * n))


@pytest.mark.parametrize("density", [0, -0.1, 1.1, 100, math.nan])
def test_a_density_that_is_no_share_is_refused_with_what_1_percent_is(density):
    with pytest.raises(ConfigError, match=r"1% is 0\.01"):
        topk(density)
