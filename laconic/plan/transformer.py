"""What a transformer costs to train: parameters, floating-point operations and traffic, in closed form.

Letters of the papers: l layers, h ``hidden``, a ``heads``, s ``sequence``, V ``vocabulary``, B ``batch`` (examples of
all workers in a step), b ``micro_batch``, and the ways a model is cut: p ``pipeline``, t ``tensor``, d ``data``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from laconic.errors import ConfigError

RECOMPUTE = ("none", "selective", "full")  # which activations are computed again in the backward pass


@dataclass(frozen=True)
class Transformer:
    """A decoder of equal layers. ``feed_forward`` is the inner width of its MLPs (0: 4h); ``tied``: the head is the
    embedding."""

    layers: int
    hidden: int
    heads: int
    sequence: int
    vocabulary: int
    feed_forward: int = 0
    tied: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "sequence", "vocabulary"):
            if getattr(self, name) < 1:
                raise ConfigError(f"transformer: {name} must be at least 1, got {getattr(self, name)}")
        if self.feed_forward < 0:
            raise ConfigError(f"transformer: feed_forward must be 0 (for 4 hidden) or more, got {self.feed_forward}")
        if self.hidden % self.heads:
            raise ConfigError(f"transformer: {self.heads} heads do not divide a hidden size of {self.hidden}")

    @property
    def inner(self) -> int:
        """The width of an MLP's hidden layer."""
        return self.feed_forward or 4 * self.hidden


@dataclass(frozen=True)
class Training:
    """How a model is trained, whatever its shape.

    ``value_bytes`` are those of a parameter and an activation (2: mixed precision, 4: single), ``gradient_bytes`` those
    of a gradient when copies are summed. ``flash`` attention never holds its s x s scores. ``sequence_parallel`` cuts
    also what tensor parallelism leaves whole; ``sharded_optimizer`` cuts the optimizer's state among the copies
    (ZeRO-1).
    """

    batch: int
    recompute: str = "selective"
    flash: bool = True
    sequence_parallel: bool = True
    sharded_optimizer: bool = True
    value_bytes: int = 2
    gradient_bytes: int = 4

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"training: batch must be at least 1 example, got {self.batch}")
        if self.recompute not in RECOMPUTE:
            raise ConfigError(f"training: recompute is one of {', '.join(RECOMPUTE)}; got {self.recompute!r}")
        if self.value_bytes not in (2, 4) or self.gradient_bytes not in (2, 4):
            raise ConfigError("training: value_bytes and gradient_bytes are 2 or 4")


@dataclass(frozen=True)
class Shape:
    """How a model is cut: into ``pipeline`` stages of ``chunks`` pieces each, ``tensor`` ways within a layer, in
    ``data`` copies, fed ``micro_batch`` examples at a time."""

    pipeline: int
    tensor: int
    data: int
    micro_batch: int
    chunks: int = 1

    @property
    def workers(self) -> int:
        """How many workers it takes."""
        return self.pipeline * self.tensor * self.data

    def micro_batches(self, batch: int) -> int:
        """m: how many micro-batches a pipeline takes in a step.

        Raises: ConfigError unless they come out whole.
        """
        if batch % (self.data * self.micro_batch):
            raise ConfigError(
                f"a batch of {batch} cannot be dealt to {self.data} copies in micro-batches of {self.micro_batch}; "
                f"take a multiple of {self.data * self.micro_batch}"
            )
        return batch // (self.data * self.micro_batch)

    def __str__(self) -> str:
        chunks = f" v={self.chunks}" if self.chunks > 1 else ""
        return f"p={self.pipeline} t={self.tensor} d={self.data} b={self.micro_batch}{chunks}"


def layer_parameters(model: Transformer) -> int:
    """Of one layer: attention, MLP, their biases and two normalisations; 12 h^2 + 13 h at an inner width of 4h."""
    h, f = model.hidden, model.inner
    return 4 * h * h + 2 * h * f + 9 * h + f


def parameters(model: Transformer) -> int:
    """Of the whole model: layers, the embedding and the places'; with a head of its own if it is not tied.

    Law:    at an inner width of 4h and tied, ``12 l h^2 (1 + 13/(12h) + (V + s)/(12 l h))``.
    Source: Narayanan et al. 2021, arXiv:2104.04473, section 5.1 (equation 2).
    """
    heads = 1 if model.tied else 2
    return model.layers * layer_parameters(model) + (heads * model.vocabulary + model.sequence) * model.hidden


def stage_parameters(model: Transformer, layers: int, first: bool, last: bool, tensor: int = 1) -> float:
    """On one worker of a stage: its share of the layers; the embedding at the first, a head (or its tied copy) at the
    last."""
    table = model.hidden * model.vocabulary
    tables = first + (last and not (first and model.tied))
    places = model.sequence * model.hidden if first else 0  # whole on every worker
    return (layers * layer_parameters(model) + tables * table) / tensor + places


def layer_flops(model: Transformer, examples: int) -> float:
    """Operations of one layer's forward pass over so many examples; the backward pass takes twice as many."""
    h, f, s = model.hidden, model.inner, model.sequence
    return examples * s * (8 * h * h + 4 * h * f + 4 * s * h)


def core_flops(model: Transformer, examples: int) -> float:
    """Of these, what makes and applies the attention scores."""
    return 4 * examples * model.sequence**2 * model.hidden


def head_flops(model: Transformer, examples: int) -> float:
    """Operations of the head, forward and backward; it is not computed again."""
    return 6 * examples * model.sequence * model.hidden * model.vocabulary


def flops(model: Transformer, batch: int, recompute: str = "none") -> float:
    """Operations of one step. Without recomputing, the model's own: what a share of the peak should be counted by.

    Law:    ``72 B s l h^2 (1 + s/(6h) + V/(12 l h))``; with full recomputing 96 for 72 and 16 for 12.
    Source: arXiv:2104.04473, appendix; selective: Korthikanti et al. 2022, arXiv:2205.05198, section 5.
    """
    again = {"none": 0.0, "selective": core_flops(model, batch), "full": layer_flops(model, batch)}[recompute]
    return model.layers * (3 * layer_flops(model, batch) + again) + head_flops(model, batch)


class Traffic(NamedTuple):
    """Bytes that one worker sends in a step, of each kind."""

    pipeline: float
    tensor: float
    data: float
    loss: float


def traffic(model: Transformer, training: Training, shape: Shape) -> Traffic:
    """What a worker in the middle of the pipeline sends in one step; ``loss`` is the last stage's.

    Pipeline: its share of the boundary forward and backward, once a micro-batch and chunk. Tensor: four all-reduces of
    ``b s h`` a layer (or as many all-gathers and reduce-scatters, of the same bytes), six if all is computed again.
    Data: one all-reduce of its gradients; with a sharded optimizer a reduce-scatter of gradients and an all-gather of
    parameters.

    Law:    ``t = 1`` sends no tensor traffic, ``d = 1`` no data traffic, ``p = 1`` no pipeline traffic.
    Source: arXiv:2104.04473, sections 3.2 and 4.1; arXiv:2205.05198, section 4.2.2.
    """
    p, t, d = shape.pipeline, shape.tensor, shape.data
    m = shape.micro_batches(training.batch)
    whole = boundary_bytes(model, training, shape.micro_batch)
    layers = model.layers / p
    copies = data_factor(training, d) * stage_parameters(model, 1, False, False, t) * layers
    return Traffic(
        pipeline=(2 * m * shape.chunks * whole / t) if p > 1 else 0.0,
        tensor=m * layers * reductions(training) * 2 * (t - 1) / t * whole,
        data=copies,
        loss=m * 3 * 2 * (t - 1) / t * shape.micro_batch * model.sequence * 4,
    )


def boundary_bytes(model: Transformer, training: Training, micro_batch: int) -> float:
    """What passes between two layers for one micro-batch: ``b s h`` values."""
    return micro_batch * model.sequence * model.hidden * training.value_bytes


def reductions(training: Training) -> int:
    """All-reduces of the boundary that tensor parallelism takes in a layer, for each micro-batch."""
    return 6 if training.recompute == "full" else 4


def data_factor(training: Training, data: int) -> float:
    """Bytes that a worker sends for each parameter it holds to bring ``data`` copies together."""
    share = (data - 1) / data
    if training.sharded_optimizer:
        return share * (training.gradient_bytes + training.value_bytes)
    return share * 2 * training.gradient_bytes


def training_seconds(tokens: float, parameters: float, workers: int, rate: float, recompute: str = "none") -> float:
    """Seconds of training on so many tokens at ``rate`` operations a second of each worker: 6 T P / (n X), with full
    recomputing 8 T P / (n X).

    Source: arXiv:2104.04473, section 5.1 (equation 4).
    """
    return (8 if recompute == "full" else 6) * tokens * parameters / (workers * rate)


def checkpoints(layers: int, kept: float, inside: float) -> float:
    """How many of a stage's ``layers`` should keep their input, the others being computed again from the one before.

    ``kept`` bytes are such an input's, ``inside`` those of one layer's activations. Held are ``c`` inputs and, while it
    is computed again, one piece: ``c kept + (l / c) inside`` bytes.

    Law:    ``c = sqrt(l inside / kept)`` makes that least.
    Source: arXiv:2104.04473, section 3.5.
    """
    return math.sqrt(layers * inside / kept)
