"""Misses: kept, read again, and what is learnt of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links.network import Connection, Network, parse
from laconic.plan import ledger
from laconic.plan.cluster import read_cluster
from laconic.plan.ledger import FILE, NEWEST, Learnt, Miss, kept_in, link_class, note, read

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


def test_a_miss_says_nothing_of_the_same_method_with_another_compressor():
    learnt = Learnt((miss(3.0)._replace(compress="int8"),))
    assert learnt.factor("ddp", SLOW) == 1
    assert learnt.factor("ddp", SLOW, {"compress": "int8"}) == pytest.approx(3 ** (1 / 3))
    assert Learnt((miss(3.0)._replace(compress='["topk(0.1)", "int8"]'),)).factor(
        "ddp", SLOW, {"compress": ["topk(0.1)", "int8"]}
    ) == pytest.approx(3 ** (1 / 3))


def test_of_a_run_whose_own_computing_was_taken_only_the_rest_is_corrected():
    # 0.6 of 1.0 s computing: the other 0.4 s took 0.8 s, so what is not computing takes twice as long.
    learnt = Learnt((miss(1.4)._replace(computing=0.6),) * 1000)
    for exposed in (0.0, 0.1, 0.4, 1.0):
        assert learnt.factor("ddp", SLOW, {}, exposed) == pytest.approx((1 + exposed) ** (NEWEST / (NEWEST + 2)))
    hidden = miss(1.4)._replace(computing=0.99)  # of what was hidden such a run says nothing
    assert Learnt((hidden,)).factor("ddp", SLOW) == 1
    early = miss(0.5)._replace(computing=0.6)  # sooner than it computed: the clocks were another worker's
    assert 0 < Learnt((early,)).factor("ddp", SLOW) < 1


@given(predicted=st.floats(0.1, 10), share=st.floats(0.0, 0.9), ratio=st.floats(0.2, 5))
def test_where_as_much_is_exposed_as_was_in_a_miss_it_says_what_it_was(predicted, share, ratio):
    computing = share * predicted
    measured = computing + ratio * (predicted - computing)
    found = miss(measured, predicted)._replace(computing=computing)
    assert found.ratio(1 - share) == pytest.approx(measured / predicted)


def test_the_newest_misses_count():
    learnt = Learnt(tuple([miss(9.0)] * 50 + [miss(1.0)] * NEWEST))
    assert learnt.factor("ddp", SLOW) == 1


def test_on_changed_links_the_misses_of_the_links_as_they_are_still_count():
    learnt, quick = Learnt((miss(3.0),)), parse("160mbit", 2)
    assert learnt.factor("ddp", quick) == 1
    assert learnt.like(SLOW).factor("ddp", quick) == learnt.factor("ddp", SLOW)


def test_links_are_not_classed_where_there_is_no_miss_of_the_method(monkeypatch):
    monkeypatch.setattr(ledger, "link_class", lambda network: 1 / 0)
    assert Learnt().factor("ddp", SLOW) == Learnt((miss(3.0),)).factor("diloco", SLOW) == 1
    assert Learnt((miss(3.0),)).band("diloco", SLOW) is None
    assert Learnt().like(SLOW) == Learnt()


@given(
    ups=st.lists(st.sampled_from([1e6, 2e6, 5e6]), min_size=2, max_size=5),
    apart=st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 4)), st.sampled_from([5e5, 3e6]), max_size=4),
)
def test_the_slowest_pair_is_that_of_all_pairs_looked_at_one_by_one(ups, apart):
    ends = tuple(Connection(up, down) for up, down in zip(ups, reversed(ups), strict=True))
    links = tuple((a, b, Connection(r, r)) for (a, b), r in apart.items() if a != b and max(a, b) < len(ups))
    network = Network(ends, links)
    pairs = [(a, b) for a in range(len(ups)) for b in range(len(ups)) if a != b]
    assert network.slowest == min(pairs, key=lambda pair: network.link(*pair).up)


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
        ("errors = 3\n", r"errors must be tables: \[\[errors\]\]"),
        ("errors = [1]\n", r"an entry of \[\[errors\]\] has method"),
        ("[[errors", "not TOML"),
    ],
)
def test_a_ledger_that_is_none_is_refused_in_a_sentence(tmp_path, text, told):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=told):
        read([tmp_path])


def test_a_cluster_file_whose_errors_are_none_is_refused_before_a_run(tmp_path):
    path = tmp_path / "mine.toml"
    for wrong, told in (("errors = 3\n", "errors must be tables"), ("errors = [1]\n", "an entry of")):
        path.write_text(wrong + CLUSTER)
        with pytest.raises(ConfigError, match=told):
            read_cluster(path)


def test_a_miss_of_an_earlier_version_is_read_with_nothing_computed_and_nothing_compressed(tmp_path):
    lines = ['method = "ddp"', 'link = "1e7 bit/s"', "workers = 2", 'workload = "x"', "predicted = 1", "measured = 2"]
    (tmp_path / FILE).write_text("\n".join(["[[errors]]", *lines]))
    assert read([tmp_path]).misses == (Miss("ddp", "1e7 bit/s", 2, "x", 1.0, 2.0, "", 0.0),)


def test_where_a_miss_cannot_be_written_it_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        note(tmp_path / "nowhere" / FILE, [miss(1.5)])


def test_a_miss_must_be_of_positive_seconds(tmp_path):
    note(tmp_path / FILE, [miss(1.0)._replace(predicted=-1.0)])
    with pytest.raises(ConfigError, match=r"predicted must be float above 0, got -1\.0"):
        read([tmp_path])
