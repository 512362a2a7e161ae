"""What a method costs, found by running it: on tensors without data, over a simulated network, with stated seconds.

Each worker is the real :class:`laconic.attached.Attached` with a model on ``meta`` (of a method whose course depends on
what tensors hold, with random numbers, where the model is small enough): its buckets leave in the course of a
backward pass, fragments and late answers come when they come, uneven workers wait for one another, and every message
takes its turn on the lines. Nothing here knows what a method sends. What is stated and not run: the seconds of a step
(:class:`laconic.plan.job.Step`), and those of compressing (:mod:`laconic.plan.charging`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laconic.attached import BUCKET, Attached
from laconic.errors import LaconicError
from laconic.links import simulated
from laconic.links.network import Network
from laconic.links.simulated import SimulatedLink
from laconic.methods import METHODS, build
from laconic.plan.charging import Charged
from laconic.plan.job import VALUE, Job, Step
from laconic.sync.base import Sync, among

PATIENT = 1e12  # seconds: a price waits as long as the method does
TAIL = 2  # steps that are priced of a method without a period
ROUNDS = 2  # periods that are priced, after those in which a method settles
LONGEST = 1000  # steps in which it may
SETTLING = ("every", "warmup_steps", "start")  # settings that say in steps when a method is as it will be
MESSAGES = 200_000  # of one exchange of the whole model, as many as are run; larger buckets make them fewer
RESERVE = 0.1  # of memory, for what is under way while an exchange runs, and for fragments of free memory
FILLED = 20_000_000  # weights of all workers, up to which a method that needs data is given random ones
UNKNOWN = (LaconicError, RuntimeError, NotImplementedError)  # what raises where a decision needs data


class Memory(NamedTuple):
    """Bytes on the worker that holds most; ``sync`` is the method's own state, what is under way included."""

    model: float
    gradients: float
    optimizer: float
    activations: float
    sync: float
    reserve: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


@dataclass(frozen=True)
class Price:
    """One way of training on one network, in the mean of its workers and of its steps once it has settled.

    ``computing``, ``compressing`` and ``waiting`` are the seconds of a step that each of them takes beyond what it
    hides behind another, and ``learnt`` those by which earlier runs say it is wrong: ``step_seconds`` is their sum.
    ``bytes_out`` and ``messages`` leave a worker in a step, ``bytes_most`` the one that sends most, ``bytes_first`` in
    a step of the first period and ``bytes_peak`` in the step that sends most. ``lead`` are worker 0's seconds of one,
    by which a run is timed. ``notes`` say what was priced otherwise than it will run.
    """

    method: str
    settings: dict[str, Any]
    workers: int
    computing: float
    compressing: float
    waiting: float
    tokens_per_second: float
    bytes_out: float
    bytes_most: float
    bytes_first: float
    bytes_peak: float
    messages: float
    memory: Memory
    lead: float
    learnt: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, all told."""
        return self.computing + self.compressing + self.waiting + self.learnt

    @property
    def waiting_share(self) -> float:
        """How much of the time is waited for the network."""
        return self.waiting / self.step_seconds if self.step_seconds else 0.0


class Mark(NamedTuple):
    """What a worker's clock and meter show at the end of a period."""

    clock: float
    steps: int
    nbytes: int
    messages: int
    computing: float
    compressing: float
    waiting: float


class Trace(NamedTuple):
    """What one worker saw: its marks, the bytes of its largest step and the most that its sync's state held."""

    marks: list[Mark]
    peak: int
    held: int


class Course(NamedTuple):
    """How long a method is run: periods of so many steps (0: rounds of its own), of which the last ``priced`` count.

    ``whole``: it is a run from its first step to its last, with what the method does once at the end.
    """

    period: int
    settling: int
    priced: int
    whole: bool = False


def price(
    job: Job,
    network: Network,
    steps: Sequence[Step],
    method: str,
    settings: dict[str, Any] | None = None,
    *,
    compressing: float = 0.0,
    tail: int = TAIL,
    apart: bool = False,
    course: Course | None = None,
) -> Price:
    """Price a method on a network whose workers take ``steps``, one each, a byte compressed ``compressing`` seconds.

    ``course`` says how long it is run, by default until it has settled and a few periods more. ``apart`` ends every
    step with what is under way, so that a step's bytes are its own, and nothing is hidden.

    Law:    ``step_seconds == computing + compressing + waiting``; with no latency, twice the bandwidths and half the
            seconds of computing and compressing halve it.
    Raises: ConfigError, ClashError for a method that cannot be run so; whatever it raises where it needs data.
    """
    given = settings or {}
    sync = build(method, given)
    among(sync, network.workers)
    course = course or course_of(sync, (METHODS[method].defaults if method in METHODS else {}) | given, tail)
    small = job.parameters * network.workers <= FILLED
    run = partial(traced, job, network, steps, method, given, course, compressing=compressing, apart=apart)
    try:
        found = run()
    except UNKNOWN:
        if not small:
            raise
        found = []
    if small and (not found or _cut_short(found, course)):
        found = run(device="cpu")
    note = bucket_for(job, network.workers)[1]
    return _priced(job, method, given, found, course, () if note is None else (note,))


def traced(
    job: Job,
    network: Network,
    steps: Sequence[Step],
    method: str,
    settings: dict[str, Any],
    course: Course,
    *,
    device: str = "meta",
    compressing: float = 0.0,
    apart: bool = False,
) -> list[Trace]:
    """Run a method as :func:`price` does, and tell what each worker saw.

    Law:    between two marks ``clock == computing + compressing + waiting``.
    Raises: as :func:`price`.
    """
    bucket = bucket_for(job, network.workers)[0]

    def work(link: SimulatedLink) -> Trace:
        link.meter = Charged(link, compressing)
        return _Worker(job, steps[link.rank], link, build(method, settings), bucket, apart, device).run(course)

    return simulated.run(network, work, timeout=PATIENT)


def course_of(sync: Sync, settings: dict[str, Any], tail: int = TAIL) -> Course:
    """How many periods a method is run for, by its settings; where workers take unequal steps, how many rounds."""
    ints = {key: settings[key] for key in SETTLING if type(settings.get(key)) is int}
    if sync.rounds is not None:
        return Course(0, 3, ROUNDS)
    period = max(1, ints.get("every", 1))
    settled = max([period, *(n for key, n in ints.items() if key != "every")])
    settling = max(1, math.ceil(min(LONGEST, settled) / period))
    if sync.after_step is None and sync.explore is None and period > 1:
        settling += 3  # what is decided once in a period begins with measuring
    if period == 1:
        return Course(1, settling, tail)
    return Course(period, settling, ROUNDS)


def bucket_for(job: Job, workers: int) -> tuple[int, str | None]:
    """Bytes of a bucket: as :func:`laconic.attach` has them, or more, where its messages would be too many to run."""
    most = max(1, MESSAGES // max(1, 2 * workers * (workers - 1)))
    nbytes = VALUE * job.parameters
    if nbytes / BUCKET <= most:
        return BUCKET, None
    larger = math.ceil(nbytes / most)
    return larger, f"gradients priced in buckets of {larger / 1e6:,.0f} MB, which takes fewer latencies"


class _Worker:
    """One worker of a run that is priced."""

    def __init__(
        self, job: Job, step: Step, link: SimulatedLink, sync: Sync, bucket: int, apart: bool, device: str
    ) -> None:
        self.job, self.step, self.link, self.sync, self.apart = job, step, link, sync, apart
        model = job.skeleton(device)
        self.noise = torch.Generator().manual_seed(link.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        vars(optimizer)["step"] = lambda: None  # there is nothing to move; what it takes is charged
        self.attached = Attached(model, optimizer, sync, link, bucket_bytes=bucket)
        self.params = [p for p in model.parameters() if p.requires_grad]
        for p in self.params:
            p.grad = self._gradient(p)
        self.model: nn.Module = model
        self.computing = 0.0
        self.taken = self.held = self.peak = 0
        self.marks = [self._mark()]

    def run(self, course: Course) -> Trace:
        """Take the steps of a course; what cannot go on without data ends it, once a period was seen."""
        wanted = course.settling + course.priced
        with contextlib.ExitStack() as ended:
            ended.callback(self._end)
            while len(self.marks) <= wanted:
                before = self.link.meter.bytes_out
                try:
                    self._take()
                except UNKNOWN:
                    if len(self.marks) < 2:
                        raise
                    break
                self.taken += 1
                self.peak = max(self.peak, self.link.meter.bytes_out - before)
                if self.taken < 3 or len(self.marks) == course.settling + 1:  # a period has all that there is
                    self.held = max(self.held, self._holds())
                if self.sync.rounds is not None:
                    if self.attached.rounds >= len(self.marks):
                        self.marks.append(self._mark())
                elif self.taken % course.period == 0:
                    self.marks.append(self._last() if course.whole else self._mark())
        return Trace(self.marks, self.peak, self.held)

    def _take(self) -> None:
        share = self.attached.share
        if self.sync.explore is not None:
            self.attached.step(self._look)
            return
        self._charge(self.step.forward * share)
        backward = self.step.backward * share
        if self.sync.after_backward is not None and self.sync.by_bucket:
            self.attached.zero_grad()
            for p in reversed(self.params):  # as gradients get ready; its hook sends a bucket when that is full
                self._charge(backward * p.numel() / max(1, self.job.parameters))
                p.backward(self._gradient(p))
        else:
            self._charge(backward)
        self.attached.synchronize()
        self._charge(self.step.rest)
        self.attached.step()
        if self.apart:
            self.link.start(lambda: None).result()

    def _gradient(self, p: Tensor) -> Tensor:
        if p.device.type == "meta":
            return torch.empty_like(p)
        return torch.randn(p.shape, generator=self.noise)

    def _look(self) -> float:
        self._charge(self.step.forward)
        return 0.0

    def _charge(self, seconds: float) -> None:
        self.computing += seconds
        self.link.compute(seconds)

    def _holds(self) -> int:
        held: dict[str, Tensor] = self.attached.state_dict()["tensors"]
        return sum(t.numel() * t.element_size() for t in held.values())

    def _mark(self) -> Mark:
        meter = self.link.meter
        shown = meter.shown if isinstance(meter, Charged) else 0.0
        counts = meter.bytes_out, meter.messages_out
        return Mark(self.link.now(), self.taken, *counts, self.computing, shown, meter.seconds_waiting)

    def _last(self) -> Mark:
        """The mark at a run's end: with the bytes of what is under way, though nobody waits for it, and the finish."""
        end = self._mark()
        self.attached.drain()
        before = self._mark()
        self.attached.finish()
        after = self._mark()
        made = _between(before, after)
        spent = {
            name: getattr(end, name) + getattr(made, name) for name in ("clock", "computing", "compressing", "waiting")
        }
        return after._replace(**spent)

    def _end(self) -> None:
        with contextlib.suppress(*UNKNOWN):
            self.attached.drain()


def _priced(
    job: Job, method: str, settings: dict[str, Any], traces: Sequence[Trace], course: Course, notes: tuple[str, ...]
) -> Price:
    ends = min(len(trace.marks) for trace in traces) - 1
    begin = max(0, ends - course.priced) if ends <= course.settling else course.settling
    begin = min(begin, ends - 1)
    spans = [_between(trace.marks[begin], trace.marks[ends]) for trace in traces]
    size = len(traces)

    taken = max(1, sum(span.steps for span in spans))

    def mean(name: str) -> float:
        return float(sum(getattr(span, name) for span in spans)) / taken

    first = _between(traces[0].marks[0], traces[0].marks[1])
    weights = float(VALUE * job.parameters)
    held = weights, weights, float(job.optimizer), float(job.activations), float(max(t.held for t in traces))
    if _cut_short(traces, course):
        notes = (*notes, f"priced by its first {ends} periods: what follows depends on data")
    return Price(
        method,
        settings,
        size,
        mean("computing"),
        mean("compressing"),
        mean("waiting"),
        job.tokens * size / mean("clock") if mean("clock") else 0.0,
        mean("nbytes"),
        max(span.nbytes / max(1, span.steps) for span in spans),
        first.nbytes / max(1, first.steps),
        float(traces[0].peak),
        mean("messages"),
        Memory(*held, reserve=RESERVE * sum(held)),
        spans[0].clock / max(1, spans[0].steps),
        notes=notes,
    )


def _cut_short(traces: Sequence[Trace], course: Course) -> bool:
    return min(len(trace.marks) for trace in traces) <= course.settling + course.priced


def _between(a: Mark, b: Mark) -> Mark:
    return Mark._make(y - x for x, y in zip(a, b, strict=True))
