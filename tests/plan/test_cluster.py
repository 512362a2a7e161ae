"""Cluster files: what they say, what is refused and in which words, and the shipped ones against their sources."""

import math
import tomllib

import pytest

from laconic.errors import ConfigError
from laconic.links.network import of_cluster
from laconic.plan.cluster import SHIPPED, read_cluster, shipped

ROOMS = """
name = "two rooms"
workers = ["attic", "attic", "cellar"]

[[machines]]
name = "attic"
memory = 16e9
flops = 20e9
group = "upstairs"

[[machines]]
name = "cellar"
memory = 8e9
flops = 5e9
up = 1e6
down = 5e6

[between]
places = ["upstairs", "cellar"]
bandwidth = [[1e9, 5e6], [1e6, 1e9]]
latency = [[0.0001, 0.02], [0.03, 0.0001]]

[[links]]
from = "attic"
to = "cellar"
bandwidth = 2e6
latency = 0.05
"""


@pytest.fixture
def written(tmp_path):
    """A cluster read from a text."""

    def read(text):
        (tmp_path / "rooms.toml").write_text(text)
        return read_cluster(tmp_path / "rooms.toml")

    return read


def test_workers_are_placed_and_lines_are_a_machines_own_before_its_groups(written):
    cluster = written(ROOMS)
    assert [machine.name for machine in cluster.placed(4)] == ["attic", "attic", "cellar", "attic"]
    network = of_cluster(cluster, 3)
    there, back, within = network.link(0, 2), network.link(2, 0), network.link(0, 1)
    assert (there.up, there.latency) == (2e6, 0.05)
    assert (back.up, back.latency) == (1e6, 0.03)
    assert (within.up, within.latency) == (1e9, 0.0001)
    assert (network.connections[2].up, network.connections[2].down) == (1e6, 5e6)
    assert network.connections[0].up == math.inf


def test_without_a_placement_workers_go_round_the_machines(written):
    cluster = written(ROOMS.replace('workers = ["attic", "attic", "cellar"]\n', ""))
    assert [machine.name for machine in cluster.placed(5)] == ["attic", "cellar", "attic", "cellar", "attic"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("memory = 8e9", "", r"machine cellar: it has no memory"),
        ("memory = 8e9", "memory = 8", r"memory is 8 bytes, under 1e\+06: is it in gigabytes\?"),
        ("flops = 5e9", "flops = 5", r"machine cellar: flops is 5 floating-point .*is it in teraflops\?"),
        pytest.param("memory = 8e9", "memory = 1" + "0" * 400, r"machine cellar: memory is inf bytes, over", id="long"),
        ("flops = 5e9", 'flops = "5 gflops"', r"flops must be a number of floating-point operations a second, got '5"),
        ("up = 1e6", "up = 8", r"machine cellar: up is 8 bytes a second, under 1000: is it in megabytes or megabits"),
        ("up = 1e6", "uplink = 8e6", r"machine cellar: unknown key 'uplink'; did you mean 'up'\?"),
        ("[1e6, 1e9]]", "[1e6]]", r"the row of cellar in bandwidth has 1 numbers, wanted 2 rows of 2 numbers"),
        ("[[1e9, 5e6], [1e6, 1e9]]", "[[1e9, 5e6]]", r"bandwidth has 1 rows, wanted 2 rows of 2"),
        ("[0.03, 0.0001]", "[30, 0.0001]", r"latency from cellar to upstairs is 30 .*: is it in milliseconds\?"),
        ("[0.03, 0.0001]", "[-0.03, 0.0001]", r"latency from cellar to upstairs must be positive, got -0.03"),
        ("[0.03, 0.0001]", "[nan, 0.0001]", r"latency from cellar to upstairs must be a number .*got nan"),
        ("5e6], [1e6", "5e13], [1e6", r"bandwidth from upstairs to cellar is 5e\+13 .*is it in bits a second\?"),
        ('places = ["upstairs", "cellar"]', 'places = ["upstars", "cellar"]', r"did you mean 'upstairs'\?"),
        ('places = ["upstairs", "cellar"]', 'places = ["cellar", "cellar"]', r"a place stands there twice"),
        ('to = "cellar"', 'to = "celler"', r"link 1: unknown place 'celler'; did you mean 'cellar'\?"),
        ("latency = 0.05", "", r"link 1: it has no latency"),
        ('["attic", "attic", "cellar"]', '["atic"]', r"unknown machine in workers: 'atic'; did you mean 'attic'\?"),
        ('["attic", "attic", "cellar"]', "3", r"workers must be a list of machines' names"),
        ('name = "cellar"\n', 'name = "attic"\n', r"2 machines are called 'attic'"),
        ('group = "upstairs"', 'group = "cellar"', r"'cellar' is a machine and a group"),
        ("[between]", "[betwen]", r"unknown key 'betwen'; did you mean 'between'\?"),
        ("[[machines]]", "[[machine]]", r"unknown key 'machine'; did you mean 'machines'\?"),
        ("name = ", "name = = ", r"not TOML"),
    ],
)
def test_what_is_wrong_is_said_with_the_file_and_the_place(written, tmp_path, old, new, told):
    assert old in ROOMS
    with pytest.raises(ConfigError, match=told) as caught:
        written(ROOMS.replace(old, new))
    assert str(tmp_path) in str(caught.value)


def test_a_pair_without_a_link_is_named(written):
    with pytest.raises(ConfigError, match=r"no link from attic to cellar; add it to \[between\]"):
        written(ROOMS.split("[between]", maxsplit=1)[0].replace('"attic", "attic"', '"attic"'))
    with pytest.raises(ConfigError, match=r"two workers are on attic, and nothing says what carries within it"):
        written(ROOMS.split("[between]", maxsplit=1)[0])


def test_a_cluster_that_does_not_exist_is_told_with_those_that_do(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown cluster 'aws11'; did you mean 'aws10'\?"):
        read_cluster("aws11")
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        read_cluster(tmp_path / "none.toml")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_cluster_names_its_source_and_joins_64_workers(name):
    cluster = read_cluster(name)
    assert cluster.source
    assert cluster.licence
    assert cluster.about
    assert of_cluster(cluster, 64).workers == 64
    raw = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
    for key in ("bandwidth", "latency"):
        assert len(raw["between"][key]) == len(cluster.machines)


def test_the_shipped_tables_have_the_units_that_their_sources_mean():
    assert {"aws10", "gcp12", "homes6"} <= set(shipped())
    aws = {m.name: m for m in read_cluster("aws10").machines}
    line = read_cluster("aws10").line(aws["Oregon"], aws["Virginia"])
    assert (line.bandwidth, line.latency) == (pytest.approx(0.79e9 / 8), pytest.approx(0.067 / 2))  # a round trip there
    gcp = {m.name: m for m in read_cluster("gcp12").machines}
    line = read_cluster("gcp12").line(gcp["Australia"], gcp["Belgium"])
    assert (line.bandwidth, line.latency) == (pytest.approx(0.00982666015625 * 2**30, rel=1e-5), 0.129)
    slipped = read_cluster("gcp12").line(gcp["NL"], gcp["London"])
    assert slipped.bandwidth == pytest.approx(0.2425 * 2**30, rel=1e-5)
    homes = {m.name: m for m in read_cluster("homes6").machines}
    assert homes["europe"].up == pytest.approx(20.7e6 / 8)
    line = read_cluster("homes6").line(homes["europe"], homes["japan"])
    assert (line.bandwidth, line.latency) == (pytest.approx(6e6 / 8), 0.252)
