"""The order of ways, what is refused, and what is said of it."""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links.network import Connection, Network, of_cluster, parse
from laconic.plan import ranking, reasons, site
from laconic.plan.cluster import read_cluster
from laconic.plan.job import Job, Step, of_parameters
from laconic.plan.ledger import Learnt, Miss
from laconic.plan.measured import MachineMeasured, Measured, Spread
from laconic.plan.measured_tables import read_measured, tables_of
from laconic.plan.price import RESERVE, Memory, price
from laconic.plan.prior import Prior
from laconic.plan.ranking import ALONE, IDLE, Goal, Way, priced, rank, too_large, ways_for

SHAPES = tuple((f"blocks.{i}.weight", (96, 64)) for i in range(4))
JOB = Job("small", SHAPES, 128, 1e6, 2e6, activations=40_000, optimizer=0)
STEP = Step(0.01, 0.02)
DDP, DILOCO, HALF = (
    Way("ddp", "ddp", {}),
    Way("diloco every=50", "diloco", {"every": 50}),
    Way("ddp-half", "ddp-half", {}),
)
WAYS = [DDP, HALF, DILOCO]
NO_PACE = {way.name: 0.0 for way in WAYS}


def at(link, workers=2, memory=None):
    return site.of(parse(link, workers), [STEP] * workers, memory, link)


def ranked(link, tokens=1e6, objective="time", ways=WAYS, slack=0.1, **given):
    return rank(JOB, at(link), Goal(tokens, objective, slack=slack), ways, paces=NO_PACE, **given)


def names(ranking):
    return [one.way.name for one in ranking.ranked]


def test_on_a_fast_link_the_plain_way_is_first_and_on_a_slow_one_what_talks_seldom():
    assert names(ranked("100gbit", ways=[DDP, DILOCO]))[0] == "ddp"
    assert names(ranked("1mbit", tokens=1e8))[0] == DILOCO.name


def test_where_even_seldom_is_too_often_one_machine_is_first_and_why_is_said():
    found = ranked("30kbit", ways=[DDP, HALF])
    assert names(found)[0] == ALONE
    told = reasons.lonely(found)
    assert "they are slower together than one, because each step waits" in told
    assert "One machine alone makes 4.27k tokens/s" in told


def test_the_order_is_that_of_the_objective():
    by_bytes = ranked("100gbit", objective="bytes", tokens=1e8, slack=1e3)
    assert names(by_bytes)[:2] == [ALONE, DILOCO.name]
    for objective in ("time", "bytes", "cost", "carbon"):
        found = ranked("5mbit", objective=objective, slack=1e3)
        scores = [one.score(objective) for one in found.ranked]
        assert scores == sorted(scores)
    first = ranked("5mbit").ranked[0]
    assert first.cost == pytest.approx(first.seconds / 3600 * 2 * 1.0 + first.nbytes / 1e9 * 0.09)
    busy = IDLE + (1 - IDLE) * (1 - first.price.waiting_share)
    assert 0.05 < first.price.waiting_share < 0.9
    assert first.carbon == pytest.approx(first.seconds * 2 * 300 / 3.6e6 * 400 * busy)


@pytest.mark.parametrize("objective", ["bytes", "cost", "carbon"])
def test_of_what_takes_much_longer_than_the_quickest_none_comes_first_however_little_it_spends(objective):
    found = ranked("100gbit", objective=objective, tokens=1e8)
    assert names(ranked("100gbit", objective=objective, tokens=1e8, slack=1e3))[0] == ALONE
    assert names(found)[-1] == ALONE
    limit = 1.1 * min(one.seconds for one in found.ranked)
    near = [one for one in found.ranked if one.seconds <= limit]
    assert found.ranked[: len(near)] == sorted(near, key=lambda one: one.score(objective))
    assert len(near) > 1
    if objective == "bytes":
        assert found.first.way == DILOCO


def test_the_score_is_the_time_that_the_tokens_it_needs_take():
    found = ranked("5mbit", priors={DILOCO.name: Prior(1.5, 0.0, "pilot")}).ranked
    one = next(one for one in found if one.way == DILOCO)
    assert one.progress == (1.5, "pilot", True)
    assert one.seconds == pytest.approx(1.5e6 / one.price.tokens_per_second)
    assert one.nbytes == pytest.approx(one.price.bytes_out * 2 * 1.5e6 / 256)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (0.25e6, "; a batch of 76% of this one would fit"),
        (1e5, "sharded over 4 machines (fully_shard) its weights, gradients and states would fit"),
        (
            4e4,
            "with a batch of 45% of this one and sharded over 11 machines (fully_shard) its weights, gradients and "
            "states would fit",
        ),
    ],
)
def test_what_does_not_fit_says_by_how_much_and_what_would(limit, told):
    found = rank(JOB, at("20mbit", memory=limit), Goal(1e6), [DDP], paces=NO_PACE)
    assert found.ranked == []
    why = found.refused[0].why
    assert why.startswith(f"needs 260 kB, {260.269 - limit / 1e3:.3g} kB more than")
    assert told in why


KEPT = re.compile(r"(?:with )?a batch of (?P<batch>[0-9.]+)%|over (?P<parts>[0-9]+) machines")
KEPT_BESIDE = re.compile(r"keeps at most (?P<size>[0-9.]+) (?P<unit>k|M|G|T)?B beside")


@cache
def once():
    return price(JOB, parse("20mbit", 2), [STEP] * 2, "ddp")


@given(
    sizes=st.tuples(*(st.floats(1e6, 1e12) for _ in range(2)), *(st.floats(0, 1e12) for _ in range(3))),
    share=st.floats(0.001, 0.999),
)
def test_what_is_said_to_make_it_fit_does(sizes, share):
    model, gradients, optimizer, batch, state = sizes
    found = once()
    held = Memory(*sizes, reserve=RESERVE * sum(sizes))
    limit = share * held.total
    site_of = at("20mbit", memory=limit)
    why = too_large(replace(found, memory=held), site_of)
    beside = KEPT_BESIDE.search(why)
    if beside:
        scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, None: 1.0}[beside["unit"]]
        state = float(beside["size"]) * scale
    parts = 1
    for match in KEPT.finditer(why):
        batch *= float(match["batch"]) / 100 if match["batch"] else 1.0
        parts = int(match["parts"] or parts)
    kept = (model / parts, gradients / parts, optimizer / parts, batch, state / parts)
    advised = Memory(*kept, reserve=RESERVE * sum(kept))
    assert advised.total <= limit * (1 + 1e-9), why
    assert too_large(replace(found, memory=advised), at("20mbit", memory=limit * (1 + 1e-9))) is None


def test_a_model_whose_batch_alone_is_too_much_is_told_of_both():
    job = of_parameters(7e9)
    found = rank(job, site.of(parse("1gbit", 2), [job.at(1e14)] * 2, 24e9), Goal(1e9), [DDP], paces=NO_PACE)
    assert "with a batch of 7.2% of this one and sharded over 11 machines" in found.refused[0].why


def test_what_keeps_too_much_beside_the_model_is_refused_where_the_plain_way_fits():
    found = rank(JOB, at("20mbit", memory=0.3e6), Goal(1e6), WAYS, paces=NO_PACE)
    assert DDP.name in names(found)
    refused = {one.way.name: one.why for one in found.refused}
    assert "a way that keeps at most 36.1 kB beside the model and not 197 kB would fit" in refused[DILOCO.name]


def test_one_machine_that_does_not_fit_is_refused_like_any_other_way():
    sharp = rank(JOB, at("20mbit", memory=1e5), Goal(1e6), [HALF], paces=NO_PACE)
    assert [one.way.name for one in sharp.refused] == [HALF.name, ALONE]
    assert sharp.refused[1].why.startswith("needs 260 kB, ")
    assert reasons.lonely(sharp).startswith("One machine alone does not fit; if it did it would make 4.27k tokens/s")
    assert not reasons.as_json(sharp, [])["one_machine_fits"]
    assert reasons.as_json(ranked("20mbit", ways=[DDP]), [])["one_machine_fits"]


def test_however_few_tensors_are_priced_there_are_blocks_enough_for_the_fragments_of_a_way(monkeypatch):
    job = of_parameters(1e8)
    way = Way("streaming", "streaming-diloco", {"every": 3, "overlap": 1, "fragments": 3})
    monkeypatch.setattr(ranking, "TENSORS", 16)  # as for 64 workers: two blocks would be left
    found = priced(job, site.of(parse("1gbit", 2), [job.at(1e14)] * 2), way, 0.0)
    assert found.bytes_out > 0
    assert "neighbouring blocks' together" in found.notes[-1]


def test_why_ddp_is_not_first_is_not_made_up_where_ddp_is_not_among_the_ways():
    found = ranked("20mbit", ways=[DILOCO])
    assert reasons.why(found)[1] == "ddp was not among the ways."
    assert {change.way for change in reasons.changes(found)} <= {DILOCO.name, ALONE}
    small = rank(JOB, at("20mbit", memory=0.3e6), Goal(1e6), [DDP, DILOCO], paces=NO_PACE)
    others = [one for one in small.ranked if one.way != DDP]
    gone = replace(small, ranked=others, refused=[small.refused[0]._replace(way=DDP)])
    assert reasons.why(gone)[1].startswith("ddp itself is refused here: needs ")


def test_earlier_runs_correct_a_price_and_the_terms_still_add_up():
    learnt = Learnt((Miss("ddp", "1e6 bit/s", 2, "x", 1.0, 2.0),) * 6)
    plain, right = (next(o for o in ranked("5mbit", learnt=l).ranked if o.way == DDP).price for l in (None, learnt))
    factor = 2 ** (6 / 8)
    assert right.step_seconds == pytest.approx(factor * plain.step_seconds)
    assert right.tokens_per_second == pytest.approx(plain.tokens_per_second / factor)
    assert sum(seconds for _, seconds in reasons.terms(right)) == pytest.approx(right.step_seconds)


def test_what_a_change_brings_is_not_what_another_class_of_links_has_learnt():
    learnt = Learnt((Miss("ddp", "1e7 bit/s", 2, "x", 1.0, 3.0),) * 6)
    before = ranked("80mbit", ways=[DDP], learnt=learnt)
    quick = next(c for c in reasons.changes(before, learnt) if c.what == "the slowest links twice as fast")
    plain = next(c for c in reasons.changes(ranked("80mbit", ways=[DDP])) if c.what == quick.what)
    ddp = next(one for one in before.ranked if one.way == DDP)
    factor = learnt.factor("ddp", parse("80mbit", 2))
    again = priced(JOB, before.site.quicker_links(), DDP, 0.0, learnt.like(before.site.network))
    assert again.tokens_per_second < 1.5 * ddp.price.tokens_per_second
    assert again.learnt == pytest.approx((factor - 1) * (again.step_seconds - again.learnt))
    assert quick.after >= plain.after


def test_three_sentences_say_why_with_the_largest_term_first():
    found = ranked("5mbit", tokens=1e8)
    why = reasons.why(found)
    assert len(why) == 3
    first = found.first.price
    assert reasons.terms(first)[0][0] == "computing"
    assert why[1].startswith("ddp would wait ")
    assert f"next is {found.ranked[1].way.name}" in why[2]


def test_waiting_for_a_slow_machine_is_not_blamed_on_the_network():
    uneven = site.of(parse("10gbit", 2), [STEP, STEP.times(4)])
    found = rank(JOB, uneven, Goal(1e6), [DDP], paces=NO_PACE)
    ddp = next(one for one in found.ranked if one.way == DDP)
    behind = reasons.waited_for_machines(found, ddp)
    assert behind == pytest.approx(0.045, rel=0.01)  # half of the workers, 90 ms each
    assert 0 < ddp.price.waiting - behind < 1e-3
    slow = "worker 1, whose step takes 4.0× the quickest's"
    assert f" and 45.0 ms for {slow}, and computes for only" in reasons.lonely(found)
    assert f"of its time, 37% for {slow}: it sends" in reasons.why(found)[1]
    others = replace(found, ranked=[one for one in found.ranked if one.way == DDP])
    assert "45.0 ms waiting for slower machines" in reasons.why(others)[0]
    assert "which hides behind computing" in reasons.why(others)[1]
    even = ranked("1mbit", ways=[DDP])
    assert reasons.waited_for_machines(even, even.ranked[0]) == 0


def test_two_ways_that_are_nearer_than_plans_are_right_are_said_to_be():
    near, far = Prior(1.05, 0.0, "pilot"), Prior(1.5, 0.0, "pilot")
    other = Way("the same", "ddp", {})
    told = [
        reasons.why(
            rank(
                JOB, at("100gbit"), Goal(1e6), [DDP, other], paces={"ddp": 0.0, "the same": 0.0}, priors={"the same": p}
            )
        )[2]
        for p in (near, far)
    ]
    assert "too near to tell which is better: plans like these are taken to be out by 10%" in told[0]
    assert "too near" not in told[1]
    misses = [Miss("ddp", "1e11 bit/s", 2, "x", 1.0, came) for came in (0.5, 2.0, 0.5, 2.0)]
    learnt = Learnt(tuple(misses))
    found = rank(
        JOB,
        at("100gbit"),
        Goal(1e6),
        [DDP, other],
        paces={"ddp": 0.0, "the same": 0.0},
        priors={"the same": far},
        learnt=learnt,
    )
    assert reasons.band_of(found, found.first) is not None


def test_changes_are_priced_again_and_the_best_comes_first():
    before = ranked("100mbit,10us", ways=[DDP])
    found = reasons.changes(before)
    assert {change.what for change in found} == {
        "machines twice as quick",
        "one more machine",
        "the slowest links twice as fast",
        "half the latency",
    }
    assert [change.after for change in found] == sorted(change.after for change in found)
    quick = next(change for change in found if change.what == "the slowest links twice as fast")
    sent, price = 98_304 / (100e6 / 8), before.first.price
    assert quick.after == pytest.approx(quick.before * (1 - sent / 2 / price.step_seconds), rel=0.01)
    assert reasons.told(quick, Goal(1e6), before.first).startswith("the slowest links twice as fast: ")
    assert "% less" in reasons.told(quick, Goal(1e6), before.first)


def test_only_the_slowest_links_become_faster():
    place = site.of(parse("100mbit,5ms", 3, ("1:5mbit", "0-2:1mbit")), [STEP] * 3)
    quick = place.quicker_links().network
    assert quick.link(0, 2).up == pytest.approx(2e6 / 8)
    assert quick.connections == place.network.connections
    assert place.nearer().network.connections[0].latency == pytest.approx(0.0025)


def test_other_traffic_leaves_less_of_every_link():
    place = site.of(parse("100mbit,5ms", 3, ("0-2:1mbit",)), [STEP] * 3)
    left = place.shared(0.25).network
    assert left.link(0, 1).up == pytest.approx(0.75 * 100e6 / 8)
    assert left.link(0, 2).up == pytest.approx(0.75 * 1e6 / 8)
    assert place.shared(0.0).network == place.network
    with pytest.raises(ConfigError, match="the share of the links that others take"):
        place.shared(1.0)


def test_one_more_machine_is_like_the_last_and_reaches_everyone():
    cluster = read_cluster("aws10")
    place = site.of(of_cluster(cluster, 4), [STEP] * 4)
    more = place.one_more()
    assert more.workers == 5
    for other in range(3):
        assert more.network.link(4, other) == place.network.link(3, other)
        assert more.network.link(other, 4) == place.network.link(other, 3)
    assert math.isfinite(more.network.link(4, 3).up)


def test_a_cluster_says_what_a_step_takes_and_what_fits():
    cluster = read_cluster("homes6")
    place = site.of_cluster_file(cluster, 3, JOB)
    assert [s.seconds for s in place.steps] == pytest.approx([3e6 / m.flops for m in cluster.placed(3)])
    assert place.memory == tuple(m.memory for m in cluster.placed(3))
    assert "Gflop/s" in site.described(place)


def test_a_step_that_was_probed_with_this_job_is_taken_as_it_was_measured():
    cluster = read_cluster("homes6")
    probed = MachineMeasured(
        operations=3e6, step=Spread((0.5, 0.6, 0.7)), forward=Spread((0.1,)), backward=Spread((0.3,))
    )
    first = cluster.machines[0].name
    measured = replace(cluster, measured=Measured(machines={first: probed}))
    place = site.of_cluster_file(measured, 2, JOB)
    assert place.steps[0] == pytest.approx(Step(0.1, 0.3, 0.2))
    assert place.steps[1] == site.of_cluster_file(cluster, 2, JOB).steps[1]
    other = replace(cluster, measured=Measured(machines={first: replace(probed, operations=4e6)}))
    assert site.of_cluster_file(other, 2, JOB).steps == site.of_cluster_file(cluster, 2, JOB).steps


def test_a_probed_step_is_known_again_from_its_file():
    job = replace(JOB, forward=138_166_272.0, backward=276_332_544.0)
    cluster = read_cluster("homes6")
    first = cluster.machines[0].name
    probed = MachineMeasured(
        operations=414_498_816.0, step=Spread((0.6,)), forward=Spread((0.1,)), backward=Spread((0.3,))
    )
    tables = tables_of(Measured(machines={first: probed}))
    measured = replace(cluster, measured=read_measured(tables, [first]))
    assert site.of_cluster_file(measured, 1, job).steps[0] == pytest.approx(Step(0.1, 0.3, 0.2))


def test_ways_have_periods_that_come_round_and_fragments_that_there_are():
    few = ways_for(JOB, at("20mbit"), 60)
    assert {way.settings["every"] for way in few if "every" in way.settings} == {10}
    many = ways_for(JOB, at("20mbit"), 1e5)
    assert {way.settings["every"] for way in many if "every" in way.settings} == {10, 50, 250}
    assert len({way.name for way in many}) == len(many)
    one = replace(JOB, shapes=(("weight", (10, 10)),))
    assert all(way.settings["fragments"] == 1 for way in ways_for(one, at("20mbit"), 1e5) if "overlap" in way.settings)
    uneven = site.of(parse("20mbit", 2), [STEP, STEP.times(3)])
    assert "uneven-diloco" in {way.method for way in ways_for(JOB, uneven, 1e5)}


@pytest.mark.parametrize(
    ("goal", "told"),
    [
        (Goal(1e6, "speed"), "unknown objective 'speed'"),
        (Goal(0), "--tokens must be at least 1"),
        (Goal(1e6, slack=-1), "--slack must be a number from 0 on"),
        (Goal(1e6, hour=-1), "--hour must be a number from 0 on"),
    ],
)
def test_a_goal_that_is_none_is_refused(goal, told):
    with pytest.raises(ConfigError, match=told):
        goal.checked()


def test_steps_must_take_time():
    with pytest.raises(ConfigError, match="a step must take time"):
        site.of(Network((Connection(),) * 2), [Step(0, 0)] * 2)
