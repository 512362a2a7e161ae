"""What a step takes of a transformer that is cut into a shape and laid out on a cluster: seconds, memory and traffic.

One answer from the models beside this file: operations (:mod:`~laconic.plan.transformer`, :mod:`~laconic.plan.passes`),
memory (:mod:`~laconic.plan.footprint`), the order of turns (:mod:`~laconic.plan.pipeline`), places and their lines
(:mod:`~laconic.plan.layout`) and uneven stages (:mod:`~laconic.plan.holmes`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from laconic.errors import ConfigError
from laconic.plan import pipeline
from laconic.plan.cluster import Line
from laconic.plan.footprint import RESERVE, Correction, Memory, least_memory, stage_memory
from laconic.plan.holmes import split
from laconic.plan.layout import CLASSES, Layout, all_reduce_seconds, ring, summing
from laconic.plan.passes import Passes, head_passes, layer_passes, optimizer_seconds
from laconic.plan.pipeline import Hop
from laconic.plan.transformer import (
    Shape,
    Training,
    Transformer,
    boundary_bytes,
    flops,
    reductions,
    stage_parameters,
)

TERMS = ("computing", "tensor messages", "bubble", "stage messages", "summing copies", "optimizer")
NO_LINE = Line(math.inf, 0.0)


@dataclass(frozen=True)
class Job:
    """What is trained and how; ``memory_bandwidth`` and ``units`` as :mod:`laconic.plan.passes` has them,
    ``correction`` from measured peaks of memory."""

    model: Transformer
    training: Training
    memory_bandwidth: float = math.inf
    correction: Correction = field(default_factory=Correction)
    units: int = 0

    def __post_init__(self) -> None:
        if self.units < 0:
            raise ConfigError(f"shapes: units must be 0 (not known) or more, got {self.units}")


@dataclass(frozen=True)
class Room:
    """Memory of the fullest worker: bytes taken, and bytes that there are without the reserve."""

    stage: int
    memory: Memory
    taken: float
    limit: float

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return self.taken <= self.limit


@dataclass(frozen=True)
class Priced:
    """A shape and its price: seconds of a step and what they are made of, memory of the fullest worker, and bytes that
    all workers send in a step over each class of link."""

    shape: Shape
    stages_across: bool
    layers: tuple[int, ...]
    terms: dict[str, float]
    room: Room
    traffic: dict[str, float]
    tokens: int
    operations: float
    machines: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of one step: the sum of its terms."""
        return sum(self.terms.values())

    @property
    def tokens_per_second(self) -> float:
        """Of all workers."""
        return self.tokens / self.seconds

    def share(self, peak: float) -> float:
        """Of the peak rate of all workers, by the model's operations without any that are done again."""
        return self.operations / (self.seconds * self.shape.workers * peak)


@dataclass(frozen=True)
class Stages:
    """The passes of each stage for a micro-batch, without and with its layers."""

    layers: tuple[int, ...]
    passes: tuple[Passes, ...]
    head: Passes


def stages(job: Job, layout: Layout) -> Stages:
    """Layers dealt to the stages by their speed, in single moves while the least time of the pipeline gets less."""
    model, training, shape = job.model, job.training, layout.shape
    p, t, b = shape.pipeline, shape.tensor, shape.micro_batch
    lines = [_tensor_line(layout, stage) for stage in range(p)]
    rates = [layout.speed(stage) for stage in range(p)]
    one = [
        layer_passes(model, training, b, t, rate, line, job.memory_bandwidth, job.units)
        for rate, line in zip(rates, lines, strict=True)
    ]
    head = head_passes(model, training, b, t, rates[-1], lines[-1], job.units)
    if model.layers % p == 0 and len(set(one)) == 1:
        layers = [model.layers // p] * p
    else:

        def whole(pieces: Sequence[int]) -> list[int]:  # each chunk of a stage has as many layers
            return [shape.chunks * n for n in pieces]

        each, last = [x.there + x.back for x in one], head.there + head.back
        micro_batches = shape.micro_batches(training.batch)

        def seconds(pieces: Sequence[int]) -> list[float]:
            found = [shape.chunks * n * s for n, s in zip(pieces, each, strict=True)]
            return [*found[:-1], found[-1] + last]

        def least(pieces: Sequence[int]) -> float:
            return float(pipeline.least_time(seconds(pieces), [0.0] * p, micro_batches))

        @functools.cache
        def of_stage(stage: int, pieces: int) -> Room:  # a stage's memory is a matter of its own layers
            return _stage_room(job, layout, [shape.chunks * pieces] * p, stage)

        def fullest(pieces: Sequence[int]) -> Room:
            return max((of_stage(stage, n) for stage, n in enumerate(pieces)), key=_fullness)

        def excess(pieces: Sequence[int]) -> float:
            return max(0.0, (found := fullest(pieces)).taken - found.limit)

        def givers(pieces: Sequence[int]) -> set[int]:
            slow = seconds(pieces)
            return {slow.index(max(slow)), fullest(pieces).stage}

        speeds = [1 / s for s in each]
        layers = whole(split(model.layers // shape.chunks, speeds, least, excess, givers))
    return Stages(tuple(layers), tuple(_with_head(one, layers, head)), head)


def room(job: Job, layout: Layout, layers: Sequence[int]) -> Room:
    """The fullest worker's memory, by the share that is taken."""
    return max((_stage_room(job, layout, layers, stage) for stage in range(layout.shape.pipeline)), key=_fullness)


def _stage_room(job: Job, layout: Layout, layers: Sequence[int], stage: int) -> Room:
    memory = stage_memory(job.model, job.training, layout.shape, layers, stage)
    limit = (1 - RESERVE) * layout.memory(stage)
    taken = max(job.correction.apply(memory), least_memory(job.model, job.training, layout.shape, layers, stage))
    return Room(stage, memory, taken, limit)


def _fullness(room: Room) -> float:
    return room.taken / room.limit


def least_seconds(job: Job, layout: Layout, cut: Stages) -> float:
    """No step takes less: the busiest stage computes all its micro-batches."""
    m = layout.shape.micro_batches(job.training.batch)
    there, back = [x.there for x in cut.passes], [x.back for x in cut.passes]
    if layout.shape.chunks > 1:
        return m * max(f + b for f, b in zip(there, back, strict=True))
    return float(pipeline.least_time(there, back, m))


def price(job: Job, layout: Layout, cut: Stages | None = None) -> Priced:
    """What a step of this layout takes.

    Turns are simulated stage by stage, the messages of the slowest copy between them; then the copies of each stage are
    summed, as soon as it is done and behind nothing, and the optimizer steps.

    Law:    the terms' sum is the step's seconds; with no latency, twice the rates of all links and machines halve it.
    """
    cut = stages(job, layout) if cut is None else cut
    shape, training = layout.shape, job.training
    m, v = shape.micro_batches(training.batch), shape.chunks
    pieces = _pieces(cut, v)
    forward, backward = [x.there for x in pieces], [x.back for x in pieces]
    alone = pipeline.steady(shape.pipeline, m, v, forward, backward)
    together = alone
    if shape.pipeline > 1:
        together = pipeline.steady(shape.pipeline, m, v, forward, backward, *_hops(job, layout))
    data = _data_seconds(job, layout, cut)
    end = max(done + seconds for done, seconds in zip(together.ends, data, strict=True))
    busiest = max(range(shape.pipeline), key=lambda stage: alone.busy[stage])
    passes = cut.passes[busiest]
    messages = m * (passes.forward_messages + passes.backward_messages)
    held = [
        stage_parameters(job.model, n, i == 0, i == len(cut.layers) - 1, shape.tensor) for i, n in enumerate(cut.layers)
    ]
    terms = (
        alone.busy[busiest] - messages,
        messages,
        alone.total - alone.busy[busiest],
        together.total - alone.total,
        end - together.total,
        optimizer_seconds(training, max(held), shape.data, job.memory_bandwidth),
    )
    return Priced(
        shape,
        layout.stages_across,
        cut.layers,
        dict(zip(TERMS, (float(term) for term in terms), strict=True)),
        room(job, layout, cut.layers),
        _traffic(job, layout, cut),
        training.batch * job.model.sequence,
        flops(job.model, training.batch),
        tuple(dict.fromkeys(machine.name for machine in layout.machines)),
    )


def _with_head(one: Sequence[Passes], layers: Sequence[int], head: Passes) -> list[Passes]:
    made = [x.times(n) for x, n in zip(one, layers, strict=True)]
    return [*made[:-1], made[-1].and_(head)]


def _pieces(cut: Stages, chunks: int) -> list[Passes]:
    """Of each piece, in the order that a micro-batch passes them; the head is behind the last."""
    bare = [*cut.passes[:-1], cut.passes[-1].and_(cut.head.times(-1))]
    pieces = [x.times(1 / chunks) for _ in range(chunks) for x in bare]
    return [*pieces[:-1], pieces[-1].and_(cut.head)]


def _tensor_line(layout: Layout, stage: int) -> Line:
    pairs = [pair for copy in range(layout.shape.data) for pair in ring(layout.tensor_group(stage, copy))]
    return layout.slowest(pairs) if pairs else NO_LINE


def _hops(job: Job, layout: Layout) -> tuple[list[Hop], list[Hop]]:
    """The messages from each piece to the next, and back, of the copy whose messages take longest.

    A message is cut among the workers of a stage, and put together behind them if sequence parallelism does not cut it
    anyway.
    """
    p, t, v = layout.shape.pipeline, layout.shape.tensor, layout.shape.chunks
    whole = boundary_bytes(job.model, job.training, layout.shape.micro_batch)
    gathers = [0.0] * p
    if not job.training.sequence_parallel:
        gathers = [all_reduce_seconds(_tensor_line(layout, stage), t, whole) / 2 for stage in range(p)]

    def hop(sender: int, receiver: int, copy: int) -> Hop:
        line = layout.slowest([(layout.rank(sender, copy, k), layout.rank(receiver, copy, k)) for k in range(t)])
        return Hop(whole / t / line.bandwidth, line.latency + gathers[receiver])

    def both(copy: int) -> tuple[list[Hop], list[Hop]]:
        ends = [(stage, (stage + 1) % p) for stage in range(p)]
        return [hop(a, b, copy) for a, b in ends], [hop(b, a, copy) for a, b in ends]

    there, back = max((both(copy) for copy in range(layout.shape.data)), key=_length)
    return there * v, back * v


def _length(hops: tuple[list[Hop], list[Hop]]) -> float:
    """Seconds of a message through all stages and back; the last of each is to the first stage, and not of it."""
    return sum(sum(hop) for hop in (*hops[0][:-1], *hops[1][:-1]))


def summed_bytes(training: Training, parameters: float) -> float:
    """Of one all-reduce that takes as long as bringing copies of these parameters together."""
    other = training.value_bytes if training.sharded_optimizer else training.gradient_bytes
    return parameters * (training.gradient_bytes + other) / 2


def _data_seconds(job: Job, layout: Layout, cut: Stages) -> list[float]:
    """Seconds that each stage takes to sum its copies, and the two ends a tied embedding."""
    p, t = layout.shape.pipeline, layout.shape.tensor
    found = []
    for stage, layers in enumerate(cut.layers):
        held = stage_parameters(job.model, layers, stage == 0, stage == p - 1, t)
        found.append(summing(layout, stage, summed_bytes(job.training, held)).seconds)
    if job.model.tied and p > 1:
        line = layout.slowest(_ends(layout))
        table = job.model.hidden * job.model.vocabulary / t * job.training.gradient_bytes
        tied = all_reduce_seconds(line, 2, table)
        found[0], found[-1] = found[0] + tied, found[-1] + tied
    return found


def _ends(layout: Layout) -> list[tuple[int, int]]:
    """Workers of the first and the last stage, both ways."""
    last = layout.shape.pipeline - 1
    pairs = [
        (layout.rank(0, copy, k), layout.rank(last, copy, k))
        for copy in range(layout.shape.data)
        for k in range(layout.shape.tensor)
    ]
    return pairs + [(b, a) for a, b in pairs]


def _traffic(job: Job, layout: Layout, cut: Stages) -> dict[str, float]:
    """Bytes of all workers in a step, by the class of the link."""
    model, training, shape = job.model, job.training, layout.shape
    p, t, d, v = shape.pipeline, shape.tensor, shape.data, shape.chunks
    m = shape.micro_batches(training.batch)
    whole = boundary_bytes(model, training, shape.micro_batch)
    found = dict.fromkeys(CLASSES, 0.0)
    hops = [v if stage < p - 1 else v - 1 for stage in range(p)] if p > 1 else [0]  # from each stage to the next
    for stage, layers in enumerate(cut.layers):
        loss = 3 * 4 * shape.micro_batch * model.sequence if stage == p - 1 else 0
        summed = m * 2 * (t - 1) / t * (layers * reductions(training) * whole + loss)
        if not training.sequence_parallel:  # what came in parts is put together
            summed += m * (t - 1) / t * (hops[stage] + hops[stage - 1]) * whole
        for copy in range(d):
            for a, b in ring(layout.tensor_group(stage, copy)):
                found[layout.kind(a, b)] += summed
            for k in range(t):
                a, b = layout.rank(stage, copy, k), layout.rank((stage + 1) % p, copy, k)
                found[layout.kind(a, b)] += m * hops[stage] * whole / t
                found[layout.kind(b, a)] += m * hops[stage] * whole / t
        nbytes = summed_bytes(training, stage_parameters(model, layers, stage == 0, stage == p - 1, t))
        for a, b, share in summing(layout, stage, nbytes).edges:
            found[layout.kind(a, b)] += 2 * share * nbytes
    if model.tied and p > 1:
        for a, b in _ends(layout):
            found[layout.kind(a, b)] += model.hidden * model.vocabulary / t * training.gradient_bytes
    return found
