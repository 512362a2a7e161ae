"""All workers in one process under a virtual clock: real tensors and real exchanges over a network that is reckoned.

A second here is a second of the network and the machines that a run is made for: it passes by what is sent, and by what
:meth:`SimulatedLink.compute` is told. Nothing else takes time: compressing is free unless it is charged there too.
Losses, bytes and virtual seconds are the same to the bit, whatever the load and whatever runs first.
"""

from __future__ import annotations

import gc
import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from laconic import kernels
from laconic.errors import ConfigError, PeerError, PeerLost, PeerTimeout
from laconic.links import gloo_ring
from laconic.links.background import Lane
from laconic.links.base import PATIENCE, Link
from laconic.links.clockwork import NEVER, WAITING, Clockwork, Fibre, Over
from laconic.links.lines import Lines
from laconic.links.mailbox import CHANNELS
from laconic.links.meter import Meter
from laconic.links.network import Network
from laconic.links.virtual_lane import VirtualLane
from laconic.packet import Message, Packet, message_nbytes

Result = TypeVar("Result")
ENVELOPE = 16  # bytes around a message, as over TCP, so that the meters of both agree
CPU = torch.device("cpu")
PLAIN = frozenset((int, str, float, bool))  # what a header holds is the same after it was written and read
SHOWN = 6  # workers named in a deadlock
FEW = 8  # workers whose garbage is looked for as in one process

Arrival = tuple[float, float, int, Message]  # when its first and its last byte are here, its bytes, and the message


class World:
    """What the links of one simulation share: the clockwork, the lines, and the messages on their way."""

    def __init__(self, network: Network, *, seats: int = 1, seeded: bool = False) -> None:
        self.clockwork = Clockwork(network.workers, seats=seats, seeded=seeded)
        self.lines = Lines(network)
        self.queues: list[dict[tuple[int, int], deque[Arrival]]] = [{} for _ in range(network.workers)]
        self.gone: list[dict[int, float]] = [{} for _ in range(network.workers)]  # since when a worker knows it

    def queue(self, source: int, to: int, channel: int = 0) -> deque[Arrival]:
        """What ``source`` has sent ``to`` on a channel, in order."""
        found = self.queues[to].get((source, channel))
        if found is None:
            found = self.queues[to][source, channel] = deque()
        return found

    def deliver(self, source: int, to: int, channel: int, arrival: Arrival) -> None:
        """Put a message on its way, and let whoever waits for it look."""
        self.queue(source, to, channel).append(arrival)
        for fibre in self.clockwork.fibres[to]:
            if fibre.state == WAITING and fibre.channel == channel and source in fibre.sources:
                self._heed(fibre, arrival[1])

    def leave(self, source: int, to: int, moment: float) -> None:
        """Let ``to`` know from ``moment`` on that nothing more comes from ``source``."""
        self.gone[to][source] = moment
        for fibre in self.clockwork.fibres[to]:
            if fibre.state == WAITING and source in fibre.sources:
                self._heed(fibre, moment)

    def _heed(self, fibre: Fibre, moment: float) -> None:
        if fibre.channel == 0:
            self.clockwork.wake(fibre)
        else:  # others may yet be sooner
            self.clockwork.sooner(fibre, max(fibre.clock, moment))

    def stuck(self, fibre: Fibre, sources: tuple[int, ...], timeout: float | None) -> str:
        """Who waits for whom, if nobody sends any more and all wait for as long as links do; else nothing."""
        others = self.clockwork.listening()
        if timeout is not None or not all(other.patient for other in others):
            return ""
        waits = [(fibre.rank, sources), *((other.rank, other.sources) for other in others)]
        told = [f"worker {rank} waits for {_named(whom)}" for rank, whom in waits[:SHOWN]]
        more = f", and {len(waits) - SHOWN} more wait" if len(waits) > SHOWN else ""
        return f"; nobody can go on: {', '.join(told)}{more}"


class SimulatedLink(Link):
    """One worker's end of a simulated network; :func:`run` makes them.

    A message is copied when it is sent, and takes the bytes that it would take over TCP. Its sender goes on once the
    last byte has left, as :class:`laconic.links.paced.PacedLink`'s does; :class:`laconic.links.lines.Lines` says when.
    Timeouts are virtual. When nobody can act any more the earliest timeout comes at once, and names who waits for whom.
    What is sent to a worker that has ended is lost without a word.
    """

    def __init__(self, rank: int, world: World, timeout: float = PATIENCE) -> None:
        super().__init__(rank, world.lines.network.workers, timeout)
        self._world, self._clockwork = world, world.clockwork
        self.network, self.buffered = world.lines.network, False
        self.meter = Meter(clock=self.now)
        self._told: set[tuple[int, int]] = set()  # of whose end recv_any has spoken, on which channel
        self._closed = False

    def __enter__(self) -> SimulatedLink:
        return self

    def now(self) -> float:
        """Virtual seconds since the simulation's start."""
        return self._clockwork.current().clock

    def compute(self, seconds: float) -> None:
        """Let ``seconds`` pass for what is computed next."""
        if not seconds >= 0:
            raise ConfigError(f"link: compute takes seconds from 0 on, got {seconds}")
        with self._clockwork.mutex:
            fibre = self._clockwork.current()
            self._clockwork.advance(fibre, fibre.clock + seconds)

    def on_lane(self) -> bool:
        """Whether who asks runs on a lane, beside the computation."""
        return self._clockwork.current().number > 0

    def after_all(self, *ranks: int) -> None:
        """Return once all that ``ranks`` (default: everyone) did before this moment is done; takes no virtual time."""
        with self._clockwork.mutex:
            self._clockwork.after(self._clockwork.current(), ranks or tuple(range(self.size)))

    def send(self, message: Message, to: int, channel: int = 0) -> None:
        """Send a message; returns once its last byte has left. To myself, on a channel above 0, it takes no time."""
        clockwork = self._clockwork
        fibre = clockwork.current()
        if to == self.rank:
            if not 0 < channel < CHANNELS:
                raise ConfigError(f"worker {to}: to myself I send on channels 1 to {CHANNELS - 1}, got {channel}")
            with clockwork.mutex:
                self._world.deliver(to, to, channel, (fibre.clock, fibre.clock, 0, message))
            return
        sent, nbytes = _crossing(message)
        with clockwork.mutex:
            clockwork.in_turn(fibre)
            left, first, last = self._world.lines.depart(self.rank, to, nbytes, fibre.clock)
            self._world.deliver(self.rank, to, channel, (first, last, nbytes, sent))
            self._wait(fibre, left)
        self.meter.sent(nbytes)

    def word(self, to: int, channel: int) -> None:
        """Say a word that takes only the latency: so few bytes go between those of large messages, at both ends."""
        clockwork, message = self._clockwork, [Packet({})]
        fibre, nbytes = clockwork.current(), ENVELOPE + message_nbytes(message)
        with clockwork.mutex:
            clockwork.in_turn(fibre)
            heard = fibre.clock + self._world.lines.network.link(self.rank, to).latency
            self._world.deliver(self.rank, to, channel, (heard, heard, 0, message))
        self.meter.sent(nbytes)

    def recv(self, source: int, timeout: float | None = None) -> Message:
        """The next message from ``source``; bytes still coming are not silence."""
        clockwork, world, sources = self._clockwork, self._world, (source,)
        fibre = clockwork.current()
        queue, gone = world.queue(source, self.rank), world.gone[self.rank]
        deadline = fibre.clock + (self.timeout if timeout is None else timeout)
        with clockwork.mutex:
            clockwork.in_turn(fibre)
            while not queue:
                if source in gone and gone[source] <= deadline:
                    self._wait(fibre, gone[source])
                    raise PeerLost(f"worker {self.rank}: worker {source} is gone", source)
                if self._listen(fibre, sources, 0, deadline, timeout) is not None:
                    self._silent(fibre, sources, deadline, timeout, world.stuck(fibre, sources, timeout))
            if queue[0][0] > deadline:
                self._silent(fibre, sources, deadline, timeout)
            return self._take(fibre, queue)

    def recv_any(
        self, sources: Sequence[int] | None = None, timeout: float | None = None, channel: int = 1
    ) -> tuple[int, Message]:
        """Who spoke next on ``channel``, and what it said; of two that are heard at once the lower rank."""
        clockwork, world = self._clockwork, self._world
        fibre = clockwork.current()
        wanted = tuple(range(self.size) if sources is None else sources)
        queues = {source: world.queue(source, self.rank, channel) for source in wanted}
        deadline = fibre.clock + (self.timeout if timeout is None else timeout)
        came: float | None = None
        with clockwork.mutex:
            while True:
                if self._closed:
                    raise ConfigError(f"worker {self.rank}: the link is closed, and nothing comes any more")
                # A message may have come, and not have woken this fibre: what is first is known when its moment comes.
                spoken = [(max(fibre.clock, queue[0][1]), source) for source, queue in queues.items() if queue]
                losses = self._losses(fibre, wanted, queues, channel)
                first = min([*spoken, *losses], default=(NEVER, -1))
                coming = first[0] < NEVER and bool(queues[first[1]]) and queues[first[1]][0][0] <= deadline
                if came is not None and (first[0] <= came or (coming and deadline <= came)):
                    if queues[first[1]]:
                        return first[1], self._take(fibre, queues[first[1]])
                    self._told.add((channel, first[1]))
                    self._wait(fibre, first[0])
                    raise PeerLost(f"worker {self.rank}: worker {first[1]} is gone", first[1])
                if came is not None and came >= deadline:
                    self._silent(fibre, wanted, deadline, timeout, world.stuck(fibre, wanted, timeout))
                came = self._listen(fibre, wanted, channel, min(first[0], deadline), timeout)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """As :meth:`Link.all_reduce`, or, where the network's sums are gloo's, by the ring that gloo has."""
        if self._world.lines.network.gloo and self.size > 1 and tensor.dtype in gloo_ring.SUMMED:
            return gloo_ring.all_reduce(self, tensor)
        return super().all_reduce(tensor)

    def _losses(
        self, fibre: Fibre, wanted: Sequence[int], queues: Mapping[int, Sized], channel: int
    ) -> list[tuple[float, int]]:
        """Who is gone and says nothing more: each once, and all of them at every call."""
        gone = self._world.gone[self.rank]
        silent = [source for source in wanted if source in gone and not queues[source]]
        news = [source for source in silent if (channel, source) not in self._told]
        if news or len(silent) < len(wanted):
            silent = news
        return [(max(fibre.clock, gone[source]), source) for source in silent]

    def _listen(
        self, fibre: Fibre, sources: tuple[int, ...], channel: int, moment: float, timeout: float | None
    ) -> float | None:
        fibre.sources, fibre.channel, fibre.patient = sources, channel, timeout is None
        came = self._clockwork.block(fibre, moment)
        fibre.sources = ()
        return came

    def _take(self, fibre: Fibre, queue: deque[Arrival]) -> Message:
        _, last, nbytes, message = queue.popleft()
        if nbytes:  # else it is my own, or a word
            last = self._world.lines.arrive(self.rank, nbytes, last)
            self.meter.received(nbytes)
        self._wait(fibre, last)
        return message

    def _silent(
        self, fibre: Fibre, sources: tuple[int, ...], deadline: float, timeout: float | None, stuck: str = ""
    ) -> NoReturn:
        self._wait(fibre, deadline)
        patience = self.timeout if timeout is None else timeout
        raise PeerTimeout(f"worker {self.rank}: nothing from {_named(sources)} for {patience:g} s{stuck}", sources[0])

    def _wait(self, fibre: Fibre, moment: float) -> None:
        if moment > fibre.clock:
            if fibre.number == 0:
                self.meter.waited(fibre.clock, moment)
            self._clockwork.advance(fibre, moment)

    def lane(self, name: str = "") -> Lane:
        """The lane of that name, made when it is first asked for."""
        if name not in self._lanes:
            with self._clockwork.mutex:
                self._lanes[name] = VirtualLane(self.rank, self.meter, self._clockwork)
        return self._lanes[name]

    def in_turn(self, run: Callable[..., Any], *args: Any) -> Any:
        """``run(*args)``, once what was started on the lane has ended."""
        lane = self._lanes.get("")
        if not isinstance(lane, VirtualLane) or self._clockwork.current() is lane.fibre:
            return run(*args)
        return lane.start(run, *args).result()

    def finish(self) -> None:
        """Wait until what is queued on the lane of exchanges has left, and close."""
        lane = self._lanes.get("")
        if isinstance(lane, VirtualLane) and not self._closed:
            lane.start(int).wait()
        self.close()

    def close(self) -> None:
        """Tell the peers that nothing more comes, and let go whoever waits on a lane."""
        if self._closed:
            return
        self._closed = True
        super().close()
        with self._clockwork.mutex:
            here = self._clockwork.current()
            for to in self.peers():
                self._world.leave(self.rank, to, here.clock + self._world.lines.network.link(self.rank, to).latency)
            for fibre in self._clockwork.fibres[self.rank]:
                if fibre is not here and fibre.sources:
                    self._clockwork.wake(fibre)


def _named(ranks: Sequence[int]) -> str:
    return f"worker {ranks[0]}" if len(ranks) == 1 else f"any of {len(ranks)} workers"


def _crossing(message: Message) -> tuple[Message, int]:
    """A message as it comes out at the other end, and its bytes on the wire; without writing them, which takes longer.

    Raises: PacketError for a tensor whose dtype has no code on the wire.
    """
    nbytes = ENVELOPE + message_nbytes(message)
    sent = []
    for packet in message:
        header = _as_read(packet)
        tensors = {
            name: t if t.device.type == "meta" else kernels.new(t.shape, t.dtype, CPU).copy_(t.detach())
            for name, t in packet.tensors.items()
        }
        sent.append(Packet(tensors, header))
    return sent, nbytes


def _as_read(packet: Packet) -> dict[str, Any]:
    """A packet's header as its reader has it; what is as in JSON already is not written to be read again."""
    found: dict[str, Any] = {}
    for name, value in packet.header.items():
        if type(value) is list and PLAIN.issuperset(map(type, value)):
            found[name] = list(value)
        elif type(value) in PLAIN and type(name) is str:
            found[name] = value
        else:
            return dict(json.loads(packet.encoded)[0])
    return found


def run(
    network: Network,
    fn: Callable[[Any], Result],
    *,
    timeout: float = PATIENCE,
    seed: int | None = None,
) -> list[Result]:
    """Run ``fn(link)`` once for each worker of ``network``, and return the results in rank order.

    With a ``seed`` each worker has torch's random state to itself, seeded from it and its rank. If a worker raises, its
    peers see it gone, and its error is raised here.
    """
    world = World(network, seeded=seed is not None)
    clockwork = world.clockwork
    results: list[Any] = [None] * network.workers
    errors: dict[int, BaseException] = {}
    running, ended = set(range(network.workers)), threading.Event()

    def work(rank: int) -> None:
        fibre = clockwork.current()
        try:
            if seed is not None:
                torch.manual_seed(random.Random(f"worker/{seed}/{rank}").getrandbits(63))
            with SimulatedLink(rank, world, timeout) as link:
                results[rank] = fn(link)
                link.finish()
        except Over:
            raise
        except BaseException as error:  # raised again below, in the caller's thread
            errors[rank] = error
        with clockwork.mutex:
            running.discard(rank)
            if not running:
                ended.set()
            clockwork.end(fibre)

    fibres = [clockwork.add(rank, lambda rank=rank: work(rank)) for rank in range(network.workers)]  # type: ignore[misc]
    with _collecting.less(network.workers):
        try:
            with clockwork.mutex:
                for fibre in fibres:
                    clockwork.ready(fibre)
            ended.wait()
        finally:
            with clockwork.mutex:
                clockwork.stop()
    if errors:
        own = [rank for rank, error in errors.items() if not isinstance(error, PeerError)]
        raise errors[min(own or errors)]
    return results


class _Collecting:
    """How often Python's collector looks for cycles while simulations run: for each worker as in a process of its own.

    What many workers have under way would have it look all the time, and through all that was imported.
    """

    def __init__(self) -> None:
        self._mutex, self._running = threading.Lock(), 0
        self._before = gc.get_threshold()

    @contextmanager
    def less(self, workers: int) -> Iterator[None]:
        """Inside, the collector waits for more; after the last of several simulations it is as before the first."""
        with self._mutex:
            if not self._running:
                self._before = gc.get_threshold()
            self._running += 1
            youngest = gc.get_threshold()[0]  # 0 where it is off
            gc.set_threshold(max(youngest, self._before[0] * workers // FEW), *self._before[1:])
        try:
            yield
        finally:
            with self._mutex:
                self._running -= 1
                if not self._running:
                    gc.set_threshold(*self._before)


_collecting = _Collecting()
