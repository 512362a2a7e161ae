"""All workers end after the same step, whoever asks and whenever."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from laconic.fault.ending import Ending
from laconic.links import memory


def together(size, work):
    store = torch.distributed.HashStore()
    return memory.run(size, lambda link: work(Ending(store, store, link.rank, size), link))


def steps_until_the_end(ending, asks_at, pace=lambda: None):
    step = 0
    while ending.may_begin(step + 1):
        step += 1
        pace()
        if step == asks_at:
            ending.ask("done")
    return step, ending.reason


@pytest.mark.parametrize("size", [1, 2, 5])
def test_where_all_ask_after_one_step_that_step_is_the_last(size):
    for _ in range(20):
        assert together(size, lambda ending, link: steps_until_the_end(ending, 7)) == [(7, "done")] * size


@pytest.mark.parametrize("seed", range(10))
def test_where_one_asks_the_others_take_as_many_steps_as_the_furthest(seed):
    def work(ending, link):
        chance = random.Random(100 * seed + link.rank)

        def pace():  # others go first, so many times
            for _ in range(chance.randrange(50)):
                time.sleep(0)

        return steps_until_the_end(ending, 5 if link.rank == 1 else None, pace)

    ends = together(4, work)
    assert len(set(ends)) == 1
    assert ends[0][0] >= 5


def test_no_one_waits_for_a_peer_in_a_step_that_the_peer_does_not_take():
    def work(ending, link):  # every step is a barrier: a worker that stopped sooner would leave the rest in it for ever
        return steps_until_the_end(ending, 5 if link.rank == 1 else None, link.barrier)

    assert len(set(together(3, work))) == 1


def test_asking_again_or_inside_a_signals_handler_changes_nothing():
    def work(ending, link):
        with ending._lock:  # a handler may interrupt the main thread while it holds the lock
            ending.ask("interrupted")
            ending.ask("interrupted")
        return steps_until_the_end(ending, 1)

    ends = together(2, work)
    assert ends[0] == ends[1]
    assert ends[0][1] in ("interrupted", "done")


def test_a_store_that_is_gone_ends_the_run_at_once():
    class Gone:
        def set(self, *_):
            raise RuntimeError("connection closed")

        def wait(self, *_):
            asked.wait()
            raise RuntimeError("connection closed")

    asked = threading.Event()
    ending = Ending(Gone(), Gone(), 0, 2)
    assert ending.may_begin(1)
    ending.ask("done")
    asked.set()
    assert not ending.may_begin(2)


@pytest.mark.parametrize("asked", [(1, 3), (0, 10), (2, 1)])
def test_where_rounds_have_unequal_steps_all_end_after_the_same_round_with_all_their_steps_of_it(asked):
    """Worker r takes r + 2 steps a round; at the end of each all meet."""

    def work(ending, link):
        step = done = 0
        while ending.may_begin(1 + done):
            step += 1
            if (link.rank, step) == asked:
                ending.ask("interrupted")
            if step % (link.rank + 2) == 0:
                link.barrier()
                done += 1
        return done, step

    ends = together(3, work)
    assert len({done for done, _ in ends}) == 1
    assert [step for _, step in ends] == [ends[0][0] * (rank + 2) for rank in range(3)]
    asker, at = asked
    asked_in = -(-at // (asker + 2))
    assert asked_in <= ends[0][0] <= asked_in + 1, "asked for at a round's very end, another may have begun the next"


@pytest.mark.parametrize("given", [{"gone": lambda rank: rank == 1}, {"timeout": 0.0}])
def test_nobody_waits_for_the_statement_of_a_worker_that_is_gone_or_says_nothing(given):
    store = torch.distributed.HashStore()
    ending = Ending(store, store, 0, 2, **given)
    assert ending.may_begin(1)
    ending.ask("interrupted")
    assert not ending.may_begin(2)
    assert ending.reason == "interrupted"


def test_what_a_worker_stated_before_it_was_gone_counts():
    store = torch.distributed.HashStore()
    store.set("ending/1", "3")
    ending = Ending(store, store, 0, 2, gone=lambda rank: True)
    assert ending.may_begin(1)
    ending.ask("done")
    assert [ending.may_begin(step) for step in (2, 3, 4)] == [True, True, False]
