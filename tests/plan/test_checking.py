"""What is asked about a cluster file before it is believed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.checking import in_line
from laconic.plan.cluster import read_cluster

NAMES = ["attic", "barn", "cellar", "dairy"]


def text(bandwidth, latency=None, top=""):
    names = NAMES[: len(bandwidth)]
    machines = "".join(f'[[machines]]\nname = "{name}"\nmemory = 16e9\nflops = 20e9\n' for name in names)
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


def test_rooms_with_a_slow_line_between_are_not_questioned_nor_are_two_machines_side_by_side(read):
    fast, slow = 1e10, 1e6
    for rooms in ([0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 1, 2], [0, 0, 1]):
        assert read(text([[fast if a == b else slow for a in rooms] for b in rooms]))


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
