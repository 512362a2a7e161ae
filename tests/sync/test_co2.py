"""CO2: the change of a round is applied one round later, whole, and by nobody's waiting."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import attach
from laconic.errors import ConfigError
from laconic.exchange import Exchange, everyone
from laconic.links import memory
from laconic.sync import co2, slowmo
from laconic.sync.co2 import aware, relief
from tests.sync.quadratic import distance
from tests.tiny import batch, close, digest, equal, loss, model, sgd, step, together, train, weights


def test_with_no_delay_it_is_slowmo_at_every_step():
    a = together(3, co2(every=2, momentum=0.3, overlap=0), steps=9, each=lambda s, net: weights(net))
    b = together(3, slowmo(every=2, momentum=0.3), steps=9, each=lambda s, net: weights(net))
    for one, other in zip(a, b, strict=True):
        assert all(equal(x, y) for x, y in zip(one, other, strict=True))


def test_alone_and_without_momentum_each_round_adds_what_the_one_before_moved():
    """x_{t+1} = x_t + (x_{t-1, tau} - x_{t-1}), against a loop of a few lines."""
    every, rounds = 2, 5

    def work(link):
        net = model()
        sync = attach(net, sgd(net), co2(every=every, momentum=0.0, gap=1.0, contraction=0.9), link)
        for number in range(every * rounds):
            step(net, sync, 0, number)
        sync.finish()
        return weights(net)

    x, change = weights(model()), None
    for number in range(rounds):
        net = model()
        with torch.no_grad():
            for p, value in zip(net.parameters(), x, strict=True):
                p.copy_(value)
        optimizer = sgd(net)
        for k in range(every):
            loss(net, batch(0, number * every + k)).backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = [b - a for a, b in zip(x, weights(net), strict=True)]
        x = [a + d for a, d in zip(x, change, strict=True)] if change else x
        change = moved
    x = [a + d for a, d in zip(x, change, strict=True)]  # the one that is under way when training ends
    close(memory.run(1, work)[0], x)


def test_the_first_answer_comes_with_the_second_round_and_finish_applies_the_last():
    def each(sync, net):
        fragment = sync._state.fragments[0]
        return fragment.rounds, fragment.flight is not None, digest(fragment.anchor)

    seen = together(2, co2(every=3), steps=10, each=each)[0]
    assert [rounds for rounds, _, _ in seen] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]
    assert [flying for _, flying, _ in seen] == [False, False, *[True] * 8]
    assert len({anchor for _, _, anchor in seen}) == 3

    def work(link):
        net = model()
        sync = attach(net, sgd(net), co2(every=3), link)
        for number in range(7):
            step(net, sync, link.rank, number)
        before = sync._state.fragments[0]
        sync.finish()
        after = sync._state.fragments[0]
        return before.rounds, after.rounds, after.flight, equal(weights(net), after.anchor), digest(after.anchor)

    got = memory.run(2, work)
    assert got[0] == got[1]
    assert got[0][:4] == (1, 2, None, True)


def test_shared_weights_velocities_and_gaps_are_the_same_on_all_workers_after_every_step():
    def each(sync, net):
        fragment = sync._state.fragments[0]
        return digest([*fragment.anchor, *fragment.velocity]), fragment.moved

    runs = together(3, co2(every=2, clip=0.5), steps=12, each=each)
    assert runs[0] == runs[1] == runs[2]
    assert len(set(runs[0])) > 4


def last_norms(**settings):
    """The norms of the velocity after each outer step, of tensors drawn anew each round."""
    sync = co2(every=1, **settings)

    def work(link):
        generator = torch.Generator().manual_seed(link.rank)
        state, norms = sync.init([torch.zeros(40), torch.zeros(3, 4)]), []
        x = [torch.zeros(40), torch.zeros(3, 4)]
        for _ in range(12):
            drawn = [p + torch.randn(p.shape, generator=generator) for p in x]
            updates, state = sync.after_step(drawn, state, link)
            x = [updates[0], updates[1]]
            norms.append(float(torch.cat([v.reshape(-1) for v in state.fragments[0].velocity]).norm()))
        return norms

    return memory.run(2, work)[0]


def test_the_velocitys_norm_over_all_tensors_is_never_more_than_the_clip():
    assert max(last_norms()) > 4
    assert all(norm <= 2.0 for norm in last_norms(clip=2.0))
    assert max(last_norms(clip=2.0)) > 1.99


@given(moved=st.floats(0, 1e9), arrived=st.floats(0, 1e9))
def test_the_gap_is_at_least_1_and_2_where_the_model_moved_by_as_much_as_the_change(moved, arrived):
    assert aware(moved, arrived) >= 1
    assert aware(0.0, arrived) == 1
    assert aware(arrived, arrived) == 2 or arrived == 0


@pytest.mark.parametrize(("lr", "gap", "stable"), [(0.49, 1, True), (0.51, 1, False), (0.9, 2, True), (1.1, 2, False)])
@pytest.mark.parametrize("contraction", [0.5, 1.0])
def test_on_a_quadratic_it_is_stable_up_to_the_derived_rate(lr, gap, stable, contraction):
    """alpha c < (1 - beta) Lambda, at beta = 0.5."""
    sync = co2(every=2, lr=lr / contraction, momentum=0.5, gap=gap, contraction=contraction * (1 if stable else 0.8))
    end = distance(sync, contraction, 1000, 2)
    assert end < 0.01 if stable else end > 100


@pytest.mark.parametrize("momentum", [0.0, 0.2, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("contraction", [0.3, 0.6, 1.0])
def test_the_measured_gap_is_worth_what_the_refusal_reckons_with(momentum, contraction):
    lr = 0.99 * relief(momentum) * (1 - momentum) / contraction
    assert distance(co2(every=1, lr=lr, momentum=momentum, contraction=contraction), contraction, 2000) < 0.01


def test_the_measured_gap_is_not_worth_twice_as_much():
    """There are limits to what it saves: it is not safe at any rate."""
    lr = 2.5 * (1 - 0.5)
    assert distance(co2(every=1, lr=lr, momentum=0.5, contraction=0.5), 1.0, 2000) > 100


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"momentum": 0.5}, r"must be under \(1 - momentum\) x 1\.35 = 0\.677, and contraction is 1; use lr under"),
        ({"momentum": 0.2, "gap": 1.0}, "use lr under 0.8, a smaller momentum, a constant gap over 1.25"),
        ({"momentum": 0.9, "lr": 0.5, "gap": 4.9}, "a contraction under 0.98"),
        ({"overlap": 0, "lr": 2.5}, r"without a round's delay .* under 2 \(1 \+ momentum\) = 2\.4"),
        ({"gap": 0.5}, "a number from 1 on"),
        ({"gap": "wary"}, "unknown co2 gap 'wary'"),
        ({"clip": 0}, "clip must be positive"),
        ({"clip": 1.0, "fragments": 2}, "clip bounds the norm of the whole velocity"),
        ({"contraction": 0}, r"contraction must be in \(0, 1\]"),
        ({"overlap": 50}, "overlap must be at most every = 48"),
        ({"mixing": 0.5}, "so that it counts twice; set mixing=0"),
    ],
)
def test_settings_outside_the_stable_region_and_those_that_clash_are_refused_with_what_would_work(settings, says):
    with pytest.raises(ConfigError, match=says):
        co2(**settings)


@pytest.mark.parametrize(("gap", "whole"), [("aware", True), (lambda moved, arrived: 2.0, True), (2.0, False)])
def test_a_gap_that_is_measured_needs_the_whole_model(gap, whole):
    assert co2(every=4, gap=gap, lr=0.5).whole == whole


def test_a_gap_of_ones_own_is_asked_for_the_two_norms_and_refused_under_1():
    asked = []

    def gap(moved, arrived):
        asked.append((moved, arrived))
        return 2.0

    together(1, co2(every=1, gap=gap, lr=0.5), steps=4)
    assert len(asked) == 3
    assert asked[0][0] == 0
    assert all(moved > 0 and arrived > 0 for moved, arrived in asked[1:])
    with pytest.raises(ConfigError, match="a divisor of stale changes is at least 1"):
        together(1, co2(every=1, gap=lambda moved, arrived: 0.5, lr=0.5), steps=4)


def test_nobody_waits_for_an_answer_that_comes_within_a_round():
    opened, started = threading.Event(), threading.Event()
    inner = everyone()

    def run(tensors, state, link):
        started.set()
        assert opened.wait(20), "the test never opened the gate"
        return inner.run(tensors, state, link)

    gate = co2(Exchange(inner.init, run, name="gate"), every=3)._replace(exchange=None)

    def work(link):
        net = model()
        sync = attach(net, sgd(net), gate, link)
        for number in range(5):  # the answer of step 3 is due after step 6
            step(net, sync, 0, number)
        assert started.wait(20)
        assert link.meter.seconds_waiting == 0
        opened.set()
        step(net, sync, 0, 5)
        return sync._state.fragments[0].rounds

    assert memory.run(1, work) == [1]


def test_it_learns_though_every_change_is_late():
    def held_out(values):
        net = model()
        with torch.no_grad():
            for p, value in zip(net.parameters(), values, strict=True):
                p.copy_(value)
        return float(loss(net, batch(99, 99, rows=256)).detach())

    end = memory.run(3, lambda link: train(link, co2(every=3), 60))[0]
    assert held_out(end) < held_out(weights(model())) - 0.2
