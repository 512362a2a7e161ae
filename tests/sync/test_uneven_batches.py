"""Batches dealt by speed: the mean over samples is what it was, whoever takes how many."""

import copy

import pytest
import torch

from laconic import attach
from laconic.compress import error_feedback, topk
from laconic.errors import ClashError, ConfigError, WorkloadError
from laconic.exchange import everyone, pairs
from laconic.links import memory
from laconic.methods import build
from laconic.sync import every_step, uneven_batches
from laconic.workloads.recut import Recut
from tests.sync.clocks import Clocked
from tests.tiny import batch, close, digest, equal, loss, model, sgd, together, weights

ROWS = 16


def stream(rank):
    """A worker's ordinary batches, one after the other."""
    number = iter(range(10**6))
    return lambda: batch(rank, next(number), rows=ROWS)


def dealt(method, seconds, steps, each=lambda sync, made: None):
    """Train workers that take so many seconds for an ordinary batch; each one's batches, weights and clock."""

    def work(link):
        clocked, net = Clocked(link), model()
        sync, cut, taken = attach(net, sgd(net), method, clocked), Recut(stream(link.rank)), []
        for _ in range(steps):
            data = cut.take(sync.share)
            taken.append(data)
            clocked.seconds += seconds[link.rank] * len(data[0]) / ROWS
            loss(net, data).backward()
            sync.step()
            sync.zero_grad()
            each(sync, net)
        return taken, weights(net)

    return memory.run(len(seconds), work)


def test_with_workers_of_equal_speed_it_is_every_step_to_the_bit():
    for talk in (everyone, lambda: everyone(error_feedback(topk(0.2)))):
        found = dealt(uneven_batches(talk(), every=3), [0.1] * 3, 10)

        def plainly(link, talk=talk):
            net = model()
            sync, draw = attach(net, sgd(net), every_step(talk()), link), stream(link.rank)
            for _ in range(10):
                loss(net, draw()).backward()
                sync.step()
                sync.zero_grad()
            return weights(net)

        for (_, ours), theirs in zip(found, memory.run(3, plainly), strict=True):
            if talk is everyone:  # buckets add in another order than all at once
                close(ours, theirs)
            else:
                assert equal(ours, theirs)


def test_with_one_part_it_is_every_step_and_says_nothing_more():
    for a, b in zip(together(2, uneven_batches(parts=1)), together(2, every_step()), strict=True):
        close(a, b)
    assert build("uneven-ddp", {"parts": 1}).share(build("uneven-ddp", {"parts": 1}).init([torch.zeros(2)])) == 1.0


def test_however_it_is_dealt_a_step_is_one_on_the_batches_of_all_put_together():
    found = dealt(uneven_batches(every=2), [0.1, 0.4, 0.2], 12)
    sizes = [[len(data[0]) for data in taken] for taken, _ in found]
    assert sizes[0][-1] > sizes[2][-1] > sizes[1][-1] > 0
    assert all(sum(step) == 3 * ROWS for step in zip(*sizes, strict=True)), "as many rows as ever"
    net = model()
    optimizer = sgd(net)
    for parts in zip(*(taken for taken, _ in found), strict=True):
        optimizer.zero_grad()
        loss(net, tuple(torch.cat(columns) for columns in zip(*parts, strict=True))).backward()
        optimizer.step()
    for _, got in found:
        close(got, weights(net))
    assert len({digest(got) for _, got in found}) == 1


def test_a_worker_4_times_slower_costs_less_than_a_tenth_of_the_throughput():
    seconds = [0.1, 0.1, 0.1, 0.4]
    found = dealt(uneven_batches(), seconds, 12)
    last = [len(taken[-1][0]) for taken, _ in found]
    spent = max(rows / ROWS * s for rows, s in zip(last, seconds, strict=True))
    assert sum(last) / ROWS / spent / sum(1 / s for s in seconds) > 0.9
    assert 4 / 0.4 / sum(1 / s for s in seconds) < 0.31, "what equal batches reach"


def test_every_row_is_used_once_and_in_its_order():
    found = dealt(uneven_batches(every=2), [0.1, 0.3], 20)
    for rank, (taken, _) in enumerate(found):
        drawn, draw = [], stream(rank)
        while sum(map(len, drawn)) < sum(len(data[0]) for data in taken):
            drawn.append(draw()[0])
        used = torch.cat([data[0] for data in taken])
        assert torch.equal(used, torch.cat(drawn)[: len(used)])


def test_a_run_that_resumes_keeps_its_shares_and_ends_with_the_same_bits():
    method, seconds = uneven_batches(everyone(error_feedback(topk(0.3))), every=4), [0.1, 0.3]
    straight = dealt(method, seconds, 21)

    def work(link):
        net, clocked, cut = model(), Clocked(link), Recut(stream(link.rank))
        sync = attach(net, sgd(net), method, clocked)
        for number in range(21):
            if number == 10:
                saved = copy.deepcopy((sync.state_dict(), net.state_dict()))
                taken, net, cut = cut.taken, model(seed=3), Recut(stream(link.rank))
                cut.skip(taken)
                sync = attach(net, sgd(net), method, clocked)
                net.load_state_dict(saved[1])
                sync.load_state_dict(saved[0])
            data = cut.take(sync.share)
            clocked.seconds += seconds[link.rank] * len(data[0]) / ROWS
            loss(net, data).backward()
            sync.step()
            sync.zero_grad()
        return weights(net)

    for got, (_, whole) in zip(memory.run(2, work), straight, strict=True):
        assert equal(got, whole)


# -- batches of any size -------------------------------------------------------------------------------------


def test_a_batch_may_be_of_tuples_lists_and_dictionaries():
    count = iter(range(100))

    def draw():
        at = 4 * next(count)
        rows = torch.arange(at, at + 4)
        return {"a": [rows, (rows * 2.0,)], "b": rows.reshape(4, 1)}

    cut = Recut(draw)
    got = [cut.take(share) for share in (0.25, 1.75, 1.0, 2.5)]
    assert [batch["a"][0].tolist() for batch in got] == [[0], [*range(1, 8)], [*range(8, 12)], [*range(12, 22)]]
    assert all(torch.equal(batch["a"][1][0], batch["a"][0] * 2.0) for batch in got)
    assert [batch["b"].shape for batch in got] == [(1, 1), (7, 1), (4, 1), (10, 1)]


def test_a_whole_batch_is_handed_on_as_it_came_whatever_it_is():
    thing = object()
    assert Recut(lambda: thing).take(1.0) is thing


@pytest.mark.parametrize(
    ("drawn", "share", "says"),
    [
        (torch.zeros(10, 2), 0.0625, "10 rows cannot be dealt in shares such as 0.0625; set parts to a number that"),
        ((torch.zeros(4), torch.zeros(5)), 0.5, r"wanted tensors with one row for each example.*got \[4\], \[5\]"),
        ("text", 0.5, "got str"),
        (torch.tensor(1.0), 0.5, "cannot be dealt by speed"),
        ([], 0.5, "got nothing"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_a_sentence(drawn, share, says):
    with pytest.raises(WorkloadError, match=says):
        Recut(lambda: drawn).take(share)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ClashError, match="uneven_batches: needs the same result on every worker"):
        uneven_batches(pairs())
    for settings in ({"parts": 0}, {"every": 0}):
        with pytest.raises(ConfigError, match="uneven_batches"):
            uneven_batches(**settings)
