"""The memory that training a transformer takes on one worker: states, activations and what is there for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from laconic.errors import ConfigError
from laconic.plan.pipeline import in_flight
from laconic.plan.transformer import Shape, Training, Transformer, stage_parameters

RESERVE = 0.1  # of the memory that is left to the allocator's gaps and the libraries' own
PRIOR = 1.0  # measurements that the formula itself is worth in a correction


class Memory(NamedTuple):
    """Bytes on one worker. ``momentary`` is the largest of what is held for a moment: the layer that is being computed
    again, or the logits."""

    states: float
    activations: float
    momentary: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def state_bytes(training: Training, data: int) -> float:
    """Of one parameter: itself, its gradient, and Adam's two moments (and, at 16 bits, a 32-bit copy of itself).

    Source: Narayanan et al. 2021 and NVIDIA/Megatron-LM's count: 18 bytes at 16 bits, 6 + 12/d with the optimizer cut
            among d copies; at 32 bits 16, and 8 + 8/d.
    """
    own, optimizer = (6, 12) if training.value_bytes == 2 else (8, 8)
    return own + optimizer / (data if training.sharded_optimizer else 1)


def layer_activations(
    model: Transformer, training: Training, micro_batch: int, tensor: int = 1, recompute: str | None = None
) -> float:
    """Bytes that one layer keeps of a micro-batch for its backward pass, on one of ``tensor`` workers.

    Values take ``value_bytes``, a dropout's mask one byte. Without flash attention the scores take ``5 a s / h`` times
    ``b s h`` at 16 bits; with it only 4 bytes for each token and head stay.

    Law:    at 16 bits, an inner width of 4h and no flash attention, ``s b h (34 + 5 a s / h)``; tensor parallelism
            makes it ``s b h (10 + 24 / t + 5 a s / (h t))`` and with sequence parallelism all is over t; selective
            recomputing drops the last term, full leaves ``2 s b h``.
    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4 and table 2.
    """
    recompute = training.recompute if recompute is None else recompute
    w, h, s = training.value_bytes, model.hidden, model.sequence
    whole = micro_batch * s * h / (tensor if training.sequence_parallel else 1)
    if recompute == "full":
        return whole * w
    shared = micro_batch * s * h / tensor
    scores = (2 * w + 1) * model.heads * micro_batch * s * s / tensor
    if training.flash:
        core = 4 * model.heads * micro_batch * s / tensor
    else:
        core = scores if recompute == "none" else 0.0
    return whole * (4 * w + 2) + shared * (4 * w + 2 * w * model.inner / h) + core


def stage_memory(
    model: Transformer, training: Training, shape: Shape, layers: Sequence[int], stage: int, copies: int = 0
) -> Memory:
    """On one worker of a stage, when ``layers[i]`` layers are on stage i and one forward and one backward take turns.

    ``copies`` is how many micro-batches are in flight there (0: what the order of turns needs).

    Source: arXiv:2205.05198, sections 4.2.3 and 4.3, and 2104.04473.
    """
    p, t, b = shape.pipeline, shape.tensor, shape.micro_batch
    first, last = stage == 0, stage == p - 1
    flying = copies or float(in_flight(p, stage, shape.micro_batches(training.batch), shape.chunks))
    tokens = b * model.sequence
    kept = layers[stage] * layer_activations(model, training, b, t)
    if first:  # token numbers, and the mask of the dropout behind the embedding
        kept += 8 * tokens + tokens * model.hidden / (t if training.sequence_parallel else 1)
    again = 0.0
    if training.recompute == "full":
        again = layer_activations(model, training, b, t, "none")
    elif training.recompute == "selective" and not training.flash:
        again = layer_activations(model, training, b, t, "none") - layer_activations(model, training, b, t)
    # The last normalisation's input and the head's, and the logits at 32 bits; they live for one micro-batch.
    logits = tokens * (2 * training.value_bytes * model.hidden + 4 * model.vocabulary / t) if last else 0.0
    states = state_bytes(training, shape.data) * stage_parameters(model, layers[stage], first, last, t)
    return Memory(states, kept * flying, max(again, logits))


def least_memory(model: Transformer, training: Training, shape: Shape, layers: Sequence[int], stage: int) -> float:
    """What no order of turns can do without: the states and one micro-batch."""
    memory = stage_memory(model, training, shape, layers, stage, copies=1)
    return memory.states + memory.activations


class Correction(NamedTuple):
    """What measurements say of the formula: ``measured = states * formula + activations * formula + fixed`` bytes."""

    states: float = 1.0
    activations: float = 1.0
    fixed: float = 0.0

    def apply(self, memory: Memory) -> float:
        """Bytes, corrected."""
        return self.states * memory.states + self.activations * (memory.activations + memory.momentary) + self.fixed


def fit_correction(formula: Sequence[Memory], measured: Sequence[float]) -> Correction:
    """The correction of least squares of relative errors, drawn towards none where measurements are few.

    Law:    exact measurements give no correction; with many measurements it goes to the least squares.
    Raises: ConfigError for no measurements, or one that is not positive.
    Source: a linear form of the memory estimator of Pipette, arXiv:2405.18093, section V.
    """
    if not measured or len(formula) != len(measured) or min(measured) <= 0:
        raise ConfigError(
            "a memory correction wants one positive measurement of bytes for each estimate, and at least one"
        )
    seen = np.array(measured, dtype=float)
    size = float(np.mean([m.total for m in formula]))  # the fixed bytes are in units of it
    rows = np.array([[m.states, m.activations + m.momentary, size] for m in formula]) / seen[:, None]
    prior = np.array([1.0, 1.0, 0.0])
    # Ridge: as if PRIOR measurements had said each coefficient alone, and had said that the formula is right.
    known = rows.T @ rows + PRIOR * np.eye(3)
    found = prior + np.linalg.solve(known, rows.T @ (1 - rows @ prior))
    return Correction(float(found[0]), float(found[1]), float(found[2]) * size)
