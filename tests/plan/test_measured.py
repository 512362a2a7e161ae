"""What was measured: its spread, its place in a cluster file, and how a second probe refines the first."""

import statistics
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.cluster import read_cluster
from laconic.plan.measured import (
    KEPT,
    Fan,
    LinkMeasured,
    MachineMeasured,
    Measured,
    Speed,
    Spread,
    spread,
)
from laconic.plan.measured_tables import read_measured, tables_of
from laconic.plan.writing import dump, write_cluster

numbers = st.floats(1e-6, 1e12)
some = st.lists(numbers, min_size=1, max_size=12)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)

MEASURED = Measured(
    links={
        ("a", "b"): LinkMeasured(Spread((1e6, 1.1e6, 0.9e6)), Spread((9e5,)), Spread((0.01, 0.011)), True, 65536.0),
        ("b", "a"): LinkMeasured(together=Spread((5e5,)), latency=Spread((0.02,))),
    },
    machines={
        "a": MachineMeasured(
            8e9, "shakespeare", 5e9, 2048, 1e8, Spread((0.25, 0.26)), Spread((0.08,)), Spread((0.16,)), Spread((9e9,)),
            {2: Spread((3e-10,)), 8: Spread((2e-10,))}, Spread((2e9,)),
            {"topk": Speed(Spread((1e9,)), Spread((4e9,)), 0.02)},
            {2: Fan(2, Spread((1.2e6,)), 0.0)}, {2: Fan(2, Spread((2.2e6, 2.1e6)), 0.015)},
        ),
    },
    on="testbed", when="2026-01-02T03:04:05Z", seconds=12.5, nbytes=5e6, notes=("one thing",),
)  # fmt: skip


@given(values=some)
def test_a_spread_is_what_statistics_says_of_its_values(values):
    found = Spread(tuple(values))
    assert found.mean == pytest.approx(statistics.fmean(values))
    assert found.median == statistics.median(values)
    assert min(values) <= found.p10 <= found.median <= found.p90 <= max(values)
    if len(values) > 1:
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        assert (found.p10, found.p90) == pytest.approx((deciles[0], deciles[8]))


def test_measured_tables_come_back_from_a_file_as_they_were():
    assert read_measured(tomllib.loads(dump(tables_of(MEASURED))), ["a", "b"]) == MEASURED


@given(older=some, newer=some)
def test_a_second_probe_adds_its_values_and_the_newest_are_kept(older, newer):
    a = Measured({("a", "b"): LinkMeasured(alone=spread(older))})
    b = Measured({("a", "b"): LinkMeasured(alone=spread(newer))})
    both = a.and_then(b).links["a", "b"].alone
    assert both is not None
    assert both.values == tuple([*older, *newer][-KEPT:])
    assert a.and_then(Measured()).links == a.links


def test_one_way_latencies_take_the_place_of_halves():
    halves, ways = LinkMeasured(latency=Spread((0.02,))), LinkMeasured(latency=Spread((0.03,)), one_way=True)
    assert halves.and_then(ways).latency == Spread((0.03,))
    assert halves.and_then(LinkMeasured(alone=Spread((1e6,)))).latency == halves.latency


def test_steps_of_another_workload_are_not_pooled():
    before = MachineMeasured(workload="a", operations=1e9, step=Spread((1.0, 1.0)))
    after = before.and_then(MachineMeasured(workload="b", operations=2e9, step=Spread((4.0,))))
    assert (after.workload, after.step, after.flops) == ("b", Spread((4.0,)), 5e8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"wind": 1}, r"measured: unknown key 'wind'"),
        ({"links": [{"from": "a", "to": "c"}]}, r"measured link: unknown machine 'c'"),
        ({"links": [{"from": "a", "to": "b", "alone": {"mean": 3.0}}]}, r"from a to b: alone: values must be a list"),
        (
            {"links": [{"from": "a", "to": "b", "alone": {"values": [-1.0]}}]},
            r"alone must be a number from 0 on, got -1",
        ),
        ({"machines": [{"name": "a", "sums": {"two": {}}}]}, r"machine a: sums must be a whole number, got 'two'"),
        ({"machines": [{"name": "a", "compressors": {"topk": {}}}]}, r"compressors: topk: compress is missing"),
        ({"machines": {}}, r"machines must be a list of tables"),
        ({"notes": 5}, r"measured: notes must be a list of text in quotes, got 5"),
        ({"notes": "ab"}, r"measured: notes must be a list of text in quotes, got 'ab'"),
        ({"links": [{"from": "a", "to": "b", "one_way": "no"}]}, r"one_way must be true or false, got 'no'"),
        ({"seconds": 10**400}, r"measured: seconds must be a number from 0 on"),
    ],
)
def test_what_is_wrong_in_measured_tables_is_said(change, told):
    with pytest.raises(ConfigError, match=told):
        read_measured(change, ["a", "b"])


tables = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=12,
)


@given(raw=st.dictionaries(text, tables, max_size=5))
def test_what_is_dumped_is_what_toml_reads(raw):
    assert tomllib.loads(dump(raw)) == raw


def test_a_file_that_would_not_be_a_cluster_is_not_written_and_the_old_one_stays(tmp_path):
    path = tmp_path / "mine.toml"
    good = {"machines": [{"name": "a", "memory": 1e9, "flops": 1e9}]}
    assert write_cluster(path, good) == read_cluster(path)
    before = path.read_text()
    with pytest.raises(ConfigError, match=r"mine\.toml: machine a: it has no flops"):
        write_cluster(path, {"machines": [{"name": "a", "memory": 1e9}]})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]
    with pytest.raises(ConfigError, match=r"cannot be written: No such file"):
        write_cluster(tmp_path / "no" / "mine.toml", good)


def test_a_name_without_a_slash_is_a_file_to_write_and_no_shipped_cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"machines": [{"name": "a", "memory": 1e9, "flops": 1e9}]}
    for name in ("mine", "aws10"):
        assert [machine.name for machine in write_cluster(Path(name), good).machines] == ["a"]
