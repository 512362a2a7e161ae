"""A network at the level of flows: messages that share capacities fairly, and workers that send as they have heard.

All active messages have max-min fair rates: none can be faster without one that is not faster getting slower
(progressive filling). A message's last byte is at the receiver its way's latency after it has left. Each worker has a
program: it sends, waits until a named message is there, or lets time pass, one after the other; so a round starts at a
worker when its own inputs have come, whatever the others do. ::

    fabric = fabric_of(read_cluster("aws10"), workers=1024)
    timing = play(fabric, recorded("noloco", 1024, parameters=10**6))
    timing.seconds

Source: Bertsekas and Gallager, Data Networks, section 6.5.2 (max-min fairness by progressive filling).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.plan.fabric import Fabric, Laid

Array = NDArray[Any]
SLACK = 1e-12  # of the time gone by: what ends so close together ends at once


@dataclass(frozen=True, eq=False)
class Messages:
    """What workers send, and when each goes on.

    Message t goes from ``source[t]`` to ``target[t]``, by way ``via[t]`` (-1: the shortest). Worker w's program is
    ``ops[first[w]:first[w + 1]]``: ``t + 1`` sends message t, ``-t - 1`` waits until it is there, and 0 lets the
    ``pauses`` at that place pass.
    """

    workers: int
    source: Array
    target: Array
    nbytes: Array
    via: Array
    first: Array
    ops: Array
    pauses: Array

    def __post_init__(self) -> None:
        if self.source.size:
            _check_ends(self.workers, np.concatenate((self.source, self.target)))
            if (own := self.source == self.target).any():
                raise ConfigError(f"flows: worker {self.source[np.argmax(own)]} sends to itself, which crosses nothing")
        if not (np.isfinite(self.nbytes).all() and (self.nbytes >= 0).all()):
            raise ConfigError("flows: a message's bytes must be a number from 0 on")

    @property
    def sent(self) -> Array:
        """Bytes out of each worker."""
        return np.bincount(self.source, self.nbytes, self.workers)

    @property
    def received(self) -> Array:
        """Bytes into each worker."""
        return np.bincount(self.target, self.nbytes, self.workers)


@dataclass(frozen=True, eq=False)
class Timing:
    """Seconds at which each message begins to leave, has left and is there; and at which each worker has ended."""

    begin: Array
    left: Array
    arrived: Array
    ended: Array

    @property
    def seconds(self) -> float:
        """When the last worker has ended, and the last message is there."""
        return float(max(self.ended.max(initial=0.0), self.arrived.max(initial=0.0)))


def in_rounds(workers: int, rounds: Iterable[Sequence[Any] | Array]) -> Messages:
    """Messages in rounds: in each, a worker sends all of its own and then waits for all that come to it.

    A round is a sequence of ``(source, target, nbytes)`` or ``(source, target, nbytes, via)``, as tuples or as an array
    of such rows.
    """
    tables = [_table(each) for each in rounds]
    rows = np.concatenate(tables) if tables else np.zeros((0, 4))
    number = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    source, target = rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int32)
    where, each = np.concatenate((source, target)), np.arange(1, len(rows) + 1)
    _check_ends(workers, where)
    when = np.concatenate((2 * number, 2 * number + 1))
    order = np.argsort(where.astype(np.int64) * (2 * len(tables) + 1) + when, kind="stable")
    ops = np.concatenate((each, -each))[order]
    first = np.concatenate(([0], np.cumsum(np.bincount(where, minlength=workers)[:workers])))
    return Messages(
        workers, source, target, np.ascontiguousarray(rows[:, 2]), rows[:, 3].astype(np.int32), first, ops,
        np.zeros(len(ops)),
    )  # fmt: skip


def _check_ends(workers: int, ends: Array) -> None:
    if (wrong := ends[(ends < 0) | (ends >= workers)]).size:
        raise ConfigError(f"flows: a message from or to worker {wrong[0]} of {workers}; count from 0")


def _table(rows: Sequence[Any] | Array) -> Array:
    table = np.asarray(rows, float).reshape(len(rows), -1) if len(rows) else np.zeros((0, 4))
    if table.shape[1] == 3:
        table = np.column_stack((table, np.full(len(table), -1.0)))
    if table.shape[1] != 4:
        raise ConfigError(
            f"flows: a round is rows of source, target, bytes and perhaps a way; got {table.shape[1]} a row"
        )
    return table


def play(fabric: Fabric, messages: Messages, *, together: bool = False, slack: float = SLACK) -> Timing:
    """Let every worker run its program over ``fabric``.

    A worker goes on once what it sends has left, as a link's ``send`` does; ``together``, it goes on at once, and what
    it sends before it waits leaves side by side. ``slack`` is a share of the time gone by: messages that end so close
    together end at once, which saves work where sizes or rates are all a little different, and costs so much accuracy.

    Raises: ConfigError for workers that the fabric does not have, and for one that waits for ever.
    """
    laid = _laid(fabric, messages)
    begin, left, arrived = (np.full(len(messages.source), np.nan) for _ in range(3))
    ended = np.full(messages.workers, np.nan)
    stuck = _run(messages, laid, not together, slack, begin, left, arrived, ended, np.zeros(0))
    if stuck >= 0:
        raise ConfigError(f"flows: worker {stuck} waits for a message that is never sent")
    return Timing(begin, left, arrived, ended)


def rates(fabric: Fabric, messages: Messages) -> Array:
    """Bytes a second of each message if all of them are on their way at once, whatever their bytes.

    Law: each message has a resource that is used in full, on which none is faster.
    """
    rows = np.column_stack((messages.source, messages.target, np.ones(len(messages.source)), messages.via))
    own = in_rounds(messages.workers, [rows])
    count = len(own.source)
    found = np.full(max(1, count), np.inf)
    begin, left, arrived = (np.full(count, np.nan) for _ in range(3))
    _run(own, _laid(fabric, own), False, 0.0, begin, left, arrived, np.full(own.workers, np.nan), found)
    return found[:count]


def bound(fabric: Fabric, messages: Messages) -> float:
    """Seconds under which no order and no rates can bring all bytes through: the busiest resource's."""
    laid = _laid(fabric, messages)
    load = np.zeros(len(laid.capacity))
    for column in laid.route[laid.pair].T:
        used = column >= 0
        load += np.bincount(column[used], messages.nbytes[used], len(load))
    return float((load / laid.capacity).max(initial=0.0))


def _laid(fabric: Fabric, messages: Messages) -> Laid:
    if fabric.workers < messages.workers:
        raise ConfigError(f"flows: {messages.workers} workers send, and the network joins {fabric.workers}")
    return fabric.lay(messages.source, messages.target, messages.via)


def _run(
    messages: Messages, laid: Laid, in_turn: bool, slack: float,
    begin: Array, left: Array, arrived: Array, ended: Array, found: Array,
) -> int:  # fmt: skip
    from laconic.kernels.playing import Found, Script, stage
    from laconic.kernels.playing import play as run

    script = Script(
        messages.first.astype(np.int64), messages.ops.astype(np.int64), messages.pauses.astype(np.float64),
        messages.source.astype(np.int32), messages.target.astype(np.int32), laid.pair,
        messages.nbytes.astype(np.float64), laid.latency[laid.pair].astype(np.float64),
    )  # fmt: skip
    resources = laid.capacity.astype(np.float64), laid.degree.astype(np.float64), laid.epsilon.astype(np.float64)
    ready = stage(script, Found(begin, left, arrived, ended), resources, laid.route, in_turn)
    return int(run(ready, in_turn, slack, found))
