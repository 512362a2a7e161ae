"""What is asked about a cluster file before it is believed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.checking import in_line
from laconic.plan.cluster import read_cluster

NAMES = ["attic", "barn", "cellar", "dairy"]


def text(bandwidth, latency=None, top="", each=()):
    """A file; ``each`` is what else stands of each machine."""
    names = NAMES[: len(bandwidth)]
    each = each or [""] * len(names)
    machines = "".join(
        f'[[machines]]\nname = "{name}"\nmemory = 16e9\nflops = 20e9\n{more}\n'
        for name, more in zip(names, each, strict=True)
    )
    latency = latency or [[0.01] * len(names)] * len(names)
    places = ", ".join(f'"{name}"' for name in names)
    return f"{top}\n{machines}[between]\nplaces = [{places}]\nbandwidth = {bandwidth}\nlatency = {latency}\n"


@pytest.fixture
def read(tmp_path):
    def reading(written):
        (tmp_path / "farm.toml").write_text(written)
        return read_cluster(tmp_path / "farm.toml")

    return reading


LEVEL = [[1e9, 2e6, 3e6, 1e6], [2e6, 1e9, 4e6, 2e6], [3e6, 4e6, 1e9, 5e6], [1e6, 2e6, 5e6, 1e9]]


def with_one(value, i=0, j=2, table=LEVEL):
    changed = [list(row) for row in table]
    changed[i][j] = value
    return changed


def test_a_file_without_a_version_is_of_version_1_and_a_newer_one_is_refused(read):
    assert read(text(LEVEL)) == read(text(LEVEL, top="version = 1"))
    told = r"farm.toml: it is of version 2, and this laconic reads cluster files up to version 1; use a newer one"
    with pytest.raises(ConfigError, match=told):
        read(text(LEVEL, top='version = 2\nunheard_of = "yes"'))
    for wrong in ("0", "1.0", '"1"', "true", "-1"):
        with pytest.raises(ConfigError, match="version must be a whole number from 1 on"):
            read(text(LEVEL, top=f"version = {wrong}"))


@pytest.mark.parametrize("value", [2e3, 3e9])
def test_a_thousandfold_jump_between_neighbours_is_questioned_unless_the_file_says_it_is_right(read, value):
    word = "less" if value < 1e6 else "more"
    told = (
        rf"farm.toml: bandwidth from attic to cellar is .* times {word} than its neighbours' 1e\+06 to 5e\+06: is it in"
    )
    with pytest.raises(ConfigError, match=told):
        read(text(with_one(value)))
    assert read(text(with_one(value), top="checked = true")).machines
    with pytest.raises(ConfigError, match="checked must be true or false, got 1"):
        read(text(LEVEL, top="checked = 1"))


def test_a_latency_in_other_units_than_its_neighbours_is_questioned(read):
    late = [[0.0, 0.02, 0.03, 0.02] for _ in range(4)]
    with pytest.raises(ConfigError, match=r"latency from attic to cellar is 2e-05 seconds, up to 1,500 times less"):
        read(text(LEVEL, with_one(2e-5, table=with_one(0.03, 2, 0, late))))


def test_of_two_machines_the_two_directions_are_neighbours(read):
    assert read(text([[1e9, 5e6], [1e6, 1e9]]))
    with pytest.raises(ConfigError, match=r"bandwidth from attic to barn is 5e\+09 .*1,250 times more"):
        read(text([[1e9, 5e9], [4e6, 1e9]]))


FAST, SLOW = 1e10, 1e6


def rooms_of(rooms):
    return [[FAST if a == b else SLOW for a in rooms] for b in rooms]


@pytest.mark.parametrize("rooms", [[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [0, 0, 1]])
def test_rooms_that_have_names_are_not_questioned(read, rooms):
    assert read(text(rooms_of(rooms), each=[f'group = "room{room}"' for room in rooms]))


def test_nor_are_several_rooms_without_names(read):
    assert read(text(rooms_of([0, 0, 1, 1])))


@pytest.mark.parametrize("rooms", [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [0, 0, 1]])
def test_one_pair_or_one_machine_apart_from_all_others_is_questioned_where_no_group_names_it(read, rooms):
    with pytest.raises(ConfigError, match=r"10,000 times (more|less) than .*: is it in another unit"):
        read(text(rooms_of(rooms)))


def test_a_slip_that_stands_in_both_directions_is_questioned(read):
    """Matrices written by hand are mostly symmetric."""
    slipped = with_one(3e9, 2, 0, with_one(3e9))
    with pytest.raises(
        ConfigError, match=r"bandwidth from attic to cellar is 3e\+09 bytes a second, up to 3,000 times"
    ):
        read(text(slipped))
    assert read(text(slipped, each=['group = "hill"', "", 'group = "hill"', ""]))


@pytest.mark.parametrize("ways", [("row",), ("column",), ("row", "column")])
@pytest.mark.parametrize("factor", [1000.0, 1 / 1000])
def test_a_machine_whose_numbers_are_all_in_another_unit_is_questioned(read, ways, factor):
    table = [[x * 10 for x in row] for row in [[9, 4, 4, 4], [4, 9, 4, 4], [4, 4, 9, 4], [4, 4, 4, 9]]]
    table = [[x * 1e6 for x in row] for row in table]
    for k in range(4):
        if k != 2 and "row" in ways:
            table[2][k] *= factor
        if k != 2 and "column" in ways:
            table[k][2] *= factor
    with pytest.raises(ConfigError, match=r"cellar .* is it in another unit"):
        read(text(table))


def test_a_connection_in_another_unit_than_the_others_is_questioned(read):
    each = ["up = 2e6\ndown = 5e6", "up = 3e6", "up = 3e9", ""]
    with pytest.raises(
        ConfigError, match=r"up of cellar is 3e\+09 bytes a second, up to 1,500 times more than the other m"
    ):
        read(text(LEVEL, each=each))
    with pytest.raises(
        ConfigError, match=r"down of barn is 5e\+09 .* 2,500 times more than its other direction's 2e\+06"
    ):
        read(text(LEVEL, each=["", "up = 2e6\ndown = 5e9", "", ""]))
    assert read(text(LEVEL, each=each, top="checked = true"))


def test_a_line_edited_beside_its_measurement_is_questioned(read):
    spread = "{ values = [1e6, 1.1e6, 1.2e6] }"
    found = f'[measured]\n[[measured.links]]\nfrom = "attic"\nto = "barn"\nalone = {spread}\n'
    fine = [[1e9, 1.1e6], [1e9, 1e9]]
    assert read(text(fine) + found), "what was measured is not asked about, however uneven"
    with pytest.raises(ConfigError, match=r"from attic to barn is 1.1e\+09 .* 1,000 times more than the same file's"):
        read(text([[1e9, 1.1e9], [1e9, 1e9]]) + found)


@given(seed=st.integers(0, 2**31), n=st.integers(2, 7), spread=st.floats(1.0, 900.0))
def test_numbers_that_differ_by_less_than_a_thousand_are_never_questioned(seed, n, spread):
    draw = np.random.default_rng(seed)
    in_line([str(i) for i in range(n)], 10 ** draw.uniform(6, 6 + np.log10(spread), (n, n)), "bandwidth", "bytes", 1)


@given(seed=st.integers(0, 2**31), n=st.integers(3, 7), low=st.booleans())
def test_one_number_a_thousand_times_off_is_always_found(seed, n, low):
    draw = np.random.default_rng(seed)
    table = draw.uniform(1e6, 9e6, (n, n))
    i, j = (int(x) for x in draw.permutation(n)[:2])
    table[i, j] = table.min() / 1000 if low else table.max() * 1000
    with pytest.raises(ConfigError, match=f"from w{i} to w{j} is"):
        in_line([f"w{k}" for k in range(n)], table, "bandwidth", "bytes", 1)


def test_a_matrix_in_parts_is_told_with_its_parts_and_a_single_zero_by_its_pair(read):
    rooms = [[1e9 if (a < 2) == (b < 2) else 0 for a in range(4)] for b in range(4)]
    told = "farm.toml: between: the bandwidth is 0 from attic, barn and cellar, dairy, both ways, .* in 2 parts; every"
    with pytest.raises(ConfigError, match=told):
        read(text(rooms))
    with pytest.raises(ConfigError, match="between: bandwidth from attic to cellar must be positive, got 0"):
        read(text(with_one(0)))
    with pytest.raises(ConfigError, match="between: bandwidth from attic to cellar must be positive, got -1"):
        read(text(with_one(-1.0)))
