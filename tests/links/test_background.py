"""The lane: first in, first out, one at a time, and nothing after an error."""

import threading

import pytest
import torch

from laconic.errors import ConfigError
from laconic.links.background import Lane
from laconic.links.meter import Meter


def test_what_is_started_runs_in_order_one_at_a_time_on_one_thread():
    lane, running, order, threads = Lane(Meter()), threading.Lock(), [], set()

    def work(n):
        assert running.acquire(blocking=False), "two at once"
        order.append(n)
        threads.add(threading.get_ident())
        running.release()
        return n * n

    handles = [lane.start(work, n) for n in range(50)]
    assert [h.result() for h in handles] == [n * n for n in range(50)]
    assert order == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    lane.close()


def test_the_caller_goes_on_while_the_lane_works():
    lane, gate = Lane(Meter()), threading.Event()
    handle = lane.start(lambda: gate.wait(10))
    assert not handle.done()
    gate.set()
    assert handle.result() is True
    assert handle.done()
    lane.close()


def test_an_error_is_raised_to_whoever_asks_and_what_was_queued_behind_it_does_not_run():
    lane, gate, ran = Lane(Meter()), threading.Event(), []

    def fail():
        gate.wait(10)
        raise OSError("the wire is cut")

    handles = [lane.start(lambda: "before"), lane.start(fail), lane.start(ran.append, 1)]
    gate.set()
    assert handles[0].result() == "before"
    for _ in range(2):
        for handle in handles[1:]:
            with pytest.raises(OSError, match="the wire is cut"):
                handle.result()
    late = lane.start(ran.append, 2)
    with pytest.raises(OSError, match="the wire is cut"):
        late.result()
    assert ran == []
    lane.close()


def test_nothing_can_be_started_once_the_lane_is_closed_but_what_was_queued_still_runs():
    lane = Lane(Meter())
    handle = lane.start(lambda: "queued")
    lane.close()
    assert handle.result() == "queued"
    with pytest.raises(ConfigError, match="it is closed"):
        lane.start(lambda: "late")
    lane.close()


def test_the_time_waited_for_a_result_is_counted_and_what_was_hidden_is_not():
    seconds, waited_for, hidden = [0.0], threading.Event(), threading.Event()

    def clock():
        now = seconds[0]
        waited_for.set()  # who waits looks at the clock first
        return now

    def work():
        assert waited_for.wait(10)
        seconds[0] += 7.0

    meter = Meter(clock=clock)
    lane = Lane(meter)
    handle = lane.start(work)
    handle.result()
    assert meter.seconds_waiting == 7.0
    handle.result()
    behind = lane.start(work)
    lane.start(hidden.set)  # begins once what is before it has ended
    assert hidden.wait(10)
    behind.result()
    assert (seconds[0], meter.seconds_waiting) == (14.0, 7.0)
    lane.close()


def test_waiting_leaves_out_what_another_thread_compressed_meanwhile():
    seconds, begun, waited_for = [0.0], threading.Event(), threading.Event()
    meter = Meter(clock=lambda: seconds[0])

    def work():
        with meter.compressing():
            begun.set()
            assert waited_for.wait(10)
            seconds[0] += 5.0
        seconds[0] += 3.0
        with meter.compressing():
            seconds[0] += 11.0

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    seconds[0] += 2.0  # compressed while nobody waited
    with meter.waiting():
        waited_for.set()
        thread.join()
    assert meter.seconds_compressing == 2.0 + 5.0 + 11.0
    assert meter.seconds_waiting == 3.0


def test_the_lane_computes_with_as_many_threads_as_its_starter():
    lane = Lane(Meter())
    assert lane.start(torch.get_num_threads).result() == torch.get_num_threads() == 1
    lane.close()
