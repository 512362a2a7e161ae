"""Flows that share resources: who is joined to whom, and max-min fair rates by progressive filling.

A flow takes one rate from every resource of its route. A max-min allocation of one component (flows that are joined by
shared resources, directly or over others) does not hang on another's, so only the components in which something began
or ended are filled anew.

Active flows lie in slots; entry ``slot * depth + k`` is a flow's place in the list of its k-th resource's users.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from laconic.kernels.heap import Queue, bare, drop, put, queue

SAME = 1e-12  # of a rate: under it, it is the same rate


class Ports(NamedTuple):
    """Resources: bytes a second, incast's degree and seconds a byte; the first entry of their users' list, how many
    those are, and the rest for filling: a stamp, what is spare, users without a rate yet, and the order of shares.
    """

    capacity: Any
    degree: Any
    epsilon: Any
    head: Any
    users: Any
    seen: Any
    spare: Any
    open: Any
    touched: Any
    shares: Queue


class Flows(NamedTuple):
    """Slots: each one's pair, of which ``route`` is a row, its rate and the one before, whether that is settled, and a
    stamp; a component's members; and each entry's neighbours in its list.
    """

    route: Any
    pair: Any
    rate: Any
    old: Any
    settled: Any
    seen: Any
    member: Any
    after: Any
    before: Any


def ports(capacity: Any, degree: Any, epsilon: Any) -> Ports:
    """Resources that nobody uses yet."""
    n = len(capacity)
    users = np.full(n, -1, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int64)
    return Ports(capacity, degree, epsilon, *users, np.empty(n), np.empty(n, np.int32), np.empty(n, np.int32), queue(n))


def flows(route: Any, slots: int) -> Flows:
    """Empty slots for flows on the rows of ``route``."""
    depth = route.shape[1]
    entries = [np.full(slots * depth, -1, np.int32) for _ in range(2)]
    stamps = np.zeros(slots, np.bool_), np.zeros(slots, np.int64), np.empty(slots, np.int32)
    return Flows(route, np.zeros(slots, np.int32), np.zeros(slots), np.zeros(slots), *stamps, *entries)


@bare
def join(ports, flows, slot):
    """Enter the flow in a slot into the lists of its resources."""
    depth = flows.route.shape[1]
    for k in range(depth):
        r = flows.route[flows.pair[slot], k]
        if r < 0:
            break
        entry, first = slot * depth + k, ports.head[r]
        flows.before[entry] = -1
        flows.after[entry] = first
        if first >= 0:
            flows.before[first] = entry
        ports.head[r] = entry
        ports.users[r] += 1


@bare
def leave(ports, flows, slot):
    """Take it out of them."""
    depth = flows.route.shape[1]
    for k in range(depth):
        r = flows.route[flows.pair[slot], k]
        if r < 0:
            break
        entry = slot * depth + k
        before, after = flows.before[entry], flows.after[entry]
        if before >= 0:
            flows.after[before] = after
        else:
            ports.head[r] = after
        if after >= 0:
            flows.before[after] = before
        ports.users[r] -= 1


@bare
def component(ports, flows, seed, stamp):
    """Gather the component of a slot in ``member`` and ``touched``; returns how many flows and resources it has."""
    depth = flows.route.shape[1]
    flows.seen[seed] = stamp
    flows.member[0] = seed
    count, looked, resources = 1, 0, 0
    while looked < count:
        slot = flows.member[looked]
        looked += 1
        for k in range(depth):
            r = flows.route[flows.pair[slot], k]
            if r < 0:
                break
            if ports.seen[r] == stamp:
                continue
            ports.seen[r] = stamp
            ports.touched[resources] = r
            resources += 1
            entry = ports.head[r]
            while entry >= 0:
                other = entry // depth
                if flows.seen[other] != stamp:
                    flows.seen[other] = stamp
                    flows.member[count] = other
                    count += 1
                entry = flows.after[entry]
    return count, resources


@bare
def carried(capacity, degree, epsilon, users):
    """What a resource carries under so many flows: each beyond incast's degree adds ``epsilon`` seconds a byte."""
    over = users + 1 - degree
    if epsilon > 0.0 and over > 0.0:
        return 1.0 / (1.0 / capacity + over * epsilon)
    return capacity


@bare
def fill(ports, flows, count, resources):
    """Rates of the component that was gathered: the resource with the least share holds its flows, then the next."""
    depth = flows.route.shape[1]
    shares = ports.shares
    for i in range(resources):
        r = ports.touched[i]
        users = ports.users[r]
        ports.spare[r] = carried(ports.capacity[r], ports.degree[r], ports.epsilon[r], users)
        ports.open[r] = users
        put(shares, r, ports.spare[r] / users)
    for i in range(count):
        slot = flows.member[i]
        flows.old[slot] = flows.rate[slot]
        flows.settled[slot] = False
    level = 0.0
    while shares.size[0] > 0:
        r = shares.items[0]
        drop(shares, r)
        if ports.open[r] == 0:
            continue
        share = max(ports.spare[r], 0.0) / ports.open[r]
        if share > shares.keys[r] * (1.0 + SAME):  # flows that are slower elsewhere have left more of it
            put(shares, r, share)
            continue
        if share > level * (1.0 + SAME):
            level = share
        entry = ports.head[r]
        while entry >= 0:
            slot = entry // depth
            if not flows.settled[slot]:
                flows.settled[slot] = True
                flows.rate[slot] = level
                for k in range(depth):
                    other = flows.route[flows.pair[slot], k]
                    if other < 0:
                        break
                    ports.spare[other] -= level
                    ports.open[other] -= 1
            entry = flows.after[entry]
