"""Parameters, operations and traffic of a transformer against published numbers, and their laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.transformer import (
    Shape,
    Training,
    Transformer,
    checkpoints,
    flops,
    parameters,
    stage_parameters,
    traffic,
    training_seconds,
)

GPT3 = Transformer(96, 12288, 96, 2048, 51200)
TRILLION = Transformer(128, 25600, 160, 2048, 51200)


def test_the_published_models_have_the_published_numbers():
    assert parameters(GPT3) == pytest.approx(174.616e9, rel=1e-5)
    assert flops(GPT3, 1536, "full") == pytest.approx(4.51097e18, rel=1e-5)
    assert parameters(TRILLION) == pytest.approx(1008.039e9, rel=1e-5)
    assert flops(TRILLION, 3072, "full") == pytest.approx(51.3905e18, rel=1e-5)


@given(
    l=st.integers(1, 128), h=st.integers(1, 200), V=st.integers(1, 10**5), s=st.integers(1, 4096), B=st.integers(1, 99)
)
def test_parameters_and_operations_are_the_papers_formulas(l, h, V, s, B):
    model = Transformer(l, 64 * h, 64, s, V)
    h = model.hidden
    assert parameters(model) == pytest.approx(12 * l * h**2 * (1 + 13 / (12 * h) + (V + s) / (12 * l * h)))
    for recompute, factor, head in (("none", 72, 12), ("full", 96, 16)):
        wanted = factor * B * s * l * h**2 * (1 + s / (6 * h) + V / (head * l * h))
        assert flops(model, B, recompute) == pytest.approx(wanted)
    assert flops(model, B, "none") < flops(model, B, "selective") < flops(model, B, "full")


@given(p=st.sampled_from([1, 2, 3, 6]), t=st.sampled_from([1, 2, 4]), tied=st.booleans())
def test_the_stages_parameters_are_the_models_with_one_copy_of_what_is_tied_and_of_the_places(p, t, tied):
    model = Transformer(12, 64, 4, 32, 1000, tied=tied)
    held = [t * stage_parameters(model, 12 // p, i == 0, i == p - 1, t) for i in range(p)]
    table, places = 1000 * 64, 32 * 64
    assert sum(held) == parameters(model) + (table if tied and p > 1 else 0) + (t - 1) * places


def test_one_tensor_way_sends_nothing_between_them_nor_does_one_copy_or_one_stage():
    training = Training(64, recompute="full")
    assert traffic(GPT3, training, Shape(4, 1, 2, 1)).tensor == 0
    assert traffic(GPT3, training, Shape(4, 1, 2, 1)).loss == 0
    assert traffic(GPT3, training, Shape(4, 8, 1, 1)).data == 0
    assert traffic(GPT3, training, Shape(1, 8, 2, 1)).pipeline == 0
    assert all(traffic(GPT3, training, Shape(4, 8, 2, 1)))


def test_tensor_traffic_is_four_all_reduces_a_layer_and_six_when_all_is_computed_again():
    shape = Shape(8, 4, 2, 2)
    boundary = 2 * 2048 * 12288 * 2  # bytes of b s h
    m = 64 // (2 * 2)
    assert traffic(GPT3, Training(64), shape).tensor == pytest.approx(m * 12 * 8 * (3 / 4) * boundary)
    assert traffic(GPT3, Training(64, recompute="full"), shape).tensor == pytest.approx(
        m * 12 * 12 * (3 / 4) * boundary
    )


def test_data_traffic_is_an_all_reduce_of_a_workers_parameters():
    held = 12 * stage_parameters(GPT3, 1, False, False, 4)
    whole = traffic(GPT3, Training(64, sharded_optimizer=False), Shape(8, 4, 4, 1)).data
    assert whole == pytest.approx(2 * 3 / 4 * held * 4)
    cut = traffic(GPT3, Training(64, sharded_optimizer=True), Shape(8, 4, 4, 1)).data
    assert cut == pytest.approx(3 / 4 * held * (4 + 2))


@given(layers=st.integers(1, 200), kept=st.floats(1, 1e9), inside=st.floats(1, 1e9), other=st.floats(0.1, 500))
def test_no_other_number_of_checkpoints_holds_less(layers, kept, inside, other):
    def held(c):
        return c * kept + layers / c * inside

    assert held(checkpoints(layers, kept, inside)) <= held(other) * (1 + 1e-12)


def test_a_trillion_parameters_train_in_84_days_on_3072_workers_as_published():
    # The paper's own example: 450 billion tokens at 163 Tflop/s of each, about three months.
    assert training_seconds(450e9, 1e12, 3072, 163e12, "full") / 86400 == pytest.approx(84, abs=1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Transformer(0, 64, 4, 8, 10), "layers must be at least 1, got 0"),
        (lambda: Transformer(2, 64, 5, 8, 10), "5 heads do not divide a hidden size of 64"),
        (lambda: Transformer(2, 64, 4, 8, 10, feed_forward=-1), "feed_forward must be 0"),
        (lambda: Training(0), "batch must be at least 1"),
        (lambda: Training(8, recompute="some"), "recompute is one of none, selective, full"),
        (lambda: Training(8, value_bytes=3), "value_bytes and gradient_bytes are 2 or 4"),
        (lambda: Shape(1, 1, 3, 1).micro_batches(8), "take a multiple of 3"),
    ],
)
def test_what_is_wrong_is_said(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_an_inner_width_of_its_own_counts_in_parameters_and_operations():
    wide, usual = Transformer(2, 64, 4, 32, 10, feed_forward=512), Transformer(2, 64, 4, 32, 10)
    assert parameters(wide) - parameters(usual) == 2 * (2 * 64 + 1) * 256
    assert math.isclose(flops(wide, 3) - flops(usual, 3), 3 * 2 * 3 * 32 * 4 * 64 * 256)
