"""Flows that share capacities: max-min fair rates by progressive filling, and the order in which they begin and end.

A flow takes one rate from every resource of its route. Where flows begin or end, only the flows that they are joined to
by shared resources get new rates: the others keep theirs, as a max-min allocation of one component does not hang on
another. So a ring of a thousand workers costs a few operations a message, and not a thousand.

Active flows lie in slots; entry ``slot * depth + k`` is a flow's place in the list of its k-th resource. One heap holds
the next moment of each component and of each worker that sleeps, each key once.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEVER = np.inf
SAME = 1e-12  # of a rate: under it, it is the same rate
DONE = -1  # else: the worker that waits for a message that nobody will send


@njit(cache=True, nogil=True)
def _raise(heap, place, keys, i):
    item = heap[i]
    while i > 0:
        above = (i - 1) >> 1
        if keys[heap[above]] <= keys[item]:
            break
        heap[i] = heap[above]
        place[heap[i]] = i
        i = above
    heap[i] = item
    place[item] = i


@njit(cache=True, nogil=True)
def _lower(heap, place, keys, size, i):
    item = heap[i]
    while True:
        below = 2 * i + 1
        if below >= size:
            break
        if below + 1 < size and keys[heap[below + 1]] < keys[heap[below]]:
            below += 1
        if keys[heap[below]] >= keys[item]:
            break
        heap[i] = heap[below]
        place[heap[i]] = i
        i = below
    heap[i] = item
    place[item] = i


@njit(cache=True, nogil=True)
def _put(heap, place, keys, size, item, key):
    """Enter ``item``, or move it to another key; returns the heap's size."""
    i = place[item]
    if i < 0:
        keys[item] = key
        heap[size] = item
        place[item] = size
        _raise(heap, place, keys, size)
        return size + 1
    earlier = key < keys[item]
    keys[item] = key
    if earlier:
        _raise(heap, place, keys, i)
    else:
        _lower(heap, place, keys, size, i)
    return size


@njit(cache=True, nogil=True)
def _drop(heap, place, keys, size, item):
    """Take ``item`` out; returns the heap's size."""
    i = place[item]
    if i < 0:
        return size
    place[item] = -1
    size -= 1
    if i < size:
        moved = heap[size]
        heap[i] = moved
        place[moved] = i
        _raise(heap, place, keys, i)
        _lower(heap, place, keys, size, place[moved])
    return size


@njit(cache=True, nogil=True)
def carried(capacity, threshold, epsilon, flows):
    """What a resource carries under so many flows: incast beyond ``threshold`` adds ``epsilon`` seconds a byte each."""
    over = flows + 1 - threshold
    if epsilon > 0.0 and over > 0.0:
        return 1.0 / (1.0 / capacity + over * epsilon)
    return capacity


@njit(cache=True, nogil=True)
def _fill(
    members, count, touched, resources, route, depth, pair, head, after, users, capacity, threshold, epsilon,
    spare, open_, keys, heap, place, frozen, rate,
):  # fmt: skip
    """Rates of one component: ``count`` slots in ``members``, ``resources`` resources in ``touched``."""
    size = 0
    for i in range(resources):
        r = touched[i]
        spare[r] = carried(capacity[r], threshold[r], epsilon[r], users[r])
        open_[r] = users[r]
        place[r] = -1
        size = _put(heap, place, keys, size, r, spare[r] / users[r])
    for i in range(count):
        frozen[members[i]] = False
    level = 0.0
    while size > 0:
        r = heap[0]
        size = _drop(heap, place, keys, size, r)
        if open_[r] == 0:
            continue
        share = max(spare[r], 0.0) / open_[r]
        if share > keys[r] * (1.0 + SAME):  # flows that are slower elsewhere have left more of it
            size = _put(heap, place, keys, size, r, share)
            continue
        if share > level * (1.0 + SAME):
            level = share
        entry = head[r]
        while entry >= 0:
            slot = entry // depth
            if not frozen[slot]:
                frozen[slot] = True
                rate[slot] = level
                p = pair[slot]
                for k in range(depth):
                    q = route[p, k]
                    if q < 0:
                        break
                    spare[q] -= level
                    open_[q] -= 1
            entry = after[entry]


@njit(cache=True, nogil=True)
def play(  # noqa: PLR0915
    first_op, ops, pauses, source, target, pair, nbytes, latency, route, capacity, threshold, epsilon,
    in_turn, slack, begin, left, arrived, ended, rates,
):  # fmt: skip
    """Run every worker's program; fills ``begin``, ``left``, ``arrived`` of each transfer and ``ended`` of each worker.

    An operation is ``t + 1`` (send transfer t), ``-t - 1`` (wait until it has arrived) or 0 (let ``pauses`` pass).
    ``rates`` of no length: simulate; else only fill in the rates of all that is sent at moment 0.
    """
    workers, transfers = first_op.size - 1, source.size
    depth = route.shape[1]
    slots = max(1, min(workers, transfers) if in_turn else transfers)
    resources = capacity.size
    only_rates = rates.size > 0

    head = np.full(resources, -1, np.int32)
    users = np.zeros(resources, np.int32)
    after = np.empty(slots * depth, np.int32)
    before = np.empty(slots * depth, np.int32)
    seen_resource = np.zeros(resources, np.int64)
    touched = np.empty(resources, np.int32)
    spare = np.empty(resources)
    open_ = np.empty(resources, np.int32)
    fill_keys = np.empty(resources)
    fill_heap = np.empty(resources, np.int32)
    fill_place = np.full(resources, -1, np.int32)

    flow = np.full(slots, -1, np.int32)  # the transfer in a slot
    pair_of = np.zeros(slots, np.int32)
    remaining = np.empty(slots)
    rate = np.zeros(slots)
    old_rate = np.zeros(slots)
    since = np.zeros(slots)
    due = np.full(slots, NEVER)
    frozen = np.zeros(slots, np.bool_)
    seen = np.zeros(slots, np.int64)
    member = np.empty(slots, np.int32)
    free = np.arange(slots - 1, -1, -1).astype(np.int32)
    n_free = slots
    seeds = np.empty(slots, np.int32)
    in_seeds = np.zeros(slots, np.bool_)

    group = np.full(slots, -1, np.int32)  # of a slot; its neighbours in the group
    next_in = np.empty(slots, np.int32)
    previous_in = np.empty(slots, np.int32)
    group_head = np.full(slots, -1, np.int32)
    group_free = np.arange(slots - 1, -1, -1).astype(np.int32)
    n_group_free = slots

    keys = np.empty(slots + workers)
    heap = np.empty(slots + workers, np.int32)
    place = np.full(slots + workers, -1, np.int32)
    size = 0

    counter = first_op[:-1].copy()
    waits = np.full(workers, -1, np.int64)
    runnable = np.empty(workers, np.int32)
    in_runnable = np.zeros(workers, np.bool_)
    sending = np.zeros(workers, np.bool_)
    stamp = 0
    now = 0.0

    n_run = 0
    for w in range(workers):
        runnable[n_run] = w
        in_runnable[w] = True
        n_run += 1
    n_seeds = 0

    while True:
        # 1. What is due: components whose first flow ends, and workers that wake.
        if n_run == 0:
            if size == 0:
                break
            now = max(now, keys[heap[0]])
        limit = now + slack * now
        while size > 0 and keys[heap[0]] <= limit:
            item = heap[0]
            size = _drop(heap, place, keys, size, item)
            if item >= slots:
                w = item - slots
                if not in_runnable[w]:
                    in_runnable[w] = True
                    runnable[n_run] = w
                    n_run += 1
                continue
            g = item
            some = False
            s = group_head[g]
            while s >= 0:
                some = some or due[s] <= limit
                s = next_in[s]
            if not some:  # who was first here has gone to another component
                least = NEVER
                s = group_head[g]
                while s >= 0:
                    least = min(least, due[s])
                    s = next_in[s]
                if group_head[g] >= 0:
                    size = _put(heap, place, keys, size, g, least)
                continue
            s = group_head[g]
            while s >= 0:
                following = next_in[s]
                if due[s] <= limit:
                    t = flow[s]
                    left[t] = now
                    arrived[t] = now + latency[t]
                    p = pair_of[s]
                    for k in range(depth):  # out of the lists of its resources
                        r = route[p, k]
                        if r < 0:
                            break
                        e = s * depth + k
                        if before[e] >= 0:
                            after[before[e]] = after[e]
                        else:
                            head[r] = after[e]
                        if after[e] >= 0:
                            before[after[e]] = before[e]
                        users[r] -= 1
                    if previous_in[s] >= 0:
                        next_in[previous_in[s]] = next_in[s]
                    else:
                        group_head[g] = next_in[s]
                    if next_in[s] >= 0:
                        previous_in[next_in[s]] = previous_in[s]
                    group[s] = -1
                    flow[s] = -1
                    due[s] = NEVER
                    free[n_free] = s
                    n_free += 1
                    if in_turn:
                        w = source[t]
                        sending[w] = False
                        if not in_runnable[w]:
                            in_runnable[w] = True
                            runnable[n_run] = w
                            n_run += 1
                    w = target[t]
                    if waits[w] == t:
                        waits[w] = -1
                        if arrived[t] <= limit:
                            if not in_runnable[w]:
                                in_runnable[w] = True
                                runnable[n_run] = w
                                n_run += 1
                        else:
                            size = _put(heap, place, keys, size, slots + w, arrived[t])
                s = following
            s = group_head[g]
            if s < 0:
                group_free[n_group_free] = g
                n_group_free += 1
            while s >= 0:
                if not in_seeds[s]:
                    in_seeds[s] = True
                    seeds[n_seeds] = s
                    n_seeds += 1
                s = next_in[s]

        # 2. Workers go on as far as they can.
        while n_run > 0:
            n_run -= 1
            w = runnable[n_run]
            in_runnable[w] = False
            while counter[w] < first_op[w + 1]:
                op = ops[counter[w]]
                if op > 0:
                    t = op - 1
                    counter[w] += 1
                    begin[t] = now
                    p = pair[t]
                    if nbytes[t] <= 0.0 or route[p, 0] < 0:
                        left[t] = now
                        arrived[t] = now + latency[t]
                        other = target[t]
                        if waits[other] == t:
                            waits[other] = -1
                            if arrived[t] <= limit:
                                if not in_runnable[other]:
                                    in_runnable[other] = True
                                    runnable[n_run] = other
                                    n_run += 1
                            else:
                                size = _put(heap, place, keys, size, slots + other, arrived[t])
                        continue
                    n_free -= 1
                    s = free[n_free]
                    flow[s] = t
                    pair_of[s] = p
                    remaining[s] = nbytes[t]
                    rate[s] = 0.0
                    since[s] = now
                    for k in range(depth):
                        r = route[p, k]
                        if r < 0:
                            break
                        e = s * depth + k
                        before[e] = -1
                        after[e] = head[r]
                        if head[r] >= 0:
                            before[head[r]] = e
                        head[r] = e
                        users[r] += 1
                    if not in_seeds[s]:  # else it lies there already, for who was here before
                        in_seeds[s] = True
                        seeds[n_seeds] = s
                        n_seeds += 1
                    if in_turn:
                        sending[w] = True
                        break
                elif op < 0:
                    t = -op - 1
                    if np.isnan(left[t]):
                        waits[w] = t
                        break
                    if arrived[t] > limit:
                        size = _put(heap, place, keys, size, slots + w, arrived[t])
                        break
                    counter[w] += 1
                else:
                    pause = pauses[counter[w]]
                    counter[w] += 1
                    if pause > 0.0:
                        size = _put(heap, place, keys, size, slots + w, now + pause)
                        break
            if counter[w] >= first_op[w + 1] and np.isnan(ended[w]) and place[slots + w] < 0 and not sending[w]:
                ended[w] = now

        # 3. New rates where something began or ended, component by component.
        stamp += 1
        for i in range(n_seeds):
            seed = seeds[i]
            in_seeds[seed] = False
            if flow[seed] < 0 or seen[seed] == stamp:
                continue
            seen[seed] = stamp
            member[0] = seed
            count, looked, n_touched = 1, 0, 0
            while looked < count:
                s = member[looked]
                looked += 1
                p = pair_of[s]
                for k in range(depth):
                    r = route[p, k]
                    if r < 0:
                        break
                    if seen_resource[r] == stamp:
                        continue
                    seen_resource[r] = stamp
                    touched[n_touched] = r
                    n_touched += 1
                    e = head[r]
                    while e >= 0:
                        other_slot = e // depth
                        if seen[other_slot] != stamp:
                            seen[other_slot] = stamp
                            member[count] = other_slot
                            count += 1
                        e = after[e]
            for j in range(count):
                old_rate[member[j]] = rate[member[j]]
            _fill(
                member, count, touched, n_touched, route, depth, pair_of, head, after, users, capacity, threshold,
                epsilon, spare, open_, fill_keys, fill_heap, fill_place, frozen, rate,
            )  # fmt: skip
            for j in range(count):  # out of the groups they were in
                s = member[j]
                g = group[s]
                if g < 0:
                    continue
                if previous_in[s] >= 0:
                    next_in[previous_in[s]] = next_in[s]
                else:
                    group_head[g] = next_in[s]
                if next_in[s] >= 0:
                    previous_in[next_in[s]] = previous_in[s]
                if group_head[g] < 0:
                    size = _drop(heap, place, keys, size, g)
                    group_free[n_group_free] = g
                    n_group_free += 1
            n_group_free -= 1
            g = group_free[n_group_free]
            group_head[g] = -1
            least = NEVER
            for j in range(count):
                s = member[j]
                old = old_rate[s]
                if abs(rate[s] - old) > SAME * old:
                    remaining[s] = max(0.0, remaining[s] - old * (now - since[s]))
                    since[s] = now
                    due[s] = now + remaining[s] / rate[s]
                else:
                    rate[s] = old
                least = min(least, due[s])
                group[s] = g
                previous_in[s] = -1
                next_in[s] = group_head[g]
                if group_head[g] >= 0:
                    previous_in[group_head[g]] = s
                group_head[g] = s
            size = _put(heap, place, keys, size, g, least)
        n_seeds = 0
        if only_rates:
            for s in range(slots):
                if flow[s] >= 0:
                    rates[flow[s]] = rate[s]
            return DONE

    for w in range(workers):
        if counter[w] < first_op[w + 1]:
            return w
    return DONE
