"""Holmes: layers by speed, and what crosses a slow link."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.holmes import crossing, pipeline_seconds, rounded, shares, split, stages_of
from laconic.plan.transformer import Transformer, parameters

speeds = st.lists(st.floats(0.1, 100), min_size=1, max_size=8)


def test_the_shipped_example_is_split_as_its_configuration_says():
    assert rounded(48, [197, 160]) == [26, 22]
    assert shares(48, [197, 160], eager=1.0) == [26, 22]
    assert shares(48, [197, 160]) == [27, 21]  # what the published factor gives


@given(layers=st.integers(8, 40), speeds=speeds)
def test_all_layers_are_dealt_and_no_stage_is_without(layers, speeds):
    for found in (rounded(layers, speeds), split(layers, speeds, lambda n: pipeline_seconds(n, speeds, 4))):
        assert sum(found) == layers
        assert min(found) >= 1


@given(layers=st.integers(8, 200), p=st.integers(1, 8), speed=st.floats(0.1, 100))
def test_equal_speeds_differ_by_one_layer_at_most(layers, p, speed):
    found = rounded(layers, [speed] * p)
    assert max(found) - min(found) <= 1
    published = sorted(shares(layers, [1.0] * p, eager=1.0))  # what is over goes to one of them
    assert published == [layers // p] * (p - 1) + [layers // p + layers % p]


@given(layers=st.integers(8, 60), speeds=speeds, m=st.integers(1, 12))
def test_moving_layers_never_makes_it_slower(layers, speeds, m):
    def seconds(n):
        return pipeline_seconds(n, speeds, m)

    assert seconds(split(layers, speeds, seconds)) <= seconds(rounded(layers, speeds))


def test_beyond_the_best_split_each_further_layer_costs_more():
    """Unimodal on the example: one way down to the best, and one way up."""
    times = [pipeline_seconds([n, 48 - n], [197, 160], 16, passing=[0.001]) for n in range(1, 48)]
    best = times.index(min(times))
    assert all(a >= b for a, b in itertools.pairwise(times[: best + 1]))
    assert all(a <= b for a, b in zip(times[best:-1], times[best + 1 :], strict=True))
    assert best + 1 == split(48, [197, 160], lambda n: pipeline_seconds(n, [197, 160], 16, passing=[0.001]))[0]


def test_a_split_that_does_not_fit_gives_way_to_one_that_does():
    found = split(12, [3, 1], lambda n: pipeline_seconds(n, [3, 1], 8), excess=lambda n: max(0.0, n[0] - 7.0))
    assert found == [7, 5]
    with pytest.raises(ConfigError, match=r"no split of 12 layers fits .*is 1 bytes over"):
        split(12, [3, 1], lambda n: pipeline_seconds(n, [3, 1], 8), excess=lambda n: 1.0)


def test_what_crosses_is_counted_as_published():
    model = Transformer(48, 3072, 32, 2048, 51200)
    found = crossing(512, 2048, 3072, parameters(model))
    assert found.stages == 512 * 2048 * 3072 * 2
    assert found.copies == parameters(model) * 2
    assert crossing(512, 2048, 3072, parameters(model), clusters=4).copies == pytest.approx(1.5 * parameters(model) * 2)


def test_stages_cross_exactly_when_they_carry_less_than_the_gradients():
    rng = random.Random(0)
    wins = 0
    for _ in range(20):
        l, h, G = rng.randint(4, 60), 64 * rng.randint(4, 100), rng.randint(2, 5)
        B, s = 2 ** rng.randint(3, 12), 2 ** rng.randint(7, 12)
        P = parameters(Transformer(l, h, 8, s, 32000))
        found = crossing(B, s, h, P, G)
        assert found.stages_win == (B * s * h < 2 * (G - 1) / G * P)
        wins += found.stages_win
    assert 0 < wins < 20  # both happen


def test_each_cluster_holds_whole_stages():
    assert stages_of([32, 64], 8, 4) == [1, 2]
    with pytest.raises(ConfigError, match="cluster 1 has 48 workers, no multiple of t d = 32"):
        stages_of([32, 48], 8, 4)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: rounded(8, []), "each stage needs a positive speed"),
        (lambda: rounded(8, [1, 0]), "each stage needs a positive speed"),
        (lambda: rounded(2, [1, 1, 1]), "2 layers cannot be dealt to 3 stages"),
        (lambda: shares(10, [100, 1], 1.1), "nothing is left of 10 layers for the slowest of 2 stages"),
        (lambda: crossing(8, 8, 8, 8, clusters=1), "at least two clusters"),
    ],
)
def test_what_is_wrong_is_said(call, told):
    with pytest.raises(ConfigError, match=told):
        call()
