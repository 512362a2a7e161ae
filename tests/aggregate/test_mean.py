"""The mean, plain and weighted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import aggregate
from laconic.aggregate import Rule, mean, weighted_mean
from laconic.errors import ConfigError


def draw(n, seed=0):
    return list(torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_every_public_name_is_a_rule_with_working_defaults():
    for name in aggregate.__all__:
        if name != "Rule":
            assert isinstance(getattr(aggregate, name)(), Rule), name


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_weighted_mean_is_the_sum_of_weight_times_value_over_the_sum_of_weights(weights, seed):
    tensors = draw(len(weights), seed)
    exact = sum(w * t for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    torch.testing.assert_close(weighted_mean().combine(tensors, weights), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.1, 7.0])
def test_equal_weights_are_the_mean(weight):
    tensors = draw(5)
    torch.testing.assert_close(mean().combine(tensors, [weight] * 5), torch.stack(tensors).mean(0))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [2.0, 3.0]])
def test_a_rule_leaves_its_tensors_alone(weights):
    tensors = draw(2)
    kept = [t.clone() for t in tensors]
    mean().combine(tensors, weights)
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_that_is_no_positive_number_is_refused(weight):
    with pytest.raises(ConfigError, match="weight must be positive and finite"):
        weighted_mean(weight)
