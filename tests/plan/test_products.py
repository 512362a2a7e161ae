"""Rounds of tiles: by hand, their laws, and the ladder to the closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan import products
from laconic.plan.cutting import NO_LINE, Job
from laconic.plan.passes import head_passes, layer_passes
from laconic.plan.products import Product, filled
from laconic.plan.transformer import Training, Transformer, core_flops, head_flops, layer_flops

MODEL = Transformer(layers=2, hidden=1024, heads=8, sequence=2048, vocabulary=8192)
SIDES = st.integers(1, 5000)


def test_rounds_of_tiles_by_hand():
    assert filled(Product(2048, 9600, 25600), 108) == pytest.approx(2048 * 9600 / (6 * 108 * 256 * 128))
    assert filled(Product(256, 128, 7), 1) == filled(Product(128, 256, 7), 1) == 1
    assert filled(Product(256, 128, 7), 2) == 0.5
    assert filled(Product(256, 128, 7, times=2), 2) == 1
    assert filled(Product(257, 128, 7), 1) == pytest.approx(257 / 512)


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 200))
def test_a_share_is_of_all_work_and_the_same_either_way_round(m, n, count, units):
    share = filled(Product(m, n, 64, count), units)
    assert 0 < share <= 1
    assert share == filled(Product(n, m, 64, count), units)
    rounds = count * m * n / (share * units * math.prod(products.TILE))
    assert rounds == pytest.approx(round(rounds))


@given(SIDES, SIDES, st.integers(1, 200))
def test_the_backward_pass_has_twice_the_operations(m, n, units):
    one = Product(m, n, 300)
    assert sum(turned.operations for turned in one.turned()) == 2 * one.operations
    there, back = products.seconds([one], 1e12, units)
    assert there >= one.operations / 1e12
    assert back >= 2 * one.operations / 1e12


@pytest.mark.parametrize("tensor", [1, 4])
def test_the_products_are_the_operations_that_the_closed_forms_count(tensor):
    linear = sum(p.operations for p in products.linear(MODEL, 3, tensor))
    core = sum(p.operations for p in products.core(MODEL, 3, tensor))
    assert core == core_flops(MODEL, 3) / tensor
    assert linear + core == layer_flops(MODEL, 3) / tensor
    assert 3 * sum(p.operations for p in products.head(MODEL, 3, tensor)) == head_flops(MODEL, 3) / tensor


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_with_one_unit_and_whole_tiles_it_is_the_plain_model(recompute):
    model = Transformer(layers=2, hidden=2048, heads=8, sequence=2048, vocabulary=8192)
    training = Training(8, recompute)
    assert layer_passes(model, training, 2, 1, 1e12, NO_LINE, units=1) == pytest.approx(
        layer_passes(model, training, 2, 1, 1e12, NO_LINE)
    )
    assert head_passes(model, training, 2, 1, 1e12, NO_LINE, units=1) == pytest.approx(
        head_passes(model, training, 2, 1, 1e12, NO_LINE)
    )


def test_a_small_micro_batch_leaves_more_units_idle():
    each = [layer_passes(MODEL, Training(8), b, 8, 1e12, NO_LINE, units=108) for b in (1, 8)]
    assert each[0].there > 1.5 * each[1].there / 8


def test_units_below_0_are_refused():
    with pytest.raises(ConfigError, match="units"):
        Job(MODEL, Training(8), units=-1)
