"""A method run without data: what each worker's clock and meter show, step after step, and what its state holds.

Each worker is the real :class:`laconic.attached.Attached` with a model on ``meta`` (of a method whose course depends on
what tensors hold, with random numbers): its buckets leave in the course of a backward pass, fragments and late answers
come when they come, uneven workers wait for one another, and every message takes its turn on the lines. Nothing here
knows what a method sends.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laconic.attached import BUCKET, Attached
from laconic.errors import LaconicError
from laconic.links import simulated
from laconic.links.network import Network
from laconic.links.simulated import SimulatedLink
from laconic.methods import build
from laconic.plan.charging import Charged
from laconic.plan.job import Job, Step
from laconic.sync.base import Sync

PATIENT = 1e12  # seconds: a price waits as long as the method does
TAIL = 2  # steps that are priced of a method without a period
ROUNDS = 2  # periods that are priced, after those in which a method settles
LONGEST = 1000  # steps in which it may
SETTLING = ("every", "warmup_steps", "start")  # settings that say in steps when a method is as it will be
MESSAGES = 20_000  # of one exchange of the whole model, as many as are run; larger buckets make them fewer
UNKNOWN = (LaconicError, RuntimeError, NotImplementedError)  # what raises where a decision needs data


Paces = float | Sequence[float]


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


def traced(
    job: Job,
    network: Network,
    steps: Sequence[Step],
    method: str,
    settings: dict[str, Any],
    course: Course,
    *,
    device: str = "meta",
    compressing: Paces = 0.0,
    apart: bool = False,
) -> list[Trace]:
    """Run a method as :func:`laconic.plan.price.price` does, and tell what each worker saw.

    ``compressing`` is seconds a byte, of all workers or of each.

    Law:    between two marks ``clock == computing + compressing + waiting``.
    Raises: whatever the method raises where it needs data, in its first period.
    """
    bucket = bucket_for(job, network.workers)[0]

    def work(link: SimulatedLink) -> Trace:
        link.meter = Charged(link, compressing[link.rank] if isinstance(compressing, Sequence) else compressing)
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
    nbytes = job.nbytes
    if nbytes / BUCKET <= most:
        return BUCKET, None
    larger = math.ceil(nbytes / most)
    return larger, f"gradients priced in buckets of {larger / 1e6:,.0f} MB, which takes fewer latencies"


def cut_short(traces: Sequence[Trace], course: Course) -> bool:
    """Whether a method could not go on to the end of a course without data."""
    return min(len(trace.marks) for trace in traces) <= course.settling + course.priced


def between(a: Mark, b: Mark) -> Mark:
    """What happened from one mark to another."""
    return Mark._make(y - x for x, y in zip(a, b, strict=True))


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
        return torch.randn(p.shape, generator=self.noise).to(p.dtype)

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
        made = between(before, after)
        spent = {
            name: getattr(end, name) + getattr(made, name) for name in ("clock", "computing", "compressing", "waiting")
        }
        return after._replace(**spent)

    def _end(self) -> None:
        with contextlib.suppress(*UNKNOWN):
            self.attached.drain()
