"""A step of a cut model, rehearsed on links: its messages, in the order of its turns, and computing as passing time.

What :func:`laconic.plan.cutting.price` predicts can so be measured, on simulated links to the bit and on real ones with
real bytes, without the model or the accelerators.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from laconic.errors import ConfigError
from laconic.links.base import Link
from laconic.packet import Message, Packet
from laconic.plan import pipeline
from laconic.plan.cutting import Job, Stages, stages, summed_bytes
from laconic.plan.layout import Layout
from laconic.plan.transformer import boundary_bytes, stage_parameters


def rehearse(job: Job, layout: Layout, link: Link, device: str = "meta", cut: Stages | None = None) -> float:
    """Take one step's messages as the worker ``link.rank``, and return its seconds by the link's clock.

    All workers call it with the same layout. On a link that is not simulated, computing sleeps; ``device`` is then
    "cpu", so that there are bytes to send.

    Raises: ConfigError for tensor ways or several chunks, whose messages it does not take; for a link of another size.
    """
    shape, training = layout.shape, job.training
    if shape.tensor > 1 or shape.chunks > 1:
        raise ConfigError(f"rehearsal: {shape} has tensor ways or chunks; it takes stages and copies alone")
    if link.size != shape.workers:
        raise ConfigError(f"rehearsal: {shape} takes {shape.workers} workers, and the link joins {link.size}")
    cut = stages(job, layout) if cut is None else cut
    p, m = shape.pipeline, shape.micro_batches(training.batch)
    stage, copy = next((i, k) for i in range(p) for k in range(shape.data) if layout.rank(i, k, 0) == link.rank)
    before, after = (layout.rank(i % p, copy, 0) for i in (stage - 1, stage + 1))
    boundary = _message(boundary_bytes(job.model, training, shape.micro_batch), device)
    passes = cut.passes[stage]
    lanes = link.lane("back"), link.lane("there")  # so that neither direction waits for the other
    start = link.now()
    for turn in pipeline.order(p, m)[stage]:
        comes, goes = (before, after) if turn.forward else (after, before)
        first, last = (stage == 0, stage == p - 1) if turn.forward else (stage == p - 1, stage == 0)
        if not first:
            link.recv(comes)
        _compute(link, passes.there if turn.forward else passes.back)
        if not last:
            lanes[turn.forward].start(link.send, boundary, goes)
    for lane in lanes:  # until all has left
        lane.start(lambda: None).result()
    held = stage_parameters(job.model, cut.layers[stage], stage == 0, stage == p - 1)
    _around(link, layout.data_group(stage, 0), summed_bytes(training, held), device)
    if job.model.tied and p > 1 and stage in (0, p - 1):
        ends = [layout.rank(0, copy, 0), layout.rank(p - 1, copy, 0)]
        _around(link, ends, job.model.hidden * job.model.vocabulary * training.gradient_bytes, device)
    return link.now() - start


def _around(link: Link, group: Sequence[int], nbytes: float, device: str) -> None:
    """The messages of an all-reduce around a ring."""
    n = len(group)
    if n == 1:
        return
    place = group.index(link.rank)
    part = _message(nbytes / n, device)
    for _ in range(2 * (n - 1)):
        sent = link.start(link.send, part, group[(place + 1) % n])
        link.recv(group[place - 1])
        sent.result()


def _message(nbytes: float, device: str) -> Message:
    return [Packet({"x": torch.empty(max(1, round(nbytes)), dtype=torch.uint8, device=device)})]


def _compute(link: Link, seconds: float) -> None:
    """Let time pass: the link's, if it has its own, else ours."""
    before = link.now()
    link.compute(seconds)
    if link.now() - before < seconds / 2:
        time.sleep(seconds)
