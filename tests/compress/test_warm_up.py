"""Warm-up: the paper's five levels, each for a quarter of the steps, then the target for ever."""

import math

import pytest
import torch

from laconic.compress import random_k, topk, warm_up
from laconic.errors import ConfigError


def counts(compressor, n, steps):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    state, out = compressor.init(x), []
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        out.append(packet.tensors["values"].numel())
    return out


def test_the_levels_are_25_percent_then_a_quarter_of_it_each_then_the_target():
    got = counts(warm_up(topk, 0.001, 0.25, 100), 10_000, 104)
    levels = [math.ceil(10_000 * 0.25 * (0.004) ** (i / 4)) for i in range(4)] + [10]
    assert got == [level for level in levels[:4] for _ in range(25)] + [10] * 4
    assert levels == [2500, 629, 159, 40, 10]


def test_without_steps_it_starts_at_the_target():
    assert counts(warm_up(topk, 0.01, 0.25, 0), 1000, 3) == [10, 10, 10]


def test_a_length_that_four_does_not_divide_reaches_the_target_on_time():
    got = counts(warm_up(topk, 0.01, 1.0, 6), 1000, 8)
    assert got[0] == 1000
    assert got[5] > 10
    assert got[6:] == [10, 10]
    assert got == sorted(got, reverse=True)


def test_any_kind_that_takes_a_density_can_be_warmed_up():
    compressor = warm_up(random_k, 0.1, 0.5, 4)
    assert counts(compressor, 100, 6)[::5] == [50, 10]
    assert compressor.summable


@pytest.mark.parametrize(("density", "start", "steps"), [(0.5, 0.25, 10), (0, 0.25, 10), (0.1, 2, 10), (0.1, 0.2, -1)])
def test_settings_that_do_not_fall_to_a_share_are_refused(density, start, steps):
    with pytest.raises(ConfigError, match="warm_up"):
        warm_up(topk, density, start, steps)
