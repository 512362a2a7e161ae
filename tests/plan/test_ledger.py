"""Misses: kept, read again, and what is learnt of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links.network import Network, parse
from laconic.plan.cluster import read_cluster
from laconic.plan.ledger import FILE, Learnt, Miss, kept_in, link_class, note, read

SLOW = parse("20mbit,5ms", 2)
CLUSTER = """
[[machines]]
name = "a"
memory = 1e9
flops = 1e9
[[machines]]
name = "b"
memory = 1e9
flops = 1e9
[between]
places = ["a", "b"]
bandwidth = [[1e6, 1e6], [1e6, 1e6]]
latency = [[0.0, 0.0], [0.0, 0.0]]
"""


def miss(measured, predicted=1.0, method="ddp", link="1e7 bit/s"):
    return Miss(method, link, 2, "shakespeare", predicted, measured)


@given(st.lists(st.floats(0.2, 5), max_size=8))
def test_a_correction_lies_between_none_and_the_mean_miss_and_comes_nearer_with_every_run(ratios):
    found = Learnt(tuple(miss(ratio) for ratio in ratios)).factor("ddp", SLOW)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 1.0
    assert min(1, mean) - 1e-9 <= found <= max(1, mean) + 1e-9
    more = Learnt(tuple(miss(ratio) for ratio in ratios * 50)).factor("ddp", SLOW)
    assert abs(math.log(more / mean)) <= abs(math.log(found / mean)) + 1e-9


def test_a_miss_says_nothing_of_another_method_or_of_links_of_another_class():
    learnt = Learnt((miss(3.0),))
    assert learnt.factor("ddp", SLOW) > 1.3
    assert learnt.factor("diloco", SLOW) == 1
    assert learnt.factor("ddp", parse("500mbit", 2)) == 1


def test_how_far_runs_were_apart_is_a_band_about_the_corrected_prediction():
    ratios = (1.1, 1.2, 1.3, 1.6)
    learnt = Learnt(tuple(miss(ratio) for ratio in ratios))
    low, high = (end * learnt.factor("ddp", SLOW) for end in learnt.band("ddp", SLOW))
    assert sum(low <= ratio <= high for ratio in ratios) == 3
    assert low * high == pytest.approx(math.prod(ratios) ** 0.5)
    assert learnt.band("diloco", SLOW) is None
    assert Learnt((miss(1.1),)).band("ddp", SLOW) is None


def test_links_are_classed_by_their_slowest_pair():
    assert link_class(SLOW) == link_class(parse("99mbit", 3)) == link_class(parse("10mbit", 2)) == "1e7 bit/s"
    assert link_class(parse("1gbit", 3, ("1:5mbit",))) == "1e6 bit/s"
    assert link_class(Network(parse("1gbit", 1).connections)) == "unlimited"


def test_misses_are_kept_in_a_file_that_is_read_again(tmp_path):
    first, second = miss(1.25), miss(0.5, 0.25, "diloco")
    note(tmp_path / FILE, [first])
    note(tmp_path / FILE, [second])
    assert read([tmp_path]).misses == (first, second)


def test_a_cluster_file_keeps_its_own_misses_and_is_still_a_cluster_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CLUSTER)
    before = read_cluster(path)
    assert kept_in(str(path), tmp_path / "run") == path
    assert kept_in("aws10", tmp_path / "run") == tmp_path / "run" / FILE
    note(path, [miss(1.5)])
    assert read_cluster(path).lines == before.lines
    assert read([path]).misses == (miss(1.5),)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[errors]]\nmethod = 3\n", r"an entry of \[\[errors\]\] has method, link"),
        ("errors = [1]\n", r"an entry of \[\[errors\]\] has method"),
        ("[[errors", "not TOML"),
    ],
)
def test_a_ledger_that_is_none_is_refused_in_a_sentence(tmp_path, text, told):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=told):
        read([tmp_path])


def test_a_miss_must_be_of_positive_seconds(tmp_path):
    note(tmp_path / FILE, [miss(1.0)._replace(predicted=-1.0)])
    with pytest.raises(ConfigError, match=r"predicted must be float above 0, got -1\.0"):
        read([tmp_path])
