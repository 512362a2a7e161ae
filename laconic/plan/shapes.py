"""Which shape a transformer should have on a cluster: all that the workers allow, ranked, and why the others are not.

A shape is priced by :mod:`laconic.plan.cutting`. Of those that fit, the least time that no order of turns can beat is
known at once; shapes are priced in its order until no other can be among the best any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from laconic.bench import units
from laconic.errors import ConfigError
from laconic.plan.cluster import Cluster, Machine
from laconic.plan.cutting import (
    NO_LINE,
    TERMS,
    Job,
    Priced,
    Room,
    Stages,
    least_seconds,
    price,
    room,
    stages,
    summed_bytes,
)
from laconic.plan.footprint import RESERVE
from laconic.plan.holmes import rounded
from laconic.plan.layout import Layout, all_reduce_seconds, ranked
from laconic.plan.passes import layer_passes
from laconic.plan.pipette import Placing, place
from laconic.plan.transformer import RECOMPUTE, Shape, boundary_bytes, stage_parameters

MICRO_BATCHES = (1, 2, 4, 8)
CHUNKS = (1, 2, 4)


class Refused(NamedTuple):
    """A shape that will not do, and why; ``room`` if it is for want of memory."""

    shape: Shape
    why: str
    room: Room | None = None


@dataclass(frozen=True)
class Ranking:
    """The best shapes, best first; how many more fit; and those that do not."""

    best: tuple[Priced, ...]
    more: int
    refused: tuple[Refused, ...]

    def nearly(self) -> list[Refused]:
        """Of those that lack memory, the nearest to fitting: one of each number of stages, tensor ways and copies."""
        found: dict[tuple[int, int, int], Refused] = {}
        for one in sorted((one for one in self.refused if one.room), key=_excess):
            found.setdefault((one.shape.pipeline, one.shape.tensor, one.shape.data), one)
        return list(found.values())

    def why(self) -> str:
        """Why the first is first, in sentences."""
        return why(self)


def _excess(refused: Refused) -> float:
    """Bytes that are lacking."""
    return refused.room.taken - refused.room.limit if refused.room else 0.0


def rank(
    job: Job,
    cluster: Cluster,
    keep: int = 10,
    micro_batches: Sequence[int] = MICRO_BATCHES,
    chunks: Sequence[int] = CHUNKS,
    seed: int = 0,
) -> Ranking:
    """The ``keep`` best shapes of all the cluster's workers, each with its hosts where they cost least.

    Raises: ConfigError if no shape fits: by how much, and what would make one fit.
    """
    machines = ranked(cluster)
    refused: list[Refused] = []
    fitting: list[tuple[float, Layout, Stages]] = []
    for shape in _shapes(job, len(machines), micro_batches, chunks, refused):
        found = _fitting(job, cluster, machines, shape)
        if isinstance(found, Room):
            refused.append(Refused(shape, _no_room(found), found))
        else:
            fitting += [(_least(job, layout, cut), layout, cut) for layout, cut in found]
    if not fitting:
        raise ConfigError(_nowhere(job, cluster, machines, refused))
    best: list[Priced] = []
    alike = _all_alike(cluster, machines)
    for least, layout, cut in sorted(fitting, key=lambda one: one[0]):
        if len(best) >= keep and least >= best[keep - 1].seconds:
            break
        for order in [(layout, cut)] if alike else _orders(job, layout, cut, seed):
            best = _with(best, price(job, *order))
    shapes = {layout.shape for _, layout, _ in fitting}
    return Ranking(tuple(best[:keep]), len(shapes) - len(best[:keep]), tuple(refused))


def _fitting(
    job: Job, cluster: Cluster, machines: Sequence[Machine], shape: Shape
) -> list[tuple[Layout, Stages]] | Room:
    """The layouts of a shape that fit, with their layers; else how the fullest worker of the last does not."""
    layouts = _layouts(cluster, machines, shape)
    least = room(job, layouts[0], [job.model.layers // shape.pipeline] * shape.pipeline)
    if not least.fits and len({(machine.flops, machine.memory) for machine in machines}) == 1:
        return least  # nor can the layers be dealt any better
    taken = room(job, layouts[0], _even(job.model.layers, shape.pipeline))
    found = []
    for layout in layouts:
        try:
            cut = stages(job, layout)
        except ConfigError:  # no split of the layers fits
            continue
        if (here := room(job, layout, cut.layers)).fits:
            found.append((layout, cut))
        else:
            taken = here
    return found or taken


def _with(best: list[Priced], one: Priced) -> list[Priced]:
    """The ranking with one more; of one shape's layouts the better."""
    others = [other for other in best if other.shape != one.shape or other.seconds <= one.seconds]
    if any(other.shape == one.shape for other in others):
        return others
    return sorted([*others, one], key=lambda priced: priced.seconds)


def _shapes(
    job: Job, workers: int, micro_batches: Sequence[int], chunks: Sequence[int], refused: list[Refused]
) -> Iterator[Shape]:
    """Every shape whose numbers come out whole; of the others the reason is noted."""
    model, training = job.model, job.training
    for p in _divisors(workers):
        for t in _divisors(workers // p):
            d = workers // (p * t)
            some = Shape(p, t, d, 1)
            if p > model.layers:
                refused.append(Refused(some, f"{p} stages are more than {model.layers} layers"))
            elif model.heads % t:
                refused.append(Refused(some, f"{t} tensor ways do not divide {model.heads} heads"))
            elif model.inner % t:
                refused.append(Refused(some, f"{t} tensor ways do not divide a feed-forward width of {model.inner}"))
            elif training.batch % d:
                refused.append(Refused(some, f"{d} copies do not divide a batch of {training.batch}"))
            else:
                for b in (b for b in micro_batches if training.batch // d % b == 0):
                    for v in chunks:
                        if v == 1 or (p > 1 and model.layers % (p * v) == 0 and (training.batch // (d * b)) % p == 0):
                            yield Shape(p, t, d, b, v)


def _even(layers: int, pipeline: int) -> list[int]:
    """Layers of equal stages."""
    return rounded(layers, [1.0] * pipeline)


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _layouts(cluster: Cluster, machines: Sequence[Machine], shape: Shape) -> list[Layout]:
    """Stages farthest apart, or copies; one of them where they are the same."""
    both = (True, False) if shape.pipeline > 1 and shape.data > 1 else (True,)
    return [Layout(cluster, tuple(machines), shape, across) for across in both]


def _all_alike(cluster: Cluster, machines: Sequence[Machine]) -> bool:
    """Whether any two different machines are joined by the same line."""
    some = list(dict.fromkeys(machines))
    lines = {cluster.line(a, b) for a in some for b in some if a is not b}
    return len(lines) <= 1 and len({(m.up, m.down) for m in some}) == 1


def _least(job: Job, layout: Layout, cut: Stages) -> float:
    """No step of the shape takes less, whatever the order of its hosts."""
    rates = [machine.flops for machine in layout.machines]
    if min(rates) == max(rates):
        return least_seconds(job, layout, cut)
    # Another order may be faster than this one. But some stage has this many layers, on no faster machines than these.
    shape, training = layout.shape, job.training
    one = layer_passes(
        job.model, training, shape.micro_batch, shape.tensor, max(rates), NO_LINE, job.memory_bandwidth, job.units
    )
    return shape.micro_batches(training.batch) * -(-job.model.layers // shape.pipeline) * (one.there + one.back)


def _orders(job: Job, layout: Layout, cut: Stages, seed: int) -> Iterator[tuple[Layout, Stages]]:
    """The hosts as they are named, and as their messages cost least, if that fits: the price decides.

    The second may be the slower one: the annealer knows what messages take, and not how fast its hosts are.
    """
    yield layout, cut
    if (placed := _placed(job, layout, cut, seed)) is None:
        return
    with suppress(ConfigError):  # no split of the layers fits
        dealt = stages(job, placed)
        if room(job, placed, dealt.layers).fits:
            yield placed, dealt


def _placed(job: Job, layout: Layout, cut: Stages, seed: int) -> Layout | None:
    """Hosts in the order whose messages cost least; None unless each of them holds as much of one stage."""
    shape, p = layout.shape, layout.shape.pipeline
    by_name = {machine.name: machine for machine in layout.machines}
    names, starts = list(by_name), [[m.name for m in layout.machines].index(name) for name in by_name]
    each = Counter(machine.name for machine in layout.machines)
    size = min(each.values())
    inner = size // shape.tensor  # copies on a host
    whole = max(each.values()) == size and len(names) % p == 0 and size % shape.tensor == 0
    if not whole or (inner > 1 and not layout.stages_across):
        return None
    message = boundary_bytes(job.model, job.training, shape.micro_batch) / shape.tensor
    held = stage_parameters(job.model, max(cut.layers), True, p == 1, shape.tensor)
    part = summed_bytes(job.training, held) / inner
    passing, summing = np.zeros((len(names),) * 2), np.zeros((len(names),) * 2)
    for i, a in enumerate(starts):
        for j, b in enumerate(starts):
            if i != j:
                line = layout.line(a, b)
                passing[i, j] += line.latency + message / line.bandwidth
                passing[j, i] += line.latency + message / line.bandwidth
                summing[i, j] = all_reduce_seconds(line, len(names) // p, part)
    rounds = -(-shape.micro_batches(job.training.batch) // p)
    early = min(passes.back for passes in cut.passes)
    found = place(Placing(p, passing, summing, np.zeros(len(names)), rounds, early), seed)
    # A row of the annealer's is a pipeline; workers are in the order of stages, or of copies.
    table = np.array(found.order).reshape(-1, p)
    order = (table.T if layout.stages_across else table).reshape(-1)
    return replace(layout, machines=tuple(by_name[names[host]] for host in order for _ in range(size)))


def _no_room(taken: Room) -> str:
    return (
        f"stage {taken.stage} takes {units.size(taken.taken)} of {units.size(taken.limit)}: "
        f"{units.size(taken.memory.states)} of states, {units.size(taken.memory.activations)} of activations, "
        f"{units.size(taken.memory.momentary)} for a moment; {units.size(taken.taken - taken.limit)} too much"
    )


def _nowhere(job: Job, cluster: Cluster, machines: Sequence[Machine], refused: Sequence[Refused]) -> str:
    """That no shape fits, by how much the nearest misses, and what would make one fit."""
    full = sorted((one for one in refused if one.room is not None), key=_excess)
    if not full:
        return (
            f"shapes: no shape of {len(machines)} workers comes out whole: {refused[0].why}, and the like; "
            "take another batch, or leave workers out"
        )
    nearest = full[0]
    said = f"shapes: the model fits nowhere on {cluster.name}; nearest is {nearest.shape}: {nearest.why}."
    return f"{said} {_remedy(job, cluster, machines, nearest)}"


def _remedy(job: Job, cluster: Cluster, machines: Sequence[Machine], nearest: Refused) -> str:
    """The least change that makes a shape fit: in how it is trained, else more memory."""
    training = job.training
    changes: list[tuple[str, dict[str, Any]]] = [
        ("a sharded optimizer", {"sharded_optimizer": True}),
        ("sequence parallelism", {"sequence_parallel": True}),
        *((f"{how} recomputing", {"recompute": how}) for how in RECOMPUTE[RECOMPUTE.index(training.recompute) + 1 :]),
    ]
    changes.append(("all of that", {k: v for _, change in changes for k, v in change.items()}))
    for words, change in changes:
        other = replace(job, training=replace(training, **change))
        for shape in _shapes(other, len(machines), MICRO_BATCHES, (1,), []):
            layout = Layout(cluster, tuple(machines), shape)
            even = _even(job.model.layers, shape.pipeline)
            if other != job and room(other, layout, even).fits:
                return f"With {words} it would fit, as {shape}."
    assert nearest.room is not None
    wanted = nearest.room.taken / (1 - RESERVE)
    return f"It would fit with {units.size(wanted)} of memory on each worker, or on more workers."


def why(ranking: Ranking) -> str:
    """Why the first is first: where its time goes, what holds its memory, and how the next differs."""
    first = ranking.best[0]
    largest = sorted(first.terms.items(), key=lambda term: -term[1])
    parts = ", ".join(f"{units.share(s / first.seconds)} {name}" for name, s in largest if s >= 0.005 * first.seconds)
    said = [f"{first.shape} takes {units.duration(first.seconds)} a step: {parts}."]
    taken = first.room
    said.append(
        f"The fullest worker is of stage {taken.stage}: {units.size(taken.taken)} of {units.size(taken.limit)}, "
        f"{units.share(taken.memory.states / taken.memory.total)} of it states."
    )
    if len(ranking.best) > 1:
        second = ranking.best[1]
        name = max(TERMS, key=lambda name: second.terms[name] - first.terms[name])
        more = second.terms[name] - first.terms[name]
        slower = second.seconds / first.seconds - 1
        how = f"{units.share(slower)} slower: {units.duration(more)} more of {name}" if slower > 0.0005 else "as fast"
        said.append(f"Next is {second.shape}, {how}.")
    return " ".join(said)
