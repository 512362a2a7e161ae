"""What every sync promises, checked for every name in ``sync.__all__`` and for some that overlap, measure or nest.

A worker is what :mod:`laconic.attached` makes of a sync, without a model: a few weights, a gradient that pulls them to
where this worker's data are, and plain SGD. Links are simulated, so that all runs are alike to the bit, also of a sync
that goes by its clock. What is done in a step is done in two halves, after backward and after the step, and each half
is a call that must leave what it was given as it was.
"""

import hashlib
import json
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from laconic import sync
from laconic.compress import error_feedback, topk
from laconic.errors import LaconicError
from laconic.exchange import everyone, neighbours, powersgd
from laconic.links import simulated
from laconic.links.network import parse
from laconic.state import freeze, like, thaw
from laconic.sync import (
    Sync,
    diloco,
    every_step,
    gossip,
    hcef,
    local_steps,
    single_merge,
    streaming,
    switch,
    uneven_batches,
    uneven_steps,
    walk,
)
from tests.matrix import settings

WORKERS, STEPS, RATE = 3, 8, 0.1
FINISH = 2 * STEPS  # the half after the last step's; one more ends the loop
LAST = FINISH + 2
BLOCKS = ("blocks.0", "blocks.1")
SHAPES = {"blocks.0.weight": (9, 8), "blocks.0.bias": (8,), "blocks.1.weight": (8, 5), "blocks.1.bias": (5,)}

PUBLIC = {
    name: lambda name=name: getattr(sync, name)(**settings(sync, name)) for name in sync.__all__ if name != "Sync"
}
PUBLIC["switch"] = lambda: switch(every_step(), local_steps(every=2), at=2)
NESTED = {
    "every_step(error_feedback(topk))": lambda: every_step(everyone(error_feedback(topk(0.2)))),
    "every_step(powersgd)": lambda: every_step(powersgd(1, min_rate=1.0)),
    "diloco, overlapped": lambda: diloco(everyone(error_feedback(topk(0.2))), every=2, overlap=1),
    "streaming, overlapped": lambda: streaming(every=4, fragments=2, overlap=3),
    "gossip that waits": lambda: gossip(every=2, overlap=0),
    "single_merge of all": lambda: single_merge(neighbours(budget=1.0), every=2, overlap=1),
    "switch to streaming": lambda: switch(diloco(every=2), streaming(every=2, fragments=2, overlap=1), at=4),
    "walk of two": lambda: walk(graph="complete", tokens=2, every=2, cooling=1.0),
    "uneven_steps, measured": lambda: uneven_steps(diloco(every=1), every=2),
    "uneven_batches, measured": lambda: uneven_batches(parts=4, every=2),
    "hcef, measured": lambda: hcef(least_steps=2, most_steps=2, least_density=0.1),
}
EVERY = PUBLIC | NESTED
SERVED = ["modest"]  # its protocol under way is held by a service: what that has told others stays told
FINISHED = ["gossip that waits"]  # nothing is under way after its last step
MEASURES = [name for name in NESTED if "measured" in name]  # in whose state are readings of the clock
DECIDES = ["accordion_batch"]  # by norms; without any it stays with the dearer way, as it begins
ASKS = ["co2"]  # how far the model has moved, from the second round on
NEEDS_DATA = (LaconicError, RuntimeError, NotImplementedError)

every = pytest.mark.parametrize("name", EVERY)
pure = pytest.mark.parametrize("name", [name for name in EVERY if name not in SERVED])


class Cut(Exception):
    """What somebody's link raises."""


class Saved(NamedTuple):
    """A worker between two halves as a checkpoint holds it, and what it has sent by then."""

    params: list[Tensor]
    skeleton: str
    tensors: dict[str, Tensor]
    shared: list[Tensor]
    sent: int


def drawn(seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in SHAPES.values()]


def named(params):
    return dict(zip(SHAPES, params, strict=True))


def begun(how: Sync, params: list[Tensor]) -> list[Any]:
    """The states that a sync is given: one for each bucket of gradients, where it takes them so, and one for all."""
    whole = named(params)
    buckets = [{name: p for name, p in whole.items() if name.startswith(block)} for block in BLOCKS]
    return [how.init(part) for part in ([*buckets, whole] if how.by_bucket else [whole])]


def half(how: Sync, params: list[Tensor], states: list[Any], number: int, link: Any) -> tuple[list[Tensor], list[Any]]:
    """What a worker does after a backward pass, after the optimizer's step, or after the last one."""
    step, after = divmod(number, 2)
    *buckets, state = states
    goals = drawn(1000 * step + link.rank, params[0].device)
    if step < STEPS and not after:
        link.compute(1.0)
        pulls = [p - goal for p, goal in zip(params, goals, strict=True)]
        return stepped(how, params, pulls, states, link)
    updates: Any = {}
    if step == STEPS:
        run = how.ended if after else how.finish
        if run is not None:
            updates, state = run(params, state, link)
    else:
        state = state if how.learning is None else how.learning(state, RATE)
        if how.explore is not None:
            updates, state = how.explore(params, state, link, lambda values: loss(values, goals))
        if how.after_step is not None:
            updates, state = how.after_step(params, state, link)
    return [updates[i].to(p.dtype) if i in updates else p for i, p in enumerate(params)], [*buckets, state]


def stepped(how, params, pulls, states, link):
    """The weights after a step of plain SGD with what the workers make of their gradients."""
    if how.after_backward is not None and how.by_bucket:
        sizes = [sum(name.startswith(block) for name in SHAPES) for block in BLOCKS]
        parts = [pulls[: sizes[0]], pulls[sizes[0] :]]
        pairs = zip(parts, states[:-1], strict=True)
        handles = [link.start(how.after_backward, part, state, link) for part, state in pairs]
        came = [handle.result() for handle in handles]
        pulls = [pull for part, _ in came for pull in part]
        states = [*(state for _, state in came), states[-1]]
    elif how.after_backward is not None:
        pulls, state = link.start(how.after_backward, pulls, states[-1], link).result()
        states = [state]
    rate = RATE * (1.0 if how.rate is None else how.rate(states[-1]))
    if how.explore is not None or pulls is None:
        return params, states
    return [p - rate * g.to(p.dtype) for p, g in zip(params, pulls, strict=True)], states


def loss(values, goals):
    total = sum((value - goal).square().sum() for value, goal in zip(values, goals, strict=True))
    return 0.0 if total.device.type == "meta" else float(total) / 2


def saved(how, params, state, link):
    skeleton, tensors = freeze(state)
    shared = params if how.model is None else how.model(params, state[-1])
    copies = {key: t.clone() for key, t in tensors.items()}
    return Saved(
        [p.clone() for p in params], json.dumps(skeleton), copies, [s.clone() for s in shared], link.meter.bytes_out
    )


def loaded(kept: Saved, fresh: Any) -> tuple[list[Tensor], Any]:
    """Weights and state from a checkpoint; a state that a ``fresh`` one would not take is refused."""
    state = thaw(json.loads(kept.skeleton), {key: t.clone() for key, t in kept.tensors.items()})
    like(fresh, state)
    return [p.clone() for p in kept.params], state


def bits(kept: Saved, with_state: bool = True) -> str:
    """A hash of weights and state."""
    parts = [*kept.params, *([kept.tensors[key] for key in sorted(kept.tensors)] if with_state else [])]
    raw = [t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in parts]
    return hashlib.sha256(b"".join([*raw, kept.skeleton.encode() if with_state else b""])).hexdigest()


def run(build, begin=0, start=None, cut=None, twice=False):
    """Train from the half ``begin`` on; for each worker what it was before each half, and in which one its link failed.

    From ``start``, one checkpoint a worker, or from the beginning. From the half ``cut`` on nothing is heard any more.
    ``twice``: each half is done again from what it was given.
    """

    def work(link):
        how = build()
        params, state = drawn(0), begun(how, drawn(0))
        if start is not None:
            params, state = loaded(start[link.rank], state)
        kept = {}
        for number in range(begin, LAST):
            kept[number] = before = saved(how, params, state, link)
            if number == cut:
                link.recv = deaf
            try:
                after = half(how, params, state, number, link)
            except Cut:
                assert bits(saved(how, params, state, link)) == bits(before), (
                    "what failed has changed what it was given"
                )
                return kept, number
            assert bits(saved(how, params, state, link)) == bits(before), "it has changed what it was given"
            if twice:
                again = saved(how, *half(how, params, state, number, link), link)
                assert bits(again, twice == "state") == bits(saved(how, *after, link), twice == "state")
            params, state = after
        kept[LAST] = saved(how, params, state, link)
        return kept, LAST

    return simulated.run(parse("100mbit,1ms", WORKERS), work)


def deaf(source, timeout=None):
    raise Cut(f"nothing from worker {source}")


@cache
def straight(name):
    """What each worker was before every half of a run that nothing disturbs."""
    return [kept for kept, _ in run(EVERY[name])]


def same_end(name, ran):
    """Whether a run ends as the undisturbed one does; readings of a clock that was stopped may differ."""
    ends = [(one[LAST], other[LAST]) for one, (other, _) in zip(straight(name), ran, strict=True)]
    return all(bits(one, name not in MEASURES) == bits(other, name not in MEASURES) for one, other in ends)


def test_there_is_every_public_name():
    assert len(PUBLIC) == len(sync.__all__) - 1
    for name, build in PUBLIC.items():
        assert isinstance(build(), Sync), name


@every
def test_it_moves_every_worker_and_touches_nothing_that_it_is_given(name):
    """Each half is checked as it is run."""
    for kept in straight(name):
        assert all(bool(torch.isfinite(t).all()) for t in kept[LAST].params)
        assert [(t.shape, t.dtype) for t in kept[LAST].params] == [(t.shape, t.dtype) for t in drawn(0)]
        assert bits(kept[LAST], False) != bits(kept[0], False)
    assert all(kept[LAST].sent > 0 for kept in straight(name))


@pure
def test_each_half_gives_the_same_again_from_the_same_weights_and_state(name):
    run(EVERY[name], twice="weights" if name in MEASURES else "state")


@pure
@pytest.mark.parametrize("cut", [3, 8])
def test_a_link_that_fails_leaves_weights_and_state_from_which_a_run_goes_on_to_the_same_end(name, cut):
    broken = run(EVERY[name], cut=cut)
    failed = min(number for _, number in broken)  # who needed nobody went on, and takes up with the others
    assert failed < LAST, "nobody has missed anything"
    assert same_end(name, run(EVERY[name], failed, [kept[failed] for kept, _ in broken]))


@pytest.mark.parametrize("name", [name for name, build in EVERY.items() if build().finish])
def test_what_fails_after_the_last_step_can_be_done_again(name):
    broken = run(EVERY[name], cut=FINISH)
    assert {failed for _, failed in broken} == {LAST if name in FINISHED else FINISH}
    assert same_end(name, run(EVERY[name], FINISH, [kept[FINISH] for kept, _ in broken]))


@every
def test_a_checkpoint_in_the_middle_of_a_run_goes_on_to_the_same_end(name):
    start = [kept[8] for kept in straight(name)]
    assert same_end(name, run(EVERY[name], 8, start))


@every
def test_workers_that_are_said_to_be_equal_after_a_round_are_and_others_are_not(name):
    """Rounds are of one step, of two, or of four."""
    how = EVERY[name]()
    ends = [[kept[2 * step] for kept in straight(name)] for step in range(4, STEPS + 1, 4)]
    apart = [len({bits(worker, False) for worker in workers}) for workers in ends]
    if how.equal:
        assert apart == [1] * len(ends)
        shared = [[bits(worker._replace(params=worker.shared), False) for worker in workers] for workers in ends]
        assert all(len(set(workers)) == 1 for workers in shared)
    elif name not in SERVED:  # a sample of everyone is equal, and one of a few is not
        assert max(apart) > 1


@every
def test_tensors_without_data_cost_what_real_ones_cost_or_are_refused(name):
    def work(link):
        how = EVERY[name]()
        params = drawn(0, "meta")
        state, counts = begun(how, params), []
        for number in range(LAST):
            counts.append(link.meter.bytes_out)
            try:
                params, state = half(how, params, state, number, link)
            except NEEDS_DATA:
                return counts
        return [*counts, link.meter.bytes_out]

    for counts, kept in zip(simulated.run(parse("100mbit,1ms", WORKERS), work), straight(name), strict=True):
        real = [kept[number].sent for number in range(len(counts))]
        assert (len(counts) == LAST + 1) == (name not in ASKS)
        assert counts[-1] > 0
        if name in DECIDES:
            assert all(without >= having for without, having in zip(counts, real, strict=True))
        else:
            assert counts == pytest.approx(real, rel=0.02, abs=16)
