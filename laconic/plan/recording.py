"""The messages of a method's round, taken from the method itself as it runs on tensors without data.

Nothing here knows what a method sends. :func:`recorded` runs it on a simulated link for every worker and writes down
what each sends and waits for, in its order. Where all that a worker does are the link's collectives, as in ``ddp``,
every worker does the same, and running three of them says it all: each hears its own echo in the others' place, and
:mod:`laconic.plan.collective_messages` lays out what the collectives send. So a thousand workers' all-reduce is
recorded in a second, where running all of them would take minutes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.errors import ConfigError, LaconicError
from laconic.links import simulated
from laconic.links.base import Link
from laconic.links.network import Connection, Network
from laconic.links.simulated import ENVELOPE
from laconic.methods import METHODS, build
from laconic.packet import Message, message_nbytes
from laconic.plan.charging import Made
from laconic.plan.collective_messages import Call, gathered, laid_out, reduced, scattered, spread
from laconic.plan.flows import Messages

WIDTH = 1024  # columns of the matrix that stands for a model
RATE = 20e6 / 8  # bytes a second of the links while a method is recorded, and
STEP = 1.0  # seconds of its steps: a method that chooses by time chooses by these
SKIPPED = 1  # rounds before the one that counts: what is overlapped has then begun to come
PATIENCE = 16  # rounds in which nobody sends, until one is taken as it is
DATA = (NotImplementedError, RuntimeError)  # what torch raises where it needs numbers and has none
SEND, WAIT = 1, 2

Event = tuple[int, int, int, int]  # SEND or WAIT, the other worker, the channel, and bytes


class Unlike(Exception):
    """Workers do not all do the same: each must be run."""


def recorded(
    method: str,
    workers: int,
    parameters: int = 1_000_000,
    settings: dict[str, Any] | None = None,
    *,
    network: Network | None = None,
    skip: int = SKIPPED,
    everyone: bool = False,
) -> Messages:
    """The messages of one round of ``method`` among ``workers``, of a model of so many ``parameters``.

    A round is a period of steps (``every``), and a step where there is none. The model is one matrix (one for each
    fragment), so that small messages are few. ``network`` is what methods that choose by time see; without it, links of
    20 Mbit/s. ``everyone`` runs every worker in any case. The first ``skip`` rounds are not counted, or as many as the
    method can run before it needs data; nor are those after them in which nobody sends.

    Raises: ConfigError where the first round needs data already; whatever the method raises.
    """
    if workers < 2:
        raise ConfigError(f"flows: a round is of at least 2 workers, got {workers}")
    if parameters < 1 or skip < 0:
        raise ConfigError(f"flows: parameters from 1 and skip from 0, got {parameters} and {skip}")
    take = _rounds(method, parameters, settings or {})
    seen = network if network is not None else Network((Connection(RATE, RATE),) * workers)
    if seen.workers != workers:
        raise ConfigError(f"flows: {workers} workers on a network of {seen.workers}")
    try:
        for later in range(PATIENCE):
            found = _once(take, seen, skip + later, everyone)
            if len(found.source) or method == "alone":
                break
    except DATA as error:
        raise ConfigError(f"flows: what {method} sends depends on data, and it cannot be recorded: {error}") from error
    return found


def _once(take: Callable[[Link], Any], network: Network, skip: int, everyone: bool) -> Messages:
    if not everyone:
        with contextlib.suppress(Unlike):
            return _from_three(take, network.workers, skip)
    return messages_of(network, take, skip)


def messages_of(network: Network, work: Callable[[Link], Any], skip: int = 0) -> Messages:
    """What ``work(link)`` sends in its round ``skip``, run for each worker of a simulated network.

    ``work`` is a generator function: it yields where a round ends. One that fails later than in its first round, as it
    needs data then, is taken by its last round before.
    """

    def run(link: Link) -> tuple[list[Event], list[int]]:
        events: list[Event] = []
        _listen(link, events)
        marks: list[int] = []
        with _until(DATA, lambda: bool(marks)):
            for _ in zip(range(skip + 1), work(link), strict=False):
                link.start(lambda: None).result()  # what it has started belongs to it
                marks.append(len(events))
        return events, marks

    seen = simulated.run(network, run)
    return _matched(seen, min(len(marks) for _, marks in seen) - 1)


@contextlib.contextmanager
def _until(errors: tuple[type[Exception], ...], enough: Callable[[], bool]) -> Iterator[None]:
    """End quietly at one of ``errors``, if there is enough by then."""
    try:
        yield
    except errors:
        if not enough():
            raise


def _listen(link: Any, events: list[Event]) -> None:
    """Write down what a link sends, and what it has waited for."""
    send, recv, recv_any = link.send, link.recv, link.recv_any

    def sending(message: Message, to: int, channel: int = 0) -> None:
        if to != link.rank:
            events.append((SEND, to, channel, ENVELOPE + message_nbytes(message)))
        send(message, to, channel)

    def hearing(source: int, timeout: float | None = None) -> Message:
        message: Message = recv(source, timeout)
        events.append((WAIT, source, 0, 0))
        return message

    def hearing_any(
        sources: Sequence[int] | None = None, timeout: float | None = None, channel: int = 1
    ) -> tuple[int, Message]:
        source, message = recv_any(sources, timeout, channel)
        if source != link.rank:
            events.append((WAIT, source, channel, 0))
        return source, message

    vars(link).update(send=sending, recv=hearing, recv_any=hearing_any)


def _matched(seen: Sequence[tuple[list[Event], list[int]]], skip: int) -> Messages:
    """Sends and waits paired: the k-th sent on a channel is the k-th heard there. Of another round's, nobody waits."""
    number: dict[tuple[int, int, int, int], int] = {}
    rows: list[tuple[int, int, int]] = []
    for worker, (events, marks) in enumerate(seen):
        counts: dict[tuple[int, int], int] = {}
        begin, end = ([0, *marks])[skip], marks[skip]
        for i, (kind, other, channel, nbytes) in enumerate(events[:end]):
            if kind == SEND:
                k = counts[other, channel] = counts.get((other, channel), 0) + 1
                if i >= begin:
                    number[worker, other, channel, k] = len(rows)
                    rows.append((worker, other, nbytes))
    first, ops = [0], []
    for worker, (events, marks) in enumerate(seen):
        sent: dict[tuple[int, int], int] = {}
        heard: dict[tuple[int, int], int] = {}
        begin, end = ([0, *marks])[skip], marks[skip]
        for i, (kind, other, channel, _) in enumerate(events[:end]):
            counts, sign = (sent, 1) if kind == SEND else (heard, -1)
            k = counts[other, channel] = counts.get((other, channel), 0) + 1
            key = (worker, other, channel, k) if kind == SEND else (other, worker, channel, k)
            if i >= begin and key in number:
                ops.append(sign * (number[key] + 1))
        first.append(len(ops))
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Messages(
        len(seen), table[:, 0].astype(np.int32), table[:, 1].astype(np.int32), table[:, 2].astype(float),
        np.full(len(table), -1, np.int32), np.array(first), np.array(ops, np.int64), np.zeros(len(ops)),
    )  # fmt: skip


def _rounds(method: str, parameters: int, settings: dict[str, Any]) -> Callable[[Link], Any]:
    """The method's steps on ``meta``, as a generator over its rounds."""
    given = (METHODS[method].defaults if method in METHODS else {}) | settings
    every, fragments = (n if type(n := given.get(key, 1)) is int else 1 for key in ("every", "fragments"))
    layers = max(1, fragments)
    rows = max(1, parameters // (WIDTH * layers))
    shape = (rows, WIDTH) if parameters >= WIDTH * layers else (1, max(1, parameters // layers))

    def take(link: Link) -> Any:
        params = {f"blocks.{i}.weight": torch.empty(shape, device="meta") for i in range(layers)}
        values: list[Tensor] = list(params.values())
        sync = build(method, settings)
        state = sync.init(params)
        while True:
            for _ in range(max(1, every) if sync.after_step is not None else 1):
                link.compute(STEP)
                if sync.explore is not None:
                    _, state = sync.explore(values, state, link, lambda moved: 0.0)
                if sync.after_backward is not None:
                    _, state = sync.after_backward(values, state, link)
                if sync.after_step is not None:
                    _, state = sync.after_step(values, state, link)
            yield

    return take


class EchoLink(Link):
    """A link whose peers say what I say: it notes the collectives that it is asked for, and sends nothing."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.calls: list[Call] = []
        self._clock = 0.0

    def now(self) -> float:
        """Seconds computed."""
        return self._clock

    def compute(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._clock += seconds

    def send(self, message: Message, to: int, channel: int = 0) -> None:
        """Raises: Unlike, as what crosses by itself is no collective."""
        raise Unlike

    def recv(self, source: int, timeout: float | None = None) -> Message:
        """Raises: Unlike."""
        raise Unlike

    def recv_any(
        self, sources: Sequence[int] | None = None, timeout: float | None = None, channel: int = 1
    ) -> tuple[int, Message]:
        """Raises: Unlike."""
        raise Unlike

    def all_gather(self, message: Message) -> list[Message]:
        """My message, from everyone."""
        self.calls.append(gathered(ENVELOPE + message_nbytes(message), self.size))
        return [message] * self.size

    def all_to_all(self, messages: Sequence[Message]) -> list[Message]:
        """What I have for myself, from everyone."""
        self.calls.append(scattered([ENVELOPE + message_nbytes(message) for message in messages]))
        return [messages[self.rank]] * self.size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The tensor, as it is."""
        self.calls.append(reduced(tensor, self.size))
        return tensor

    def broadcast(self, tensors: Sequence[Tensor], root: int = 0) -> list[Tensor]:
        """The tensors, as they are."""
        self.calls.append(spread(tensors, root, self.size))
        return list(tensors)


def _from_three(take: Callable[[Link], Any], workers: int, skip: int) -> Messages:
    """The round, if the first, the second and the last worker do the same collectives on messages of the same sizes.

    Raises: Unlike, if they do not, or do anything else.
    """
    seen = [_alone(take, rank, workers, skip) for rank in sorted({0, 1, workers - 1})]
    if any(other != seen[0] for other in seen):
        raise Unlike
    return laid_out(workers, seen[0])


def _alone(take: Callable[[Any], Any], rank: int, workers: int, skip: int) -> list[Call]:
    link = EchoLink(rank, workers)
    with link:
        marks = [0]
        try:
            with Made(), _until(DATA, lambda: len(marks) > 1):
                for _ in zip(range(skip + 1), take(link), strict=False):
                    link.start(lambda: None).result()
                    marks.append(len(link.calls))
        except (LaconicError, *DATA) as error:  # an echo is not what it needs to hear, or it needs data at once
            raise Unlike from error
        return link.calls[marks[-2] : marks[-1]]
