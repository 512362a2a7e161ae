"""What a probe does in which order, what it may send, and what a limit leaves out."""

from itertools import combinations, permutations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.probing.schedule import (
    ALONE,
    FRAMES,
    INTO,
    LATENCY,
    LEAST_BYTES,
    OUT,
    TOGETHER,
    cost,
    experiments,
    fans,
    fits,
    flow_bytes,
    length,
    limits,
    most,
    rounds,
    told,
)

workers = st.integers(2, 17)


@given(n=st.integers(1, 40))
def test_in_rounds_each_pair_meets_once_and_nobody_is_in_two_pairs_at_once(n):
    met = rounds(n)
    assert sorted(pair for turn in met for pair in turn) == list(combinations(range(n), 2))
    assert len(met) == (0 if n == 1 else n - 1 + n % 2)
    for turn in met:
        busy = [worker for pair in turn for worker in pair]
        assert len(busy) == len(set(busy)) == n - n % 2


@given(n=workers, repeats=st.integers(1, 3))
def test_every_direction_is_measured_together_and_alone_and_every_worker_with_all_peers(n, repeats):
    planned = experiments(n, repeats=repeats)
    ways = sorted(permutations(range(n), 2))
    for kind in (TOGETHER, ALONE):
        flows = sorted(flow for e in planned if e.kind == kind for flow in e.flows)
        assert flows == sorted(ways * repeats)
    assert sorted(pair for e in planned if e.kind == LATENCY for pair in e.flows) == list(combinations(range(n), 2))
    for e in planned:
        if e.kind == ALONE:
            assert len(e.flows) == 1
        if e.kind == TOGETHER:
            assert len({a for a, _ in e.flows}) == len(e.flows) == len({b for _, b in e.flows})
    for kind, end in ((OUT, 0), (INTO, 1)):
        wide = [e.flows for e in planned if e.kind == kind and len(e.flows) == n - 1]
        assert sorted(flows[0][end] for flows in wide) == sorted([*range(n)] * repeats if n > 2 else [])
        assert all(len({flow[end] for flow in flows}) == 1 for flows in wide)


@given(n=workers, data=st.data())
def test_what_is_settled_is_left_out_and_nothing_else(n, data):
    ways = list(permutations(range(n), 2))
    settled = set(data.draw(st.lists(st.sampled_from(ways), unique=True)))
    planned = experiments(n, settled, repeats=1, fanned=range(n))
    left = {way for way in ways if way not in settled}
    assert {flow for e in planned if e.kind in (TOGETHER, ALONE) for flow in e.flows} == left
    assert {flow for e in planned if e.kind == LATENCY for flow in e.flows} == {(min(w), max(w)) for w in left}


@given(n=workers, seconds=st.floats(5, 500), nbytes=st.floats(1e6, 1e10))
def test_a_probe_within_its_limits_measures_each_link_and_never_sends_more_than_it_says(n, seconds, nbytes):
    planned = experiments(n)
    try:
        given_limits = limits(planned, seconds, nbytes)
    except ConfigError:
        assume(False)
    spent_seconds = spent_bytes = 0.0
    for e in planned:
        if e.essential or fits(e, given_limits, spent_seconds, spent_bytes):
            spent_bytes += cost(e, given_limits)
            spent_seconds += 0.05 + (e.kind != LATENCY) * length(given_limits, 0.0)
    assert spent_bytes <= most(planned, given_limits) * (1 + 1e-9) <= nbytes * (1 + 1e-9)
    assert spent_seconds <= seconds * (1 + 1e-9)


def test_a_limit_that_is_too_small_for_one_measurement_is_refused_with_what_it_takes():
    planned = experiments(4)
    with pytest.raises(ConfigError, match=r"12 links measured once take at least 3\.\d+ MB, and the limit is 1\.00 MB"):
        limits(planned, 60, 1e6)
    with pytest.raises(
        ConfigError, match=r"take at least 900 ms, and the links' share of the limit is 500 ms; raise --sec"
    ):
        limits(planned, 0.5, 1e9)
    least = limits(planned, 60, 12 * LEAST_BYTES * FRAMES + 1e6)
    assert least.flow_bytes >= LEAST_BYTES


def test_flows_on_long_links_last_twenty_round_trips_within_bounds():
    given_limits = limits(experiments(2), 60, 1e9)
    assert length(given_limits, 0.001) == 1.0
    assert length(given_limits, 0.1) == 2.0
    assert length(given_limits, 9.0) == 6.0


def test_what_was_left_out_is_counted_by_kind():
    planned = experiments(3, repeats=1)
    assert told(planned[:0]) == []
    (sentence,) = told([e for e in planned if e.kind in (ALONE, OUT)])
    assert sentence == "left out, for the limits: 6 flows alone, 3 times one to many"
    assert fans(2) == []
    assert fans(4) == [3, 2]


def test_the_flows_of_a_fan_share_the_bytes_of_one():
    planned = experiments(9)
    given_limits = limits(planned, 600, 1e10)
    for e in planned:
        if e.kind in (OUT, INTO):
            assert len(e.flows) * flow_bytes(e, given_limits) <= given_limits.flow_bytes
    (wide,) = [e for e in experiments(200, repeats=1) if e.kind == OUT and len(e.flows) == 199][:1]
    assert flow_bytes(wide, given_limits) == LEAST_BYTES
