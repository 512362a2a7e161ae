"""Carbon: tables, the best place and hour, and sites that live on batteries."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.carbon import (
    HOUR,
    KILOWATT_HOUR,
    Intensity,
    Offer,
    Power,
    best_start,
    cheapest,
    greenest,
    itinerary,
    read_intensity,
)
from laconic.plan.islands import Duty, Island, day, next_duty, shares


def sine(phase, mean=300.0, height=200.0):
    """The hourly means of a sine over a day: its integral over each hour."""
    at = lambda hour: -math.cos(2 * math.pi * hour / 24 + phase) * 24 / (2 * math.pi)  # noqa: E731
    return tuple(mean + height * (at(hour + 1) - at(hour)) for hour in range(24))


TWO = Intensity({"east": sine(0.0), "west": sine(math.pi)})
EVEN = Intensity({"east": (400.0,) * 24, "west": (400.0,) * 24})
OFFERS = [
    Offer("fast", 1000.0, {"east": 9e6}),
    Offer("middling", 1050.0, {"west": 5e6}),
    Offer("slow", 3000.0, {"east": 1e6, "west": 1e6}),
]


def test_with_no_price_on_carbon_the_quickest_is_taken_and_with_a_high_one_the_greenest():
    assert cheapest(OFFERS, TWO).name == "fast"
    assert cheapest(OFFERS, TWO, price=1e6).name == "slow"


@given(joules=st.lists(st.floats(1e5, 1e9), min_size=2, max_size=6), seed=st.integers(0, 1000))
def test_where_all_electricity_is_alike_the_least_energy_is_taken(joules, seed):
    offers = [Offer(str(i), 100.0 + (i * seed) % 7, {"east": e / 2, "west": e / 2}) for i, e in enumerate(joules)]
    assert sum(greenest(offers, EVEN, slack=1.0).joules.values()) == pytest.approx(min(joules))
    assert sum(cheapest(offers, EVEN, price=1e9).joules.values()) == pytest.approx(min(joules))


def test_the_greenest_may_take_only_so_much_longer_than_the_quickest():
    assert greenest(OFFERS, EVEN).name == "middling"
    assert greenest(OFFERS, EVEN, slack=0.0).name == "fast"
    assert greenest(OFFERS, EVEN, slack=2.0).name == "slow"


def test_following_the_sun_between_two_sites_saves_what_the_integral_says():
    watts = {"east": 1000.0, "west": 1000.0}
    way, grams = itinerary(TWO, watts, 0, 24)
    stayed = Offer("stay", 24 * HOUR, {"east": 1000.0 * 24 * HOUR}).grams(TWO)
    assert stayed == pytest.approx(24 * 300.0)
    assert grams == pytest.approx(24 * (300.0 - 200.0 * 2 / math.pi))  # the mean of |sin| is 2 / pi
    assert way == ["west"] * 12 + ["east"] * 12
    assert len(way) == 24  # the same work


def test_moving_is_worth_it_only_if_it_costs_less_than_it_saves():
    watts = {"east": 1000.0, "west": 1000.0}
    stay = itinerary(TWO, watts, 0, 24, moving=1e9)
    assert len(set(stay[0])) == 1
    dear = itinerary(TWO, watts, 0, 24, moving=1e6)
    free = itinerary(TWO, watts, 0, 24)
    assert free[1] < dear[1] < stay[1]


def test_work_does_not_flap_between_sites_that_take_turns_every_hour():
    table = Intensity({"a": (100.0, 110.0) * 12, "b": (110.0, 100.0) * 12})
    for dwell in (2, 3):
        way, _ = itinerary(table, {"a": 1.0, "b": 1.0}, 0, 24, dwell=dwell)
        stays, at = [], 0
        for hour in range(1, 25):
            if hour == 24 or way[hour] != way[at]:
                stays.append(hour - at)
                at = hour
        assert min(stays[1:-1], default=dwell) >= dwell  # the first and the last may be shorter
    assert len(set(itinerary(table, {"a": 1.0, "b": 1.0}, 0, 24, dwell=1)[0])) == 2


@given(seconds=st.floats(60.0, 20 * HOUR), earliest=st.floats(0.0, 10 * HOUR))
def test_no_start_on_a_fine_grid_is_better_than_the_best_start(seconds, earliest):
    offer = Offer("train", seconds, {"east": 1e7})
    deadline = earliest + seconds + 12 * HOUR
    best = best_start(offer, TWO, earliest, deadline)
    assert earliest <= best <= deadline - seconds + 1e-6
    grid = [earliest + 12 * HOUR * i / 100 for i in range(101)]
    assert offer.grams(TWO, best) <= min(offer.grams(TWO, one) for one in grid) * (1 + 1e-9)


@given(start=st.floats(0.0, 40 * HOUR), parts=st.lists(st.floats(1.0, 5 * HOUR), min_size=1, max_size=4))
def test_grams_of_parts_add_up_to_those_of_the_whole(start, parts):
    whole = Offer("all", sum(parts), {"east": sum(parts)}).grams(TWO, start)
    total, at = 0.0, start
    for seconds in parts:
        total += Offer("part", seconds, {"east": seconds}).grams(TWO, at)
        at += seconds
    assert total == pytest.approx(whole, rel=1e-9)
    assert Offer("unit", HOUR, {"east": KILOWATT_HOUR}).grams(EVEN, start) == pytest.approx(400.0)
    assert Power(100.0, 200.0).joules(0.5, 10.0) == 2000.0


def test_tables_are_read_from_csv_and_toml_alike(tmp_path):
    rows = [f"{hour},{a},{b}" for hour, (a, b) in enumerate(zip(*TWO.sites.values(), strict=True))]
    (tmp_path / "grid.csv").write_text("\n".join(["hour,east,west", *rows]))
    lines = [f"{site} = {list(hours)}" for site, hours in TWO.sites.items()]
    (tmp_path / "grid.toml").write_text("\n".join(["[sites]", *lines]))
    assert read_intensity(tmp_path / "grid.csv") == read_intensity(tmp_path / "grid.toml") == TWO


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "east,west\n1,2", "first line must be hour"),
        ("a.csv", "hour,east\n1,20", "hour 0 and 1 numbers were expected"),
        ("a.csv", "hour,east\n0,much", "no table of intensities"),
        ("a.csv", "hour,east\n0,-3", "at hour 0 has -3"),
        ("a.csv", "hour,east\n0,400000", "of a megawatt hour"),
        ("a.csv", "hour,east\n0,nan", "at hour 0 has nan"),
        ("a.toml", "east = [1]", r"\[sites\] was expected"),
        ("a.toml", "[sites]\neast = [1]\nwest = [1, 2]", "same number of hours, got east 1, west 2"),
        ("a.toml", "[sites", "no table of intensities"),
        ("a.toml", "[sites]\neast = '210'", "east needs a list of numbers"),
        ("a.toml", "[sites]\neast = [true, false]", "east needs a list of numbers"),
        ("a.csv", "hour,east,east\n0,1,2", "east twice"),
        ("a.toml", "", r"\[sites\] was expected"),
    ],
)
def test_tables_that_are_none_get_a_sentence(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_intensity(tmp_path / name)


def test_hours_and_sites_that_the_table_does_not_have_get_a_sentence(tmp_path):
    short = Intensity({"east": (1.0, 2.0, 3.0)})
    assert short.mean("east", HOUR, 2 * HOUR) == 2.5
    with pytest.raises(ConfigError, match="has 3 hours of east, and hours 2 to 4"):
        short.mean("east", 2 * HOUR, 2 * HOUR)
    with pytest.raises(ConfigError, match="south"):
        short.mean("south", 0, HOUR)
    with pytest.raises(ConfigError, match="until the deadline there are 1"):
        best_start(Offer("long", 2 * HOUR, {"east": 1.0}), TWO, 0.0, HOUR)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_intensity(tmp_path / "none.csv")


SUN = (0.0,) * 6 + (300.0,) * 12 + (0.0,) * 6


def test_a_site_with_an_empty_battery_gets_no_work_and_the_others_by_their_surplus():
    islands = {
        "empty": Island(1e7, 0.0, SUN),
        "half": Island(1e7, 5e6, SUN),
        "full": Island(1e7, 1e7, SUN),
    }
    found = shares(islands, 100.0, 0, 4)
    assert found["empty"] == 0.0
    assert sum(found.values()) == pytest.approx(1.0)
    # What is above the reserve of 2e6 J after four dark hours at 100 W.
    assert found["full"] / found["half"] == pytest.approx((8e6 - 1.44e6) / (3e6 - 1.44e6))
    assert set(shares({"empty": islands["empty"]}, 100.0, 0, 4).values()) == {0.0}


@given(capacity=st.floats(1e6, 5e7), full=st.floats(0.25, 1.0), watts=st.floats(10.0, 400.0))
def test_work_leaves_before_the_reserve_is_touched(capacity, full, watts):
    island = Island(capacity, full * capacity, SUN)
    for _, stored in day(island, watts, 72):
        assert stored >= 0.2 * capacity - 1e-6


def test_a_site_that_was_left_is_come_back_to_only_after_two_hours_that_would_have_done():
    duties, duty = [], Duty(True)
    for fits in (True, False, True, False, True, True, True, True, False):
        duty = next_duty(duty, fits)
        duties.append(duty.working)
    assert duties == [True, False, False, False, False, False, True, True, False]
    worked = [working for working, _ in day(Island(2e6, 2e6, SUN), 350.0, 48)]
    rests = "".join("w" if one else "-" for one in worked).strip("-").split("w")
    assert all(len(rest) >= 2 for rest in rests if rest)


def test_a_battery_that_cannot_be_gets_a_sentence():
    with pytest.raises(ConfigError, match="cannot hold 2 J"):
        Island(1.0, 2.0, SUN)
