"""Switch: one sync until a step, another from then on."""

import pytest

from laconic import attach, build
from laconic.compress import momentum_correction, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone, pairs
from laconic.links import memory
from laconic.sync import (
    diloco,
    every_step,
    hcef,
    local_steps,
    modest,
    noloco,
    single_merge,
    streaming,
    switch,
    uneven_batches,
    walk,
)
from laconic.sync.base import among
from tests.tiny import digest, equal, model, sgd, step, together, weights


@pytest.mark.parametrize("workers", [1, 3])
def test_at_its_ends_it_is_one_half_and_the_other(workers):
    every_weight = lambda s, net: weights(net)  # noqa: E731
    for ours, theirs in (
        (switch(at=8), every_step()),
        (switch(every_step(), local_steps(every=2), at=0), local_steps(every=2)),
        (switch(local_steps(every=2), every_step(), at=9), local_steps(every=2)),
    ):
        a = together(workers, ours, 8, each=every_weight)
        b = together(workers, theirs, 8, each=every_weight)
        assert all(equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_after_the_switch_it_is_the_second_from_where_the_first_left_off():
    def by_hand(link):
        net = model()
        sync = attach(net, sgd(net), every_step(), link)
        for number in range(3):
            step(net, sync, link.rank, number)
        sync.detach()
        sync = attach(net, sgd(net), diloco(every=2), link)
        for number in range(3, 8):
            step(net, sync, link.rank, number)
        return weights(net)

    ours = together(2, switch(every_step(), diloco(every=2), at=3), 8)
    for one, other in zip(ours, memory.run(2, by_hand), strict=True):
        assert equal(one, other)


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
def test_gradients_leave_by_buckets_before_and_not_at_all_after(bucket_bytes):
    def each(sync, net):
        return digest(weights(net)), sync.link.meter.bytes_out

    runs = together(2, switch(every_step(), local_steps(every=3), at=4), 10, each=each, bucket_bytes=bucket_bytes)
    same = [a[0] == b[0] for a, b in zip(*runs, strict=True)]
    assert same == [True] * 4 + [False, False, True, False, False, True]
    sent = [b[1] - a[1] for a, b in zip(runs[0], runs[0][1:], strict=False)]
    assert [nbytes > 0 for nbytes in sent] == [True] * 4 + [False, True, False, False, True]  # step 5: all agree


@pytest.mark.parametrize("first", [every_step(), every_step(clip=1.0), local_steps(every=1)])
def test_by_default_it_switches_after_the_step_whose_learning_rate_has_halved(first):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), switch(first, local_steps(every=4)), link)
        same = []
        for number in range(7):
            if number == 3:
                sync.param_groups[0]["lr"] = 0.01
            step(net, sync, link.rank, number)
            same.append(digest(weights(net)))
        return same, sync._state.at, sync._state.first, [b.state.first for b in sync._buckets]

    one, other = memory.run(2, work)
    assert [a == b for a, b in zip(one[0], other[0], strict=True)] == [True] * 4 + [False] * 3
    assert one[1] == 4
    assert one[2] is None
    assert not any(one[3])


def test_what_is_under_way_lands_before_the_second_half_starts_from_what_all_share():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), switch(build("co2", {"every": 2}), every_step(), at=5), link)
        seen = []
        for number in range(7):
            step(net, sync, link.rank, number)
            seen.append(digest(weights(net)))
        return seen

    one, other = memory.run(2, work)
    assert one[4:] == other[4:], "step 5 is in the middle of a round, and an answer is under way"


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: switch(noloco(), every_step()), "leaves workers with different weights"),
        (lambda: switch(streaming(), local_steps()), "put it second"),
        (lambda: switch(every_step(everyone(momentum_correction(topk()))), local_steps()), "in the other half nothing"),
        (lambda: switch(every_step(), hcef()), "does not take ordinary steps"),
        (lambda: switch(uneven_batches(), local_steps()), "does not take ordinary steps"),
        (lambda: switch(every_step(), modest()), "does not take ordinary steps"),
    ],
)
def test_halves_that_cannot_follow_one_another_are_refused(build, says):
    with pytest.raises(ClashError, match=says):
        build()


def test_what_the_second_half_asks_before_the_first_step_and_after_the_last_is_asked():
    late = switch(every_step(), walk(graph="0-1,2-3"), at=1000)
    with pytest.raises(ConfigError, match="no edge joins"):
        among(late, 4)
    assert "ways on from each worker" in among(switch(every_step(), walk()), 4)
    assert switch(every_step(), single_merge()).recalibrates
    assert not switch(every_step(), local_steps()).recalibrates


def test_a_switch_before_the_start_is_refused_and_one_that_pairs_end_with_is_not():
    with pytest.raises(ConfigError, match="at must be a whole number of at least 0"):
        switch(at=-1)
    assert not switch(every_step(), noloco(pairs()), at=3).equal
    assert switch(every_step(), local_steps(), at=3).equal


def test_either_halfs_exchange_that_cannot_run_is_refused_before_the_first_step():
    def fail(x, state):
        raise RuntimeError("not here")

    bad = everyone(topk()._replace(compress=fail, name="bad"))
    for method in (switch(every_step(bad), local_steps(), 3), switch(every_step(), local_steps(bad), 3)):

        def work(link, method=method):
            net = model()
            with pytest.raises(ClashError, match=r"bad.* cannot work on"):
                attach(net, sgd(net), method, link)
            return True

        assert memory.run(1, work) == [True]


def test_only_one_half_holds_a_state_at_a_time():
    def each(sync, net):
        return sum(t.numel() for t in sync.state_dict()["tensors"].values())

    size = sum(p.numel() for p in model().parameters())
    held = together(1, switch(every_step(), diloco(every=2), at=2), 4, each=each)[0]
    assert held == [0, 2 * size, 2 * size, 2 * size]


def test_the_names_reach_the_second_half_so_that_it_can_deal_blocks():
    def each(sync, net):
        return [f.members for f in sync._state.then.state.fragments] if sync._state.then else None

    held = together(1, switch(every_step(), streaming(every=3, fragments=3), at=1), 2, each=each)[0]
    assert held == [[[0, 1], [2, 3], [4, 5]]] * 2
