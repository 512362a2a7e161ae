"""What the link's collectives send, and what a plan of an all-reduce sends, laid out at once for all workers.

The loops of :class:`laconic.links.base.Link`, as arrays: a million messages of an all-gather among a thousand workers
take a tenth of a second. A test holds each against the link itself, message by message and in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laconic.links.base import SMALL
from laconic.links.simulated import ENVELOPE
from laconic.packet import Packet, message_nbytes
from laconic.plan.collectives import Rates
from laconic.plan.flows import Messages
from laconic.plan.genmodel import summed
from laconic.plan.rounds import Plan

Array = NDArray[Any]
FREE = Rates(alpha=0.0, beta=0.0)


class Call(NamedTuple):
    """One collective: its kind, and the bytes of its messages: to each worker, of each part, or of all."""

    kind: str
    nbytes: tuple[int, ...]
    root: int = 0


class Part(NamedTuple):
    """Messages of one collective, and each worker's operations on them, a row a worker (0: none)."""

    source: Array
    target: Array
    nbytes: Array
    ops: Array


def gathered(nbytes: int, workers: int) -> Call:
    """An all-gather of messages of so many bytes."""
    return Call("all_to_all", (nbytes,) * workers)


def scattered(nbytes: Sequence[int]) -> Call:
    """An all-to-all: so many bytes to each worker, the same from all."""
    return Call("all_to_all", tuple(nbytes))


def reduced(tensor: Tensor, workers: int) -> Call:
    """An all-reduce of ``tensor``."""
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="meta")
    if flat.numel() * flat.element_size() <= SMALL:
        return gathered(_plain(flat), workers)
    sizes = {len(part): _plain(part) for part in flat.tensor_split(workers)[:: max(1, workers - 1)]}
    return Call("ring", tuple(sizes[len(part)] for part in flat.tensor_split(workers)))


def spread(tensors: Sequence[Tensor], root: int, workers: int) -> Call:
    """A broadcast of ``tensors``."""
    message = [Packet({"x": torch.empty(t.numel(), dtype=t.dtype, device="meta")}) for t in tensors]
    return Call("broadcast", (ENVELOPE + message_nbytes(message),) * workers, root)


def _plain(tensor: Tensor) -> int:
    return ENVELOPE + message_nbytes([Packet({"x": tensor})])


def laid_out(workers: int, calls: Sequence[Call]) -> Messages:
    """The messages of collectives one after the other, and every worker's program."""
    kinds = {"all_to_all": _all_to_all, "ring": _ring, "broadcast": _broadcast}
    parts, begun = [], 0
    for call in calls:
        part = kinds[call.kind](workers, call)
        parts.append(part._replace(ops=part.ops + np.sign(part.ops) * begun))
        begun += len(part.source)
    none = np.zeros(0, np.int64)
    source, target, nbytes = (np.concatenate([none, *(part[k] for part in parts)]) for k in range(3))
    table = np.concatenate([np.zeros((workers, 0), np.int64), *(part.ops for part in parts)], axis=1)
    real = table != 0
    first = np.concatenate(([0], np.cumsum(real.sum(axis=1))))
    ops = table[real]
    return Messages(
        workers, source.astype(np.int32), target.astype(np.int32), nbytes.astype(float),
        np.full(len(source), -1, np.int32), first, ops, np.zeros(len(ops)),
    )  # fmt: skip


def _all_to_all(workers: int, call: Call) -> Part:
    """To the next worker first, then the one after; heard in the opposite order."""
    me, hop = np.arange(workers)[:, None], np.arange(1, workers)
    target = (me + hop) % workers
    source = np.broadcast_to(me, target.shape)
    number = me * (workers - 1) + hop  # of the message to the hop-th, from 1 on
    back = hop[::-1]
    heard = (me + back) % workers * (workers - 1) + workers - back
    sizes = np.array(call.nbytes)
    return Part(
        source.reshape(-1), target.reshape(-1), sizes[target].reshape(-1), np.concatenate((number, -heard), axis=1)
    )


def _ring(workers: int, call: Call) -> Part:
    """Part by part to the right: once round to add up, once more to tell."""
    me, step = np.arange(workers), np.arange(workers - 1)[:, None]
    part = np.concatenate(((me - step) % workers, (me + 1 - step) % workers))  # a row a step
    steps = len(part)
    number = np.arange(steps)[:, None] * workers + me + 1
    heard = np.arange(steps)[:, None] * workers + (me - 1) % workers + 1
    ops = np.stack((number, -heard), axis=1).reshape(2 * steps, workers).T
    source = np.tile(me, steps)
    return Part(source, (source + 1) % workers, np.array(call.nbytes)[part].reshape(-1), np.ascontiguousarray(ops))


def _broadcast(workers: int, call: Call) -> Part:
    """From the root to the next worker first."""
    hop = np.arange(1, workers)
    target = (call.root + hop) % workers
    ops = np.zeros((workers, workers - 1), np.int64)
    ops[call.root] = hop
    ops[target, 0] = -hop
    return Part(np.full(workers - 1, call.root), target, np.array(call.nbytes)[target], ops)


def of_plan(plan: Plan, nbytes: float, rates: Rates = FREE) -> Messages:
    """The messages of an all-reduce of ``nbytes`` along ``plan``, and every worker's program.

    In each round a worker lets ``rates.alpha`` pass if it sends, sends one message to each that is to hear from it, the
    next worker first, waits for those that come to it, and lets the time of its sums in one pass go by (``gamma`` and
    ``delta``). What bytes and crowding take is the fabric's to say.

    Law: without ``rates`` the bytes out of each worker are ``plan.shares()`` times ``nbytes``.
    """
    n, vector = plan.workers, nbytes / plan.blocks
    ends: list[Array] = [np.zeros((0, 2), np.int64)]
    sizes: list[Array] = [np.zeros(0)]
    rows: list[Array] = [np.zeros((0, 3), np.int64)]  # of operations: whose, when, and what
    seconds: list[Array] = [np.zeros(0)]  # of pauses
    begun = 0
    for number, table in enumerate(plan.tables):
        pairs, which = np.unique(table[:, 0] * n + table[:, 1], return_inverse=True)
        source, target = pairs // n, pairs % n
        order = np.argsort(source * n + (target - source) % n)
        source, target = source[order], target[order]
        ends.append(np.stack((source, target), axis=1))
        sizes.append(np.bincount(which.reshape(-1), table[:, 3] - table[:, 2])[order] * vector)
        message = begun + 1 + np.arange(len(order))
        begun += len(order)
        added, touched = summed(table, n, plan.blocks)
        summing = (added * rates.gamma + touched * rates.delta) * vector
        starts, adds = np.unique(source) if rates.alpha > 0 else message[:0], np.flatnonzero(summing)
        done: list[tuple[Array, Any]] = [(starts, 0), (source, message), (target, -message), (adds, 0)]
        for when, (who, what) in enumerate(done):
            rows.append(np.stack(np.broadcast_arrays(who, 4 * number + when, what), axis=1))
        seconds += [np.full(len(starts), rates.alpha), np.zeros(2 * len(order)), summing[adds]]
    ops, pauses, pairs = np.concatenate(rows), np.concatenate(seconds), np.concatenate(ends)
    order = np.lexsort((ops[:, 1], ops[:, 0]))  # stable: messages of a round stay as they are
    return Messages(
        n, pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32), np.concatenate(sizes),
        np.full(len(pairs), -1, np.int32), np.concatenate(([0], np.cumsum(np.bincount(ops[:, 0], minlength=n)))),
        ops[order, 2], pauses[order],
    )  # fmt: skip
