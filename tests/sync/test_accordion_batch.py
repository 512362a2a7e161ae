"""Accordion on the batch size: what is accumulated, when it leaves, and what it steps with."""

import math

import pytest
import torch

from laconic import attach
from laconic.compress import error_feedback, topk
from laconic.errors import ClashError, ConfigError, NotANumber
from laconic.exchange import accordion, everyone, pairs
from laconic.links import memory
from laconic.sync import accordion_batch, every_step
from tests.tiny import batch, close, equal, loss, model, sgd, step, together, weights


def watch(sync, net):
    return sync._state.light, sync._state.held, sync.link.meter.bytes_out, weights(net)


def test_with_both_levels_1_it_is_every_step_to_the_bit():
    talk = everyone(error_feedback(topk(0.2)))
    assert equal(together(2, accordion_batch(talk, 1, 1, every=3), 9)[0], together(2, every_step(talk), 9)[0])


def test_so_many_passes_are_one_step_on_their_batches_together_whoever_clears_the_gradients():
    def work(link):
        net = model()
        sync = attach(net, sgd(net, momentum=0.9), accordion_batch(light=3, heavy=3, every=100), link)
        for number in range(6):
            step(net, sync, link.rank, number)  # it clears the gradients after every pass
        return weights(net)

    net = model()
    optimizer = sgd(net, momentum=0.9)
    for first in (0, 3):
        optimizer.zero_grad()
        for number in range(first, first + 3):
            for worker in range(2):
                (loss(net, batch(worker, number)) / 6).backward()
        optimizer.step()
    for got in memory.run(2, work):
        close(got, weights(net))


def test_a_pass_that_is_held_back_sends_nothing_and_moves_nothing():
    seen = together(2, accordion_batch(light=4, heavy=4), 8, each=watch)[0]
    for number in range(1, 8):
        (_, held, sent, now), (_, _, before, last) = seen[number], seen[number - 1]
        if number % 4 == 3:
            assert held == 0
            assert sent > before
            assert not equal(now, last)
        else:
            assert held == number % 4 + 1
            assert sent == before
            assert equal(now, last)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, [1] * 16), (math.inf, [1] * 8 + [0, 0, 1, 0, 0, 1, 0, 0])])
def test_it_is_light_for_two_windows_and_then_as_eta_says(eta, steps):
    seen = together(2, accordion_batch(heavy=3, every=4, eta=eta), 16, each=watch)
    moved = [a[3] for a in seen[0]]
    assert [int(not equal(a, b)) for a, b in zip([weights(model()), *moved], moved, strict=False)] == steps
    assert [a[:2] for a in seen[0]] == [a[:2] for a in seen[1]]


def test_at_a_decay_it_is_light_at_that_step_and_what_was_held_is_not_lost():
    def work(link):
        net = model()
        optimizer = sgd(net)
        sync = attach(net, optimizer, accordion_batch(light=1, heavy=10, every=2, eta=math.inf), link)
        held = []
        for number in range(11):
            if number == 7:
                optimizer.param_groups[0]["lr"] = 0.01
            step(net, sync, link.rank, number)
            held.append((sync._state.held, sync._state.sent))
        return held

    # Passes 4, 5 and 6 are held; at pass 7 the mean of four leaves.
    assert memory.run(2, work)[0][4:9] == [(1, 1), (2, 1), (3, 1), (0, 4), (1, 4)]


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_scale_lr_steps_with_so_many_times_the_rate_and_a_schedule_never_sees_it(name):
    def work(link, scale, lr):
        net = model()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        sync = attach(net, optimizer, accordion_batch(light=1, heavy=4, every=2, eta=math.inf, scale_lr=scale), link)
        rates = []
        for number in range(12):
            step(net, sync, link.rank, number)
            schedule.step()
            rates.append(optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([lr * 0.9 ** (i + 1) for i in range(12)])
        return weights(net)

    plain, scaled = (memory.run(2, lambda link, s=s: work(link, s, 0.01))[0] for s in (False, True))
    assert not equal(plain, scaled)

    def fourfold(link):
        net = model()
        optimizer = getattr(torch.optim, name)(net.parameters(), lr=0.01)
        sync = attach(net, optimizer, accordion_batch(light=1, heavy=4, every=2, eta=math.inf), link)
        for number in range(12):
            optimizer.param_groups[0]["lr"] = 0.01 * 0.9**number * (4 if number >= 4 else 1)
            step(net, sync, link.rank, number)
        return weights(net)

    close(scaled, memory.run(2, fourfold)[0], 1e-14)


def test_clipping_bounds_the_gradient_that_is_stepped_with_and_held_passes_are_not_clipped():
    def work(link, clip):
        net = model()
        sync = attach(net, sgd(net), accordion_batch(light=2, heavy=2), link, clip=clip)
        for number in range(2):
            step(net, sync, link.rank, number)
        return weights(net)

    free, wide, tight = (memory.run(2, lambda link, c=c: work(link, c))[0] for c in (None, 1e9, 1e-3))
    assert equal(free, wide)
    moved = sum(float((a - b).square().sum()) for a, b in zip(tight, weights(model()), strict=True)) ** 0.5
    assert moved == pytest.approx(0.1 * 1e-3, rel=1e-3)  # one step, at lr 0.1


def test_what_clashes_is_refused():
    with pytest.raises(ClashError, match="same result on every worker"):
        accordion_batch(pairs())
    with pytest.raises(ClashError, match="has to hear of a learning-rate decay"):
        accordion_batch(accordion())
    with pytest.raises(ConfigError, match="heavy must be a whole number"):
        accordion_batch(heavy=0)


def test_a_nan_never_enters_the_sum():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), accordion_batch(light=4, heavy=4), link)
        step(net, sync, 0, 0)
        x, y = batch(0, 1)
        loss(net, (x * math.inf, y)).backward()
        with pytest.raises(NotANumber, match="worker 0: gradient"):
            sync.step()
        return all(bool(torch.isfinite(t).all()) for t in sync._state.pending) and sync._state.held == 1

    assert memory.run(1, work) == [True]
