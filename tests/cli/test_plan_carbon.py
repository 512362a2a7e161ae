"""``laconic plan --intensity``: a number, or a table of sites and hours."""

import json
import re

import pytest

from tests.here import MINE

FAST = ("--step-seconds", 0.05, "--methods", "ddp,diloco", "--tokens", 200_000, "--objective", "carbon")
DAY = [500] * 6 + [100] * 12 + [300] * 6


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(f"[sites]\nhere = {DAY}\n")
    return path


def test_a_table_counts_by_its_mean_and_says_when_to_begin(laconic, table):
    where = ("plan", MINE, "--workers", 2, "--link", "1mbit,5ms", *FAST)
    status, out, err = laconic(*where, "--intensity", table, "--json")
    assert status == 0, err
    told = json.loads(out)
    _, out, _ = laconic(*where, "--intensity", sum(DAY) / 24, "--json")
    grams, plain = ({way["name"]: way["carbon_grams"] for way in one["ways"]} for one in (told, json.loads(out)))
    assert grams == pytest.approx(plain, rel=0.05)  # what compresses is measured, each time anew
    assert told["begin"] == {"hour": 6.0, "saved": pytest.approx(0.8)}
    status, out, err = laconic(*where, "--intensity", table)
    assert (status, "it emits 80.0% less than at hour 0" in " ".join(out.split())) == (0, True), err


def test_the_sites_of_a_table_are_the_machines_of_a_cluster(laconic, tmp_path):
    (tmp_path / "grid.csv").write_text("\n".join(["hour,east,west", *(f"{hour},100,200" for hour in range(24))]))
    _, _, err = laconic("plan", MINE, "--link", "1mbit", *FAST, "--intensity", tmp_path / "grid.csv")
    assert "only a --cluster says which machine is at which" in " ".join(err.split())
    _, _, err = laconic("plan", MINE, "--cluster", "aws10", *FAST, "--intensity", tmp_path / "grid.csv")
    assert "site in" in err
    assert "east" in err


CLUSTER = """
version = 1
name = "two"
machines = [
  { name = "a0", memory = 8e9, flops = 1e9, group = "a" },
  { name = "a1", memory = 8e9, flops = 1e9, group = "a" },
  { name = "b0", memory = 8e9, flops = 1e9, group = "b" },
]
[between]
places = ["a", "b"]
bandwidth = [[1e9, 1e4], [1e4, 1e9]]
latency = [[0.0001, 0.1], [0.1, 0.0001]]
"""


def test_the_place_is_the_site_that_is_greenest_alone(laconic, tmp_path):
    (tmp_path / "two.toml").write_text(CLUSTER)
    (tmp_path / "grid.csv").write_text("\n".join(["hour,a,b", *(f"{hour},100,600" for hour in range(24))]))
    where = ("plan", MINE, "--cluster", tmp_path / "two.toml", "--methods", "ddp", "--tokens", 20_000)
    status, out, err = laconic(*where, "--intensity", tmp_path / "grid.csv", "--slack", 9)
    assert status == 0, err
    told = re.search(r"At a alone \(2 workers\) it takes .* and emits ([0-9.]+)% less than", " ".join(out.split()))
    assert told is not None  # all three wait for the slow link
    assert 50 < float(told[1]) < 100


def test_what_is_neither_grams_nor_a_table_gets_a_sentence(laconic):
    status, _, err = laconic("plan", MINE, "--link", "1mbit", *FAST, "--intensity", "clean")
    assert status != 0
    assert "--intensity is grams, or a table's file" in " ".join(err.split())
