"""What every method of local steps shares: the late joiner, answers a whole round late, and eager ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import attach
from laconic.compress import e3m0
from laconic.errors import ClashError, ConfigError
from laconic.exchange import Exchange, accordion, everyone
from laconic.links import memory
from laconic.sync import co2, diloco, local_steps, noloco, slowmo, streaming
from laconic.sync.rounds import fingerprint
from laconic.sync.timetable import timetable
from tests.tiny import close, digest, equal, model, sgd, step, together, weights

# -- who goes together -----------------------------------------------------------------------------------------------


def states(method, steps, workers=2):
    """The model's and the method's state of each worker after so many steps."""

    def work(link):
        net = model()
        sync = attach(net, sgd(net), method, link)
        for number in range(steps):
            step(net, sync, link.rank, number)
        sync.drain()
        return net.state_dict(), sync.state_dict()

    return memory.run(workers, work)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda saved, other: other, "worker 1 is at step 2, worker 0 at step 4"),
        (lambda saved, other: saved | {"tensors": forgotten(saved["tensors"])}, "another velocity; a state of another"),
        (lambda saved, other: None, "worker 1 is at step 0, worker 0 at step 4"),
    ],
    ids=["the state of another round", "a velocity of zero", "no state at all"],
)
@pytest.mark.parametrize("method", [diloco(every=2), slowmo(every=2), streaming(every=2, fragments=2, overlap=1)])
def test_a_worker_that_joins_with_another_state_than_the_others_is_refused(method, change, says):
    saved, other = states(method, 4), states(method, 2)

    def work(link):
        net = model()
        sync = attach(net, sgd(net), method, link)
        mine = saved[link.rank][1]
        if link.rank == 1:
            mine = change(mine, other[1][1])
        if mine is not None:
            sync.load_state_dict(mine)
        before = weights(net)
        with pytest.raises(ConfigError, match=says if link.rank == 0 else "worker 0 is at step 4"):
            step(net, sync, link.rank, 4)
        return digest(before)

    memory.run(2, work)


def forgotten(tensors):
    """A velocity of zero, as of one who has only been told the weights."""
    return {name: torch.zeros_like(t) if ".velocity." in name else t for name, t in tensors.items()}


def test_a_checkpoint_of_one_round_goes_together_and_costs_one_short_message_to_each():
    saved = states(diloco(every=3), 4, workers=3)

    def work(link):
        net = model()
        sync = attach(net, sgd(net), diloco(every=3), link)
        net.load_state_dict(saved[link.rank][0])
        sync.load_state_dict(saved[link.rank][1])
        before = link.meter.bytes_out
        step(net, sync, link.rank, 4)
        once = link.meter.bytes_out - before
        sync.state_dict()
        before = link.meter.bytes_out
        sync.load_state_dict(sync.state_dict())  # also from where it is
        return once

    assert all(0 < nbytes < 600 for nbytes in memory.run(3, work))


def test_a_fingerprint_is_of_every_bit_and_of_nothing_without_bits():
    x = [torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.ones(2, 2, dtype=torch.bfloat16)]
    flipped = [x[0].clone(), x[1]]
    flipped[0].view(torch.int32)[3] ^= 1
    assert fingerprint(x) != fingerprint(flipped)
    assert fingerprint(x) == fingerprint([t.clone() for t in x])
    assert fingerprint([torch.zeros(3, device="meta"), torch.zeros(0)]) == 0


# -- the timetable ---------------------------------------------------------------------------------------------------


@given(every=st.integers(1, 40), fragments=st.integers(1, 8), start=st.integers(0, 200))
def test_in_any_h_steps_each_fragment_leaves_exactly_once_and_all_have_left_after_the_first_h(every, fragments, start):
    if fragments > every:
        return
    plan = timetable("t", every, fragments)
    sent = [[n for n in range(1, 300) if plan.sends(n, p)] for p in range(fragments)]
    for times in sent:
        assert len([t for t in times if t <= every]) == 1
        assert (
            len([t for t in times if every <= start + every < t + every and start + every < t <= start + 2 * every])
            == 1
        )
    assert sent[-1][0] == every


# -- a whole round late ------------------------------------------------------------------------------------------------


def scalars(method, drifts, workers=2):
    """The shared weight after each round in which worker w moved by ``drifts[round][w]``, and after finish."""

    def work(link):
        x = torch.zeros(1, dtype=torch.float64)
        state, seen = method.init([x]), []
        for moves in drifts:
            updates, state = method.after_step([x + moves[link.rank]], state, link)
            x = updates[0]
            seen.append(float(x))
        updates, state = method.finish([x], state, link)
        return [*seen, float(updates[0])]

    return memory.run(workers, work)


def test_with_an_overlap_of_a_round_each_change_counts_once_a_round_later():
    drifts = [(1.0, 3.0), (10.0, 30.0), (100.0, 300.0)]
    late = scalars(diloco(every=1, overlap=1, lr=1.0, momentum=0.0), drifts)
    assert late[0] == late[1] == [0.0, 2.0, 22.0, 222.0]


def test_eager_applies_my_own_part_at_once_and_the_others_a_round_later():
    """g_t = D_i(t)/N + (mean D(t-1) - D_i(t-1)/N)."""
    drifts = [(1.0, 3.0), (10.0, 30.0), (100.0, 300.0)]
    one, other = scalars(diloco(every=1, overlap=1, lr=1.0, momentum=0.0, eager=True), drifts)
    assert one == [0.5, 2 + 5.0, 22 + 50.0, 222.0]
    assert other == [1.5, 2 + 15.0, 22 + 150.0, 222.0]


def test_eager_with_one_worker_is_plain_diloco():
    a = together(1, diloco(every=2, overlap=2, eager=True), steps=9)
    close(a[0], together(1, diloco(every=2), steps=9)[0])


def test_eager_workers_differ_by_what_the_others_moved_in_one_round_and_no_more():
    apart = together(
        3, diloco(every=2, overlap=2, lr=0.7, momentum=0.5, eager=True), 40, each=lambda s, net: weights(net)
    )
    alone = together(3, "alone", 40, each=lambda s, net: weights(net))

    def spread(runs, number):
        return max(float((a - b).abs().max()) for a, b in zip(runs[0][number], runs[1][number], strict=True))

    assert 0 < spread(apart, 39) < 0.5 * spread(alone, 39)
    assert not diloco(every=2, overlap=2, eager=True).equal


def test_flights_of_several_fragments_are_under_way_at_once_and_land_when_due():
    def each(sync, net):
        return [f.flight.due if f.flight else None for f in sync._state.fragments]

    seen = together(2, streaming(every=6, fragments=3, overlap=5), steps=9, each=each)[0]
    assert seen[1] == [7, None, None]
    assert seen[5] == [7, 9, 11]
    assert seen[6] == [None, 9, 11]
    assert seen[7] == [13, 9, 11]


@pytest.mark.parametrize("compressor", [None, e3m0()])
@pytest.mark.parametrize("overlap", [0, 2, 5, 6])
def test_anchors_are_the_same_on_three_workers_for_any_overlap(overlap, compressor):
    mixing = None if 0 < overlap < 6 else 0.0

    def each(sync, net):
        return digest([t for f in sync._state.fragments for t in [*f.anchor, *f.velocity]])

    runs = together(3, streaming(everyone(compressor), 6, 3, overlap, mixing), steps=20, each=each)
    assert runs[0] == runs[1] == runs[2]
    assert len(set(runs[0])) > 4


@pytest.mark.parametrize(
    "build",
    [
        lambda **s: diloco(every=6, **s),
        lambda **s: local_steps(every=6, **s),
        lambda **s: slowmo(every=6, **s),
        lambda **s: co2(every=6, **s),
        lambda **s: noloco(every=6, **s),
    ],
    ids=["diloco", "local_steps", "slowmo", "co2", "noloco"],
)
def test_fragments_without_overlap_are_each_as_the_whole_would_be_when_they_leave(build):
    """With one fragment that holds all there is nothing else to it; with more, each keeps its own period."""
    assert equal(together(2, build(fragments=1), steps=12)[0], together(2, build(), steps=12)[0])
    changed = together(2, build(fragments=3, overlap=1), steps=14, each=lambda s, net: s._state.fragments)[0][-1]
    assert [fragment.rounds for fragment in changed] == [2, 2, 2]


# -- warm-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nesterov", "heavy-ball", "polyak"])
def test_the_outer_rate_rises_over_the_first_rounds(form):
    def moved(warmup):
        sync = diloco(every=1, lr=0.8, momentum=0.0, form=form, warmup_rounds=warmup)

        def work(link):
            x = torch.zeros(1, dtype=torch.float64)
            state, seen = sync.init([x]), []
            for _ in range(6):
                updates, state = sync.after_step([x + 1], state, link)
                seen.append(float(updates[0] - x))
                x = updates[0]
            return seen

        return memory.run(1, work)[0]

    assert moved(0) == pytest.approx([0.8] * 6)
    assert moved(4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: diloco(every=10, overlap=11), ConfigError, "at most every = 10 steps, or a fragment is sent before"),
        (lambda: diloco(every=10, overlap=10, mixing=0.5), ClashError, "counts twice; set mixing=0"),
        (lambda: diloco(every=10, overlap=3, eager=True), ClashError, "set overlap=10, or leave eager out"),
        (lambda: diloco(warmup_rounds=-1), ConfigError, "warmup_rounds must be a whole number of at least 0"),
        (lambda: noloco(every=10, overlap=10), ClashError, "of another round than those they are mixed with"),
        (lambda: slowmo(fragments=2, pattern="striped"), ConfigError, "did you mean 'strided'"),
        (
            lambda: local_steps(accordion(everyone(), everyone()), overlap=1),
            ClashError,
            "hear of a learning-rate decay",
        ),
    ],
)
def test_what_cannot_be_overlapped_is_refused_with_the_reason(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_each_fragments_exchange_is_told_of_a_decay():
    told = []
    inner = everyone()

    def decayed(state):
        told.append(state)
        return state

    talk = Exchange(inner.init, inner.run, name="told", decayed=decayed)

    def work(link):
        net = model()
        sync = attach(net, sgd(net), diloco(talk, every=3, fragments=3), link)
        sync.param_groups[0]["lr"] = 0.001
        step(net, sync, 0, 0)
        return len(told)

    assert memory.run(1, work) == [3]
