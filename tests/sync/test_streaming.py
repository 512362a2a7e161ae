"""Streaming DiLoCo: the timetable, the fragments, and that the transfer really runs beside the steps."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import attach
from laconic.compress import identity
from laconic.errors import ConfigError
from laconic.exchange import Exchange, everyone
from laconic.links import memory
from laconic.sync import streaming
from laconic.sync.timetable import deal
from tests.tiny import equal, model, sgd, step, weights


class Gate:
    """An exchange whose transfers wait for the test's word."""

    def __init__(self):
        inner = everyone(identity())
        self.open, self.begun = threading.Event(), threading.Event()
        self.runs = []

        def run(tensors, state, link):
            self.runs.append([t.clone() for t in tensors])
            self.begun.set()
            assert self.open.wait(20), "the test never opened the gate"
            return inner.run(tensors, state, link)

        self.exchange = Exchange(inner.init, run, name="gate")


def gated(exchange, **settings):
    """Streaming through a gate, which is not rehearsed: nobody would open it."""
    return streaming(exchange, **settings)._replace(exchange=None)


@given(
    names=st.lists(
        st.sampled_from(["embed.w", "blocks.0.w", "blocks.0.b", "blocks.1.w", "blocks.2.w", "norm.w", "head.w"]),
        min_size=1,
        unique=True,
    ),
    fragments=st.integers(1, 4),
    pattern=st.sampled_from(["strided", "sequential"]),
)
def test_the_fragments_partition_the_parameters(names, fragments, pattern):
    blocks = {n.split(".")[1] for n in names if n.startswith("blocks")} or set(names)
    if fragments > len(blocks):
        with pytest.raises(ConfigError, match="use at most that many"):
            deal(names, fragments, pattern)
        return
    dealt = deal(names, fragments, pattern)
    assert len(dealt) == fragments
    assert all(dealt)
    assert sorted(i for members in dealt for i in members) == list(range(len(names)))


def test_blocks_are_dealt_in_turn_or_in_runs_and_ends_go_with_their_neighbours():
    names = ["embed.w", *(f"blocks.{i}.{p}" for i in range(6) for p in "wb"), "norm.w", "head.w"]
    strided, sequential = (deal(names, 3, pattern) for pattern in ("strided", "sequential"))
    assert [[names[i] for i in m] for m in strided] == [
        ["embed.w", "blocks.0.w", "blocks.0.b", "blocks.3.w", "blocks.3.b"],
        ["blocks.1.w", "blocks.1.b", "blocks.4.w", "blocks.4.b"],
        ["blocks.2.w", "blocks.2.b", "blocks.5.w", "blocks.5.b", "norm.w", "head.w"],
    ]
    assert [[names[i] for i in m] for m in sequential] == [
        ["embed.w", "blocks.0.w", "blocks.0.b", "blocks.1.w", "blocks.1.b"],
        ["blocks.2.w", "blocks.2.b", "blocks.3.w", "blocks.3.b"],
        ["blocks.4.w", "blocks.4.b", "blocks.5.w", "blocks.5.b", "norm.w", "head.w"],
    ]


def test_without_numbered_blocks_each_top_level_module_is_one():
    assert deal(["a.x.w", "a.y.w", "b.w", "c.w"], 3, "strided") == [[0, 1], [2], [3]]


@pytest.mark.parametrize(("every", "fragments", "overlap"), [(6, 3, 1), (7, 3, 0), (10, 3, 2), (4, 1, 3), (3, 3, 0)])
def test_in_any_h_steps_each_fragment_is_sent_exactly_once_and_applied_overlap_steps_later(every, fragments, overlap):
    def work(link):
        tensors = {f"blocks.{i}.w": torch.full((2,), float(i)) for i in range(3)}
        sync = streaming(every=every, fragments=fragments, overlap=overlap, mixing=0.0)
        state, params = sync.init(tensors), list(tensors.values())
        sent, applied = [], []
        for number in range(1, 4 * every + 1):
            flights = [f.flight for f in state.fragments]
            updates, state = sync.after_step(params, state, link)
            for place, fragment in enumerate(state.fragments):
                new = fragment.flight is not None and fragment.flight is not flights[place]
                started = new and (flights[place] is None or fragment.flight.due != flights[place].due)
                if started or (overlap == 0 and set(fragment.members) <= set(updates)):
                    sent.append((number, place))
                if set(fragment.members) <= set(updates):
                    applied.append((number, place))
        return sent, applied

    ((sent, applied),) = memory.run(1, work)
    for place in range(fragments):
        times = [t for t, p in sent if p == place]
        assert times == list(range((place + 1) * every // fragments, 4 * every + 1, every))
        assert [t for t, p in applied if p == place] == [t + overlap for t in times if t + overlap <= 4 * every]
    for start in range(every, 3 * every):
        window = [p for t, p in sent if start < t <= start + every]
        assert sorted(window) == list(range(fragments))


def test_the_transfer_runs_beside_the_steps_and_its_answer_is_applied_when_due():
    gate = Gate()

    def work(link):
        net = model()
        sync = attach(net, sgd(net), gated(gate.exchange, every=6, fragments=1, overlap=3, mixing=0.0), link)
        for number in range(6):
            step(net, sync, 0, number)
        assert gate.begun.wait(20)
        at_send = weights(net)
        for number in (6, 7):  # the gate is shut: these steps run while the transfer is under way
            step(net, sync, 0, number)
        meanwhile = weights(net)
        assert not equal(meanwhile, at_send)
        assert link.meter.seconds_waiting == 0
        assert sync._state.fragments[0].flight is not None
        assert equal(sync._state.fragments[0].anchor, weights(model())), "the shared weights have not moved yet"
        gate.open.set()
        step(net, sync, 0, 8)
        assert sync._state.fragments[0].flight is None
        assert equal(weights(net), sync._state.fragments[0].anchor)
        # What was sent is the drift at step 6, not what the model became meanwhile.
        for drift, start, sent in zip(gate.runs[0], weights(model()), at_send, strict=True):
            assert torch.equal(drift, start - sent)
        return True

    assert memory.run(1, work) == [True]


def test_a_step_that_is_due_waits_for_a_late_transfer():
    gate, due = Gate(), threading.Event()

    def work(link):
        net = model()
        sync = attach(net, sgd(net), gated(gate.exchange, every=2, fragments=1, overlap=1, mixing=0.0), link)
        for number in range(2):
            step(net, sync, 0, number)
        due.set()
        step(net, sync, 0, 2)
        return sync._state.fragments[0].flight

    def open_when_due():
        assert due.wait(20)
        gate.open.set()

    opener = threading.Thread(target=open_when_due)
    opener.start()
    assert memory.run(1, work) == [None]
    opener.join()


@pytest.mark.parametrize("mixing", [0.0, 0.25, 1.0])
def test_the_worker_keeps_its_share_of_its_own_weights_and_the_anchor_is_not_mixed(mixing):
    def work(link):
        x = torch.tensor([8.0 + 4 * link.rank], dtype=torch.float64)
        sync = streaming(every=1, fragments=1, overlap=0, mixing=mixing, lr=1.0, momentum=0.0)
        updates, state = sync.after_step([x], sync.init([torch.zeros(1, dtype=torch.float64)]), link)
        return float(updates[0]), float(state.fragments[0].anchor[0])

    for rank, (own, anchor) in enumerate(memory.run(2, work)):
        assert anchor == 10.0
        assert own == pytest.approx(mixing * (8 + 4 * rank) + (1 - mixing) * 10)
