"""A heap whose items can be moved to another key and taken out: each item once, known by its number."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

# Nothing below makes an array, and counting who holds those in the tuples would take five times as long as the work.
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
bare = njit(**OPTIONS)


class Queue(NamedTuple):
    """``items`` in heap order, the place of each (-1: not in it), its key, and how many there are."""

    items: Any
    place: Any
    keys: Any
    size: Any


def queue(room: int) -> Queue:
    """An empty queue for items below ``room``."""
    return Queue(np.empty(room, np.int32), np.full(room, -1, np.int32), np.empty(room), np.zeros(1, np.int64))


@bare
def _raise(queue, i):
    items, place, keys = queue.items, queue.place, queue.keys
    item = items[i]
    while i > 0:
        above = (i - 1) >> 1
        if keys[items[above]] <= keys[item]:
            break
        items[i] = items[above]
        place[items[i]] = i
        i = above
    items[i] = item
    place[item] = i


@bare
def _lower(queue, i):
    items, place, keys, size = queue.items, queue.place, queue.keys, queue.size[0]
    item = items[i]
    while True:
        below = 2 * i + 1
        if below >= size:
            break
        if below + 1 < size and keys[items[below + 1]] < keys[items[below]]:
            below += 1
        if keys[items[below]] >= keys[item]:
            break
        items[i] = items[below]
        place[items[i]] = i
        i = below
    items[i] = item
    place[item] = i


@bare
def put(queue, item, key):
    """Enter ``item``, or move it to another key."""
    i = queue.place[item]
    if i < 0:
        i = queue.size[0]
        queue.size[0] += 1
        queue.keys[item] = key
        queue.items[i] = item
        _raise(queue, i)
        return
    earlier = key < queue.keys[item]
    queue.keys[item] = key
    if earlier:
        _raise(queue, i)
    else:
        _lower(queue, i)


@bare
def drop(queue, item):
    """Take ``item`` out, if it is there."""
    i = queue.place[item]
    if i < 0:
        return
    queue.place[item] = -1
    queue.size[0] -= 1
    if i < queue.size[0]:
        moved = queue.items[queue.size[0]]
        queue.items[i] = moved
        _raise(queue, i)
        _lower(queue, queue.place[moved])
