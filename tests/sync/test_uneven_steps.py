"""Workers of unequal speed in virtual time: how many steps each takes, and that nobody pulls the result its way."""

import copy

import pytest
import torch
from torch import nn

from laconic import attach
from laconic.compress import error_feedback, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone
from laconic.links import memory
from laconic.methods import build
from laconic.sync import co2, diloco, every_step, hcef, local_steps, noloco, slowmo, uneven_steps
from tests.sync.clocks import Clocked, jitter, uneven
from tests.tiny import batch, close, digest, equal, loss, model, sgd, step, together, weights

SLOW = [0.1, 0.1, 0.1, 0.4]


def throughput(found, seconds, first=0):
    """Steps a second of all workers, as a share of the sum of their own speeds: each round waits for its last."""
    rounds = list(zip(*(taken[first:] for taken, *_ in found), strict=True))
    spent = sum(max(h * s for h, s in zip(steps, seconds, strict=True)) for steps in rounds)
    return sum(map(sum, rounds)) / spent / sum(1 / s for s in seconds)


@pytest.mark.parametrize(
    ("make", "even"),
    [
        (lambda: diloco(every=1), lambda: diloco(every=5)),
        (lambda: diloco(every=1, lr=0.5, momentum=0.5, form="heavy-ball"), None),
        (lambda: local_steps(every=1), lambda: local_steps(every=5)),
        (lambda: noloco(every=1), lambda: noloco(every=5)),
        (lambda: slowmo(every=1), lambda: slowmo(every=5)),
        (lambda: co2(every=1), lambda: co2(every=5)),
        (lambda: diloco(everyone(error_feedback(topk(0.2))), every=1), None),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_of_equal_speed_are_the_sync_with_that_period_to_the_bit(workers, make, even):
    if even is None:
        inner = make()
        talk = lambda: everyone(error_feedback(topk(0.2))) if "topk" in inner.name else everyone()  # noqa: E731
        own = {} if "topk" in inner.name else {"lr": 0.5, "momentum": 0.5, "form": "heavy-ball"}
        even = lambda: diloco(talk(), every=5, **own)  # noqa: E731
    found = uneven(uneven_steps(make(), every=5), [0.2] * workers, rounds=6)
    assert [taken for taken, *_ in found] == [[5] * 6] * workers
    plain = together(workers, even(), 30)
    for (_, _, sync), theirs in zip(found, plain, strict=True):
        assert equal(weights(sync.model), theirs)


def test_an_optimizer_that_starts_anew_each_round_does_so_at_a_rounds_end_alone():
    def counts(sync, steps):
        def each(own, net):
            return [int(state["step"]) for state in own.optimizer.state.values()][:1]

        adam = lambda net: torch.optim.Adam(net.parameters(), lr=0.01)  # noqa: E731
        return together(1, sync, steps=steps, optimizer=adam, each=each)[0]

    uneven_ = uneven_steps(slowmo(every=1, inner="reset"), every=3, least=3, most=3)
    assert counts(uneven_, 7) == counts(slowmo(every=3, inner="reset"), 7) == [[1], [2], [], [1], [2], [], [1]]


def test_with_its_bounds_at_the_period_nothing_is_measured_and_nothing_is_told():
    fixed = uneven_steps(diloco(every=1), every=3, least=3, most=3)
    assert fixed.rounds is None

    def work(link):
        link.now = None  # were it called, it would fail
        net = model()
        sync = attach(net, sgd(net), fixed, link)
        for number in range(9):
            step(net, sync, link.rank, number)
        sync.drain()
        return weights(net), link.meter.bytes_out

    def plainly(link):
        net = model()
        sync = attach(net, sgd(net), diloco(every=3), link)
        for number in range(9):
            step(net, sync, link.rank, number)
        return weights(net), link.meter.bytes_out

    for (a, sent), (b, theirs) in zip(memory.run(3, work), memory.run(3, plainly), strict=True):
        assert equal(a, b)
        assert abs(sent - theirs) < 100, "a name in attach's greeting may be longer, and no more"


def test_a_worker_4_times_slower_costs_less_than_a_tenth_of_the_throughput_and_three_tenths_without():
    found = uneven(build("uneven-diloco", {"every": 16}), SLOW, rounds=8, noise=jitter(1))
    assert throughput(found, SLOW) > 0.9
    equal_steps = [([16] * 8,)] * 4
    assert throughput(equal_steps, SLOW) < 0.31
    assert len({digest(shared) for _, shared, _ in found}) == 1


def test_all_are_ready_within_a_step_from_the_first_round_on_and_the_mean_is_about_the_nominal():
    found = uneven(uneven_steps(every=20), SLOW, rounds=5)
    rounds = list(zip(*(taken for taken, *_ in found), strict=True))
    assert rounds == [(24, 24, 24, 6)] * 5
    assert found[0][2].taken == found[3][2].taken == 5 * 19.5
    assert found[0][2].rounds == 5


def test_a_worker_that_becomes_slow_is_given_less_to_do_and_its_pause_is_no_slowness():
    slower = uneven(uneven_steps(every=10), [0.1, 0.1], rounds=40, noise=lambda r, n: 4.0 if r and n > 50 else 1.0)
    assert [taken[3] for taken, *_ in slower] == [10, 10]
    assert [taken[-1] for taken, *_ in slower] == [16, 4]
    paused = uneven(uneven_steps(every=10), [0.1, 0.1], rounds=9, noise=lambda r, n: 1e4 if r and n == 23 else 1.0)
    assert [taken for taken, *_ in paused] == [[10] * 9] * 2


# -- what is made of unequal steps ---------------------------------------------------------------------------


class Point(nn.Module):
    """Some numbers to move."""

    def __init__(self, start=0.0):
        super().__init__()
        self.at = nn.Parameter(torch.full((3,), start, dtype=torch.float64))


GOALS = torch.tensor([[1.0, -2.0, 0.5], [3.0, 4.0, -0.5]], dtype=torch.float64)


def pulled(made, data):
    """Half the squared distance to the worker's own goal."""
    return 0.5 * (made.at - data).square().sum()


def toward(seconds, method, rounds=200):
    found = uneven(
        method,
        seconds,
        rounds,
        net=Point,
        optimizer=lambda made: sgd(made, lr=0.01),
        data=lambda rank, number: GOALS[rank],
        of_loss=pulled,
    )
    return found[0][1][0]


def naive(every):
    """The plain mean of changes of unequal numbers of steps: what the scaling is there to prevent."""
    from laconic.sync.speed import steps_together

    dealt = steps_together([0.1, 0.4], every)
    rate = [1 - (1 - 0.01) ** h for h in dealt]
    return (rate[0] * GOALS[0] + rate[1] * GOALS[1]) / sum(rate)


def test_the_fixed_point_is_where_the_mean_gradient_is_zero_and_a_plain_mean_ends_at_the_fast_workers():
    middle = GOALS.mean(dim=0)
    for seconds in ([0.1, 0.4], [0.4, 0.1], [0.1, 0.1]):
        got = toward(seconds, uneven_steps(local_steps(every=1), every=5))
        torch.testing.assert_close(got, middle, rtol=0, atol=0.02 * float((GOALS[0] - GOALS[1]).norm()))
    assert (naive(5) - middle).norm() > 0.25 * (GOALS[0] - GOALS[1]).norm()


def test_on_a_slope_a_round_moves_by_the_mean_steps_times_the_mean_gradient_whoever_is_slow():
    def sloped(made, data):
        return (made.at * data).sum()

    ends = []
    for seconds in ([0.1, 0.4], [0.4, 0.1]):
        found = uneven(
            uneven_steps(local_steps(every=1), every=5),
            seconds,
            3,
            net=Point,
            optimizer=lambda made: sgd(made, lr=0.01),
            data=lambda rank, number: GOALS[rank],
            of_loss=sloped,
        )
        ends.append(found[0][1][0])
        torch.testing.assert_close(ends[-1], -0.01 * found[0][2].taken * GOALS.mean(dim=0), rtol=1e-12, atol=0)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=0)


def test_weights_that_a_sync_leaves_alone_are_scaled_too():
    """A sync that takes up only a part of the weights at a time: the rest goes on from where even steps had led."""
    plain = local_steps(every=1)

    def after_step(params, state, link):
        updates, state = plain.after_step(params, state, link)
        return {0: updates[0]}, state

    half = plain._replace(after_step=after_step)

    def work(link):
        clocked, net = Clocked(link), model()
        sync = attach(net, sgd(net), uneven_steps(half, every=2, least=2), clocked)
        start, (own, mean) = weights(net), ((2, 4.0), (6, 4.0))[link.rank]
        sync._state = sync._state._replace(round=1, steps=own, mean=mean, said=0.1)
        for number in range(own):
            before = weights(net)
            step(net, sync, link.rank, number)
        alone = copy.deepcopy(net)
        alone.load_state_dict(dict(zip(alone.state_dict(), before, strict=True)))
        optimizer = sgd(alone)
        loss(alone, batch(link.rank, own - 1)).backward()
        optimizer.step()
        ends = [s + mean / own * (w - s) for s, w in zip(start, weights(alone), strict=True)]
        return ends, weights(net)

    (ends, got), (others, theirs) = memory.run(2, work)
    close(got[:1], [(ends[0] + others[0]) / 2])
    close(got[1:], ends[1:])
    close(theirs[1:], others[1:])


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(0, 14, 4), (1, 0, 0), (2, 1, 1), (3, 9, 2), (5, 0, 0)])
def test_a_run_that_resumes_anywhere_keeps_its_plan_and_ends_with_the_same_bits(at):
    """Saved in that round after so many steps of each worker, in the middle of rounds and at their ends."""
    method = uneven_steps(diloco(every=1), every=10)
    straight = uneven(method, [0.1, 0.3], rounds=8)

    def work(link):
        clocked, net, number = Clocked(link), model(), 0
        own = [0.1, 0.3][link.rank]
        sync = attach(net, sgd(net), method, clocked)
        taken = [0]
        while sync.rounds < 8:
            clocked.seconds += own
            before = sync.rounds
            step(net, sync, link.rank, number)
            number += 1
            taken[-1] += 1
            if sync.rounds > before:
                taken.append(0)
            if (sync.rounds, taken[-1]) == (at[0], at[1 + link.rank]):
                saved = copy.deepcopy(sync.state_dict()), copy.deepcopy(net.state_dict())
                sync.drain()
                net, began = model(seed=4), sync._state.speed.began
                clocked.seconds += 1000.0  # a pause that nobody times
                sync = attach(net, sgd(net), method, clocked)
                net.load_state_dict(saved[1])
                sync.load_state_dict(saved[0])
                # As another process would find it, but for the step that it cannot have timed.
                speed = sync._state.speed._replace(session=0, began=began)
                sync._state = sync._state._replace(speed=speed)
        sync.drain()
        return taken[:-1], list(sync.weights().values()), sync

    again = memory.run(2, work)
    for (taken, shared, _), (theirs, whole, _) in zip(again, straight, strict=True):
        assert taken == theirs
        assert equal(shared, whole)


def test_a_state_can_be_taken_back_while_speeds_are_under_way():
    def work(link):
        clocked, net = Clocked(link), model()
        sync = attach(net, sgd(net), uneven_steps(every=4), clocked)
        for number in range(8):
            clocked.seconds += 0.1
            step(net, sync, link.rank, number)
        kept, before = copy.deepcopy(sync.state_dict()), copy.deepcopy(net.state_dict())
        ends = []
        for _ in range(2):
            net.load_state_dict(before)
            sync.load_state_dict(copy.deepcopy(kept))
            for number in range(8, 16):
                clocked.seconds += 0.1
                step(net, sync, link.rank, number)
            ends.append(digest(weights(net)))
        return ends

    for first, second in memory.run(2, work):
        assert first == second


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build_it", "says"),
    [
        (lambda: uneven_steps(every_step()), r"exchanges gradients.*use uneven_batches\(\)"),
        (lambda: uneven_steps(build("alone")), "exchanges nothing"),
        (lambda: uneven_steps(hcef()), "chooses its workers' steps itself"),
        (lambda: uneven_steps(uneven_steps()), "chooses its workers' steps itself"),
    ],
)
def test_a_sync_that_cannot_bear_unequal_steps_is_refused_with_what_would_work(build_it, says):
    with pytest.raises(ClashError, match=says):
        build_it()


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"least": 0}, {"most": 0}, {"every": 5, "least": 6}, {"every": 5, "most": 4}]
)
def test_bounds_that_leave_the_period_out_are_refused(settings):
    with pytest.raises(ConfigError, match="uneven_steps"):
        uneven_steps(**settings)


def test_bounds_hold_each_workers_steps():
    found = uneven(uneven_steps(every=10, least=5, most=14), [0.1, 0.8], rounds=4)
    assert [taken[-1] for taken, *_ in found] == [14, 5]
