import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.bench.spread import band, mean, overlap, ranges

VALUES = st.floats(-1e6, 1e6)
CURVES = st.lists(
    st.lists(st.tuples(st.floats(0, 100), VALUES), min_size=1, max_size=12).map(
        lambda points: ([x for x, _ in sorted(points)], [y for _, y in points])
    ),
    min_size=1,
    max_size=4,
)


@given(CURVES)
def test_the_mean_lies_between_the_lowest_and_the_highest_where_all_curves_are(curves):
    found = band(curves)
    assert all(low <= middle <= high for low, middle, high in zip(found.low, found.mean, found.high, strict=True))
    assert found.x == sorted(found.x)
    if found.x:
        assert max(x[0] for x, _ in curves) <= found.x[0]
        assert found.x[-1] <= min(x[-1] for x, _ in curves)


@given(CURVES)
def test_the_band_of_one_curve_is_that_curve(curves):
    x, y = curves[0]
    assert band([(x, y)]) == (x, y, y, y)


@given(CURVES)
def test_the_band_of_equal_curves_has_no_width(curves):
    found = band([curves[0]] * 3)
    assert found.low == found.mean == found.high


def test_curves_are_straight_between_their_points():
    found = band([([0.0, 2.0, 4.0], [4.0, 2.0, 0.0]), ([1.0, 4.0], [1.0, 4.0])])
    assert found.x == [1.0, 2.0, 4.0]
    assert found.mean == [2.0, 2.0, 2.0]
    assert found.low == [1.0, 2.0, 0.0]
    assert found.high == [3.0, 2.0, 4.0]


def test_a_loss_that_is_no_number_stays_none_and_curves_apart_have_no_band():
    assert math.isnan(band([([0.0, 1.0], [1.0, math.nan]), ([0.0, 1.0], [1.0, 2.0])]).mean[-1])
    assert band([([0.0], [1.0]), ([1.0], [1.0])]).x == []
    assert band([]).x == []


def test_the_mean_of_one_run_is_that_run_and_of_what_is_no_number_there_is_none():
    assert mean([7]) == 7
    assert mean([None, None]) is None
    assert mean([1.0, None]) is None
    assert mean([1, 2, 6]) == pytest.approx(3.0)


def test_ranges_are_of_what_all_runs_have_and_meet_where_they_share_a_value():
    runs = [{"a": 3.0, "b": 1.0, "c": math.nan}, {"a": 1.0, "b": None, "c": 2.0}]
    assert ranges(runs, ["a", "b", "c", "d"]) == {"a": [1.0, 3.0]}
    assert overlap([1.0, 2.0], [2.0, 3.0])
    assert not overlap([1.0, 2.0], [2.1, 3.0])
