"""Seconds of one micro-batch's passes through a layer and through the head, on one worker.

Matrix products take their operations over the worker's ``flops``. What works element by element takes the bytes it
touches over ``memory_bandwidth``; by default that is endless, and ``flops`` is to be what the worker reaches in
training. With a known memory bandwidth, ``flops`` is what its matrix products alone reach; with a known number of
``units``, what large ones do, and each product takes its whole rounds of tiles (:mod:`laconic.plan.products`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from laconic.plan import products
from laconic.plan.cluster import Line
from laconic.plan.footprint import state_bytes
from laconic.plan.layout import all_reduce_seconds
from laconic.plan.transformer import (
    Training,
    Transformer,
    boundary_bytes,
    core_flops,
    head_flops,
    layer_flops,
    reductions,
)


class Passes(NamedTuple):
    """Seconds forward and backward: computing, and the messages of tensor parallelism, which nothing hides."""

    forward: float
    backward: float
    forward_messages: float = 0.0
    backward_messages: float = 0.0

    @property
    def there(self) -> float:
        """All of the forward pass."""
        return self.forward + self.forward_messages

    @property
    def back(self) -> float:
        """All of the backward pass."""
        return self.backward + self.backward_messages

    def times(self, layers: float) -> Passes:
        """Of so many layers."""
        return Passes(*(layers * seconds for seconds in self))

    def and_(self, other: Passes) -> Passes:
        """Of both."""
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))


def touched(model: Transformer, training: Training, micro_batch: int, tensor: int) -> tuple[float, float]:
    """Bytes that the element-wise work of one layer reads and writes, forward and backward, as fused as is usual.

    Forward: two normalisations, two (bias, dropout, add), an activation; without flash attention a softmax and a
    dropout of the scores, and their way into and out of the products. Counted operation by operation, from no source.
    """
    w, s = training.value_bytes, model.sequence
    whole = micro_batch * s * model.hidden / (tensor if training.sequence_parallel else 1)
    inner = micro_batch * s * model.inner / tensor
    scores = 0.0 if training.flash else model.heads * micro_batch * s * s / tensor
    attention = (6 * w + 1) * scores
    forward = (10 * w + 2) * whole + 2 * w * inner + attention
    again = {"none": 0.0, "selective": attention, "full": forward}[training.recompute]
    return forward, (16 * w + 2) * whole + 3 * w * inner + (8 * w + 1) * scores + again


def layer_passes(
    model: Transformer,
    training: Training,
    micro_batch: int,
    tensor: int,
    flops: float,
    line: Line,
    memory_bandwidth: float = math.inf,
    units: int = 0,
) -> Passes:
    """Of one layer cut ``tensor`` ways, whose workers are joined by ``line``."""
    there, back = touched(model, training, micro_batch, tensor)
    if units:
        linear = products.seconds(products.linear(model, micro_batch, tensor), flops, units)
        core = products.seconds(products.core(model, micro_batch, tensor), flops, units)
        forward, backward = linear[0] + core[0], linear[1] + core[1]
        again = {"none": 0.0, "selective": core[0], "full": forward}
    else:
        forward = layer_flops(model, micro_batch) / tensor / flops
        backward = 2 * forward
        again = {"none": 0.0, "selective": core_flops(model, micro_batch) / tensor / flops, "full": forward}
    one = all_reduce_seconds(line, tensor, boundary_bytes(model, training, micro_batch))
    return Passes(
        forward + there / memory_bandwidth,
        backward + again[training.recompute] + back / memory_bandwidth,
        2 * one,
        (reductions(training) - 2) * one,
    )


def head_passes(
    model: Transformer, training: Training, micro_batch: int, tensor: int, flops: float, line: Line, units: int = 0
) -> Passes:
    """Of the head and the loss, whose vocabulary is cut ``tensor`` ways: three all-reduces of a number a token."""
    if units:
        forward, backward = products.seconds(products.head(model, micro_batch, tensor), flops, units)
    else:
        forward = head_flops(model, micro_batch) / tensor / flops / 3
        backward = 2 * forward
    loss = 3 * all_reduce_seconds(line, tensor, 4.0 * micro_batch * model.sequence)
    return Passes(forward, backward, loss)


def optimizer_seconds(training: Training, parameters: float, data: int, memory_bandwidth: float = math.inf) -> float:
    """All states read and written once."""
    return 2 * state_bytes(training, data) * parameters / memory_bandwidth
