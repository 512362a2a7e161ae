"""Workers that send, wait and pause, and flows that begin and end: one virtual clock, from event to event.

Each component of flows is a group; one queue holds the next end of each group and the moment at which each worker that
sleeps wakes. So a ring of a thousand workers costs a few operations a message, and not a thousand.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from laconic.kernels.filling import SAME, Flows, Ports, component, fill, flows, join, leave, ports
from laconic.kernels.heap import Queue, bare, drop, put, queue

NEVER = np.inf
DONE = -1  # else: the worker that waits for a message that nobody will send


class Script(NamedTuple):
    """Messages, and each worker's operations: ``t + 1`` sends message t, ``-t - 1`` waits for it, 0 lets time pass."""

    first: Any
    ops: Any
    pauses: Any
    source: Any
    target: Any
    pair: Any
    nbytes: Any
    latency: Any


class Found(NamedTuple):
    """What is found: moments of each message, and when each worker has ended. All begin as NaN."""

    begin: Any
    left: Any
    arrived: Any
    ended: Any


class Going(NamedTuple):
    """Messages on their way, by slot: which, bytes left ``since`` when, when ``due``; the group and the neighbours in
    it; the free slots and groups; and the slots whose rates are to be found anew.
    """

    message: Any
    remaining: Any
    since: Any
    due: Any
    group: Any
    following: Any
    previous: Any
    first: Any
    free: Any
    free_groups: Any
    seeds: Any
    seeded: Any
    count: Any  # of free slots, of free groups, of seeds


class Crew(NamedTuple):
    """Workers: the next operation, the message waited for, whether it is sending; and those who can go on."""

    counter: Any
    waits: Any
    sending: Any
    ready: Any
    called: Any
    count: Any


class Stage(NamedTuple):
    """All of it."""

    script: Script
    found: Found
    ports: Ports
    flows: Flows
    going: Going
    crew: Crew
    moments: Queue  # groups by number, then workers


SLOTS, GROUPS, SEEDS = 0, 1, 2


def stage(script: Script, found: Found, resources: tuple[Any, Any, Any], route: Any, in_turn: bool) -> Stage:
    """Everything before the first moment."""
    workers, messages = len(script.first) - 1, len(script.source)
    slots = max(1, min(workers, messages) if in_turn else messages)
    backwards = np.arange(slots - 1, -1, -1, dtype=np.int32)
    going = Going(
        np.full(slots, -1, np.int32), np.empty(slots), np.zeros(slots), np.full(slots, NEVER),
        *(np.full(slots, -1, np.int32) for _ in range(4)),
        backwards, backwards.copy(), np.empty(slots, np.int32), np.zeros(slots, np.bool_), np.array([slots, slots, 0]),
    )  # fmt: skip
    crew = Crew(
        script.first[:-1].copy(), np.full(workers, -1, np.int64), np.zeros(workers, np.bool_),
        np.arange(workers, dtype=np.int32), np.ones(workers, np.bool_), np.array([workers]),
    )  # fmt: skip
    return Stage(script, found, ports(*resources), flows(route, slots), going, crew, queue(slots + workers))


@bare
def _call(crew, worker):
    if not crew.called[worker]:
        crew.called[worker] = True
        crew.ready[crew.count[0]] = worker
        crew.count[0] += 1


@bare
def _seed(going, slot):
    if not going.seeded[slot]:
        going.seeded[slot] = True
        going.seeds[going.count[SEEDS]] = slot
        going.count[SEEDS] += 1


@bare
def _ungroup(going, moments, slot):
    """Take a slot out of its group; an empty group is free."""
    g = going.group[slot]
    if g < 0:
        return
    going.group[slot] = -1
    previous, following = going.previous[slot], going.following[slot]
    if previous >= 0:
        going.following[previous] = following
    else:
        going.first[g] = following
    if following >= 0:
        going.previous[following] = previous
    if going.first[g] < 0:
        drop(moments, g)
        going.free_groups[going.count[GROUPS]] = g
        going.count[GROUPS] += 1


@bare
def _gone(stage, t, now, limit):
    """Message t has left: whoever waits for it goes on, or sleeps until it is there."""
    found, crew = stage.found, stage.crew
    found.left[t] = now
    found.arrived[t] = now + stage.script.latency[t]
    worker = stage.script.target[t]
    if crew.waits[worker] == t:
        crew.waits[worker] = -1
        if found.arrived[t] <= limit:
            _call(crew, worker)
        else:
            put(stage.moments, stage.going.message.size + worker, found.arrived[t])


@bare
def _end(stage, g, now, limit, in_turn):
    """End what is due in group g; what is left of it gets new rates."""
    going, moments = stage.going, stage.moments
    least, some = NEVER, False
    slot = going.first[g]
    while slot >= 0:
        some = some or going.due[slot] <= limit
        least = min(least, going.due[slot])
        slot = going.following[slot]
    if not some:  # who was to end here first has gone to another group
        put(moments, g, least)
        return
    slot = going.first[g]
    while slot >= 0:
        following = going.following[slot]
        if going.due[slot] <= limit:
            t = going.message[slot]
            leave(stage.ports, stage.flows, slot)
            _ungroup(going, moments, slot)
            going.message[slot] = -1
            going.due[slot] = NEVER
            going.free[going.count[SLOTS]] = slot
            going.count[SLOTS] += 1
            if in_turn:
                stage.crew.sending[stage.script.source[t]] = False
                _call(stage.crew, stage.script.source[t])
            _gone(stage, t, now, limit)
        else:
            _seed(going, slot)
        slot = following


@bare
def _begin(stage, t, now):
    """Put message t on its way."""
    going, script = stage.going, stage.script
    going.count[SLOTS] -= 1
    slot = going.free[going.count[SLOTS]]
    going.message[slot] = t
    going.remaining[slot] = script.nbytes[t]
    going.since[slot] = now
    stage.flows.pair[slot] = script.pair[t]
    stage.flows.rate[slot] = 0.0
    join(stage.ports, stage.flows, slot)
    _seed(going, slot)


@bare
def _go_on(stage, worker, now, limit, in_turn):
    """Let a worker do what it can at this moment."""
    script, found, crew, moments = stage.script, stage.found, stage.crew, stage.moments
    own = stage.going.message.size + worker  # its number among the moments
    end = script.first[worker + 1]
    while crew.counter[worker] < end:
        at = crew.counter[worker]
        op = script.ops[at]
        if op < 0:
            t = -op - 1
            if np.isnan(found.left[t]):
                crew.waits[worker] = t
                return
            if found.arrived[t] > limit:
                put(moments, own, found.arrived[t])
                return
            crew.counter[worker] = at + 1
            continue
        crew.counter[worker] = at + 1
        if op == 0:
            if script.pauses[at] > 0.0:
                put(moments, own, now + script.pauses[at])
                return
            continue
        t = op - 1
        found.begin[t] = now
        if script.nbytes[t] <= 0.0 or stage.flows.route[script.pair[t], 0] < 0:
            _gone(stage, t, now, limit)
        else:
            _begin(stage, t, now)
            if in_turn:
                crew.sending[worker] = True
                return
    if np.isnan(found.ended[worker]) and not crew.sending[worker]:
        found.ended[worker] = now


@bare
def _refill(stage, seed, stamp, now):
    """New rates for the component of a slot, which becomes a group of its own."""
    going, flows, moments = stage.going, stage.flows, stage.moments
    count, resources = component(stage.ports, flows, seed, stamp)
    fill(stage.ports, flows, count, resources)
    for i in range(count):
        _ungroup(going, moments, flows.member[i])
    going.count[GROUPS] -= 1
    g = going.free_groups[going.count[GROUPS]]
    least, first = NEVER, -1
    for i in range(count):
        slot = flows.member[i]
        old = flows.old[slot]
        if abs(flows.rate[slot] - old) > SAME * old:
            going.remaining[slot] = max(0.0, going.remaining[slot] - old * (now - going.since[slot]))
            going.since[slot] = now
            going.due[slot] = now + going.remaining[slot] / flows.rate[slot]
        else:
            flows.rate[slot] = old
        least = min(least, going.due[slot])
        going.group[slot] = g
        going.previous[slot] = -1
        going.following[slot] = first
        if first >= 0:
            going.previous[first] = slot
        first = slot
    going.first[g] = first
    put(moments, g, least)


@bare
def play(stage, in_turn, slack, rates):
    """Run every worker's program. ``rates`` not empty: only fill in those of all that is sent at moment 0."""
    going, crew, moments = stage.going, stage.crew, stage.moments
    slots = going.message.size
    now, stamp = 0.0, 0
    while crew.count[0] > 0 or moments.size[0] > 0:
        if crew.count[0] == 0:
            now = max(now, moments.keys[moments.items[0]])
        limit = now + slack * now
        while moments.size[0] > 0 and moments.keys[moments.items[0]] <= limit:
            item = moments.items[0]
            drop(moments, item)
            if item >= slots:
                _call(crew, item - slots)
            else:
                _end(stage, item, now, limit, in_turn)
        while crew.count[0] > 0:
            crew.count[0] -= 1
            worker = crew.ready[crew.count[0]]
            crew.called[worker] = False
            _go_on(stage, worker, now, limit, in_turn)
        stamp += 1
        for i in range(going.count[SEEDS]):
            seed = going.seeds[i]
            going.seeded[seed] = False
            if going.message[seed] >= 0 and stage.flows.seen[seed] != stamp:
                _refill(stage, seed, stamp, now)
        going.count[SEEDS] = 0
        if rates.size > 0:
            for slot in range(slots):
                if going.message[slot] >= 0:
                    rates[going.message[slot]] = stage.flows.rate[slot]
            return DONE
    for worker in range(crew.counter.size):
        if crew.counter[worker] < stage.script.first[worker + 1]:
            return worker
    return DONE
