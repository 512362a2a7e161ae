import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.bench import units

ALL = (units.size, units.bandwidth, units.duration, units.count, units.rate, units.share, units.factor, units.loss)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.000012, "12.0 µs"),
        (0.43, "430 ms"),
        (0.9999, "1.00 s"),
        (45.63, "45.6 s"),
        (119.9, "2m 00s"),
        (245, "4m 05s"),
        (3599.7, "1h 00m"),
        (7500, "2h 05m"),
        (86399, "1d 00h"),
        (273600, "3d 04h"),
        (-2, "-2.00 s"),
    ],
)
def test_seconds_read_as_people_say_them(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (512, "512 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (999_999, "1.00 MB"), (7e9, "7.00 GB")],
)
def test_bytes_are_in_decimal_units_as_links_are(nbytes, text):
    assert units.size(nbytes) == text


def test_the_other_units():
    assert units.bandwidth(2.5e6) == "20.0 Mbit/s"
    assert [units.count(n) for n in (7, 9482, 12_345, 1_204_000, 7e9)] == ["7", "9,482", "12.3k", "1.20M", "7.00B"]
    assert units.rate(12.34, "steps") == "12.3 steps/s"
    assert units.rate(0.042, "steps") == "0.0420 steps/s"
    assert [units.share(x) for x in (0, 0.001, 0.43, 0.998, 1, 1.2)] == ["0%", "<1%", "43%", ">99%", "100%", "120%"]
    assert [units.factor(x) for x in (0.25, 1, 3.44, 12.3)] == ["0.25×", "1.0×", "3.4×", "12×"]
    assert [units.loss(x) for x in (1.5234, 0.00212, 312345.0)] == ["1.523", "0.00212", "3.1e+05"]


@pytest.mark.parametrize("show", ALL)
def test_what_is_no_number_is_shown_as_nothing_and_what_is_not_finite_as_itself(show):
    assert [show(x) for x in (None, "12", True, [])] == [units.NOTHING] * 4
    assert [show(x) for x in (math.nan, math.inf, -math.inf, 10**400)] == ["NaN", "∞", "-∞", "∞"]


@pytest.mark.parametrize("show", ALL)
@given(x=st.floats(0, 1e18))
def test_every_number_has_a_short_text(show, x):
    if 0 < x < 1e-9:
        return  # a bound on the width: nothing we count is that small
    assert len(show(x)) <= 24


def test_what_is_no_finite_number_is_null_in_strict_json():
    value = {"a": [1.5, math.nan, (math.inf, "text")], "b": {"c": -math.inf, "d": None}}
    assert units.strict(value) == {"a": [1.5, None, [None, "text"]], "b": {"c": None, "d": None}}
