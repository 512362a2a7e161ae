"""What a method costs, found by running it: on tensors without data, over a simulated network, with stated seconds.

What is stated and not run: the seconds of a step (:class:`laconic.plan.job.Step`), and those of compressing
(:mod:`laconic.plan.charging`). Everything else is as :mod:`laconic.plan.running` finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from laconic.links.gloo_ring import LARGEST
from laconic.links.network import Network
from laconic.methods import METHODS, build
from laconic.plan.job import Job, Step
from laconic.plan.running import TAIL, UNKNOWN, Course, Paces, Trace, between, bucket_for, course_of, cut_short, traced
from laconic.sync.base import among

RESERVE = 0.1  # of memory, for what is under way while an exchange runs, and for fragments of free memory
SEGMENTS = 4_000  # of gloo's sums of the whole model, as many as are run; larger sums are priced as a plain ring's
PLAIN_RING = "sums priced as a plain ring's; gloo's take longer where a megabyte passes in less than the latency"
FILLED = 20_000_000  # weights of all workers, up to which a method that needs data is given random ones


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
        """How much of the time is waited, for the network or for slower workers."""
        return self.waiting / self.step_seconds if self.step_seconds else 0.0


def price(
    job: Job,
    network: Network,
    steps: Sequence[Step],
    method: str,
    settings: dict[str, Any] | None = None,
    *,
    compressing: Paces = 0.0,
    tail: int = TAIL,
    apart: bool = False,
    course: Course | None = None,
) -> Price:
    """Price a method on a network whose workers take ``steps``, one each, a byte compressed ``compressing`` seconds.

    ``compressing`` may be of each worker. ``course`` says how long it is run, by default until it has settled and a few
    periods more. ``apart`` ends every step with what is under way, so that a step's bytes are its own, and nothing is
    hidden.

    Law:    ``step_seconds == computing + compressing + waiting``; with no latency, twice the bandwidths and half the
            seconds of computing and compressing halve it.
    Raises: ConfigError, ClashError for a method that cannot be run so; whatever it raises where it needs data.
    """
    given = settings or {}
    sync = build(method, given)
    among(sync, network.workers)
    notes: tuple[str, ...] = ()
    if network.gloo and 2 * (network.workers - 1) * job.nbytes > SEGMENTS * LARGEST:
        network = replace(network, gloo=False)
        notes = (PLAIN_RING,)
    course = course or course_of(sync, (METHODS[method].defaults if method in METHODS else {}) | given, tail)
    small = job.parameters * network.workers <= FILLED
    run = partial(traced, job, network, steps, method, given, course, compressing=compressing, apart=apart)
    try:
        found = run()
    except UNKNOWN:
        if not small:
            raise
        found = []
    if small and (not found or cut_short(found, course)):
        found = run(device="cpu")
    note = bucket_for(job, network.workers)[1]
    return _priced(job, method, given, found, course, notes if note is None else (*notes, note))


def _priced(
    job: Job, method: str, settings: dict[str, Any], traces: Sequence[Trace], course: Course, notes: tuple[str, ...]
) -> Price:
    ends = min(len(trace.marks) for trace in traces) - 1
    begin = max(0, ends - course.priced) if ends <= course.settling else course.settling
    begin = min(begin, ends - 1)
    spans = [between(trace.marks[begin], trace.marks[ends]) for trace in traces]
    size = len(traces)
    taken = max(1, sum(span.steps for span in spans))

    def mean(name: str) -> float:
        return float(sum(getattr(span, name) for span in spans)) / taken

    first = between(traces[0].marks[0], traces[0].marks[1])
    weights = float(job.nbytes)
    held = (
        weights + job.frozen,
        weights,
        float(job.optimizer),
        float(job.activations),
        float(max(t.held for t in traces)),
    )
    if cut_short(traces, course):
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
