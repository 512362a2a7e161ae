"""What is trained, as far as a price needs it: shapes, operations, and what a step keeps in memory. No data."""

from __future__ import annotations

import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laconic.errors import ConfigError
from laconic.pace import operations
from laconic.workloads import Workload

VALUE = 4  # bytes of a weight, of its gradient, and of each of an optimizer's numbers about it
VOCABULARY = 50_000
LONGEST = 2**31 - 1  # entries of a tensor
NUMBERED = re.compile(r"(^|\.)(\d+)(\.)")
ASPECT = 128  # of a transformer: its width over its layers, about as in published ones from 1 to 200 billion
BATCH_TOKENS = 16_384  # of a batch, where only a number of parameters is given
TIMED = 3  # steps from which a step's parts are told apart


class Step(NamedTuple):
    """Seconds of a forward pass, a backward pass and an optimizer's step, with what else a step takes, of one batch."""

    forward: float
    backward: float
    rest: float = 0.0

    @property
    def seconds(self) -> float:
        """All three."""
        return self.forward + self.backward + self.rest

    def times(self, factor: float) -> Step:
        """The same on a machine that is so many times slower."""
        return Step(*(factor * part for part in self))


@dataclass(frozen=True)
class Job:
    """One worker's share of the training: a model's parameters by name and shape, and one batch.

    ``forward`` and ``backward`` are floating-point operations of a batch of ``tokens``, ``activations`` the bytes that
    its forward pass keeps for the backward pass, ``optimizer`` those that the optimizer keeps, ``frozen`` those of
    weights that are not trained and of buffers. ``dtype`` is the one that most of the trained weights have.
    """

    name: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    tokens: int
    forward: float
    backward: float
    activations: int = 0
    optimizer: int = 0
    frozen: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Of all weights that are trained, and so of their gradients."""
        return self.parameters * self.dtype.itemsize

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def skeleton(self, device: str = "meta") -> nn.Module:
        """A model of these parameters, in this order: on ``meta`` without data, else random; without a forward pass."""
        root = nn.Module()
        generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
        for name, shape in self.shapes:
            *path, last = name.split(".")
            place = root
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(_filled(shape, device, generator).to(self.dtype)))
        return root

    def at(self, flops: float) -> Step:
        """A step on a machine that reaches so many operations a second in training."""
        return Step(self.forward / flops, self.backward / flops)

    def split(self, seconds: float, parts: Step | None = None) -> Step:
        """A step of so many seconds, parted as ``parts`` are, else as the operations are."""
        shares = parts if parts is not None else Step(self.forward, self.backward)
        whole = shares.seconds
        return shares.times(seconds / whole) if whole else Step(seconds / 3, seconds * 2 / 3)

    def merged(self, most: int) -> Job:
        """The same with at most about so many tensors: neighbouring blocks' tensors of one name, one below the other.

        None is made longer than places of 31 bits reach.
        """
        if len(self.shapes) <= most:
            return self
        width = math.ceil(len(self.shapes) / most)
        groups: dict[tuple[str, int, tuple[int, ...]], tuple[str, int]] = {}
        for place, (name, shape) in enumerate(self.shapes):
            number = NUMBERED.search(name)
            rest = shape[1:]
            alike = max(1, min(width, LONGEST // max(1, math.prod(shape)))) if shape else 1
            block = int(number[2]) // alike if number else -1 - place
            key = (NUMBERED.sub(r"\1*\3", name, count=1) if number else name, block, rest)
            first, rows = groups.get(key, (name, 0))
            groups[key] = first, rows + (shape[0] if shape else 0)
        shapes = [(name, (rows, *rest) if rows else rest) for (_, _, rest), (name, rows) in groups.items()]
        return replace(self, shapes=tuple(shapes))

    def sample(self, entries: int) -> Job:
        """A job of the same kinds of tensors, about so many entries of them: each matrix with fewer rows."""
        share = min(1.0, entries / max(1, self.parameters))
        cut = tuple((n, (max(1, round(share * s[0])), *s[1:]) if len(s) > 1 else s) for n, s in self.shapes)
        return replace(self, shapes=cut)


def of_workload(workload: Workload, seed: int = 0) -> Job:
    """The job of a workload: its model is made once, and trained on one batch.

    Raises: WorkloadError where it cannot be.
    """
    try:
        count: Sequence[float] = operations(workload, seed)
    except ConfigError:  # nothing that is counted: its seconds are to be given
        count = (0.0, 0.0)
    with torch.random.fork_rng(devices=[]):
        model = workload.make_model()
        optimizer = workload.make_optimizer(model)
        batch = next(iter(workload.batches("train", 0, 1, seed)))
        kept = _kept(workload, model, batch)
        optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    shapes = tuple((name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad)
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
    values = Counter[torch.dtype]()
    for p in trained:
        values[p.dtype] += p.numel()
    dtype = max(values, key=lambda kind: values[kind], default=torch.float32)
    work = workload.tokens(batch), count[0], count[1]
    return Job(workload.name, shapes, *work, kept, _nbytes(states), _nbytes(frozen), dtype)


def of_parameters(parameters: float, tokens: int = BATCH_TOKENS) -> Job:
    """A plain transformer of about so many parameters, trained by Adam in float32, without its attention's matrices.

    Law:    2 operations a parameter and token forward and 4 backward; 34 width bytes a token and layer are kept of 16
            bits, here twice that.
    Source: Korthikanti et al. 2022, arXiv:2205.05198, table 2, for what is kept; with attention that is recomputed.
    Raises: ConfigError for a number that is none.
    """
    if not 1e3 <= parameters <= 1e14:
        raise ConfigError(f"--params is a number of parameters, from 1e3 to 1e14, got {parameters:g}")
    layers = max(1, round((parameters / (12 * ASPECT**2)) ** (1 / 3)))
    vocabulary = max(8, min(VOCABULARY, int(0.1 * math.sqrt(12 * layers * parameters))))
    # The width at which 12 width^2 a layer and an embedding on either side make the number asked for.
    width = (math.sqrt(vocabulary**2 + 12 * layers * parameters) - vocabulary) / (12 * layers)
    width = max(8, 8 * int(width / 8))
    shapes: list[tuple[str, tuple[int, ...]]] = [("embedding.weight", (vocabulary, width))]
    for i in range(layers):
        shapes += [
            (f"blocks.{i}.norm1.weight", (width,)),
            (f"blocks.{i}.qkv.weight", (3 * width, width)),
            (f"blocks.{i}.out.weight", (width, width)),
            (f"blocks.{i}.norm2.weight", (width,)),
            (f"blocks.{i}.up.weight", (4 * width, width)),
            (f"blocks.{i}.down.weight", (width, 4 * width)),
        ]
    # Of a width that is a multiple of 8 they are fewer; the output layer takes up the rest.
    left = parameters - sum(math.prod(shape) for _, shape in shapes)
    shapes.append(("head.weight", (max(1, round(left / width)), width)))
    job = Job(f"{parameters:g} parameters", tuple(shapes), tokens, 0.0, 0.0)
    work = float(job.parameters) * tokens
    kept = 2 * 34 * width * layers * tokens
    return replace(job, forward=2 * work, backward=4 * work, activations=kept, optimizer=2 * VALUE * job.parameters)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def timed(workload: Workload, threads: int, seed: int = 0) -> Step:
    """A step's parts on this machine, of a worker alone; the median of a few. Their sum is not that of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, threads))
    try:
        with torch.random.fork_rng(devices=[]):
            model = workload.make_model()
            optimizer = workload.make_optimizer(model)
            batches = workload.batches("train", 0, 1, seed)
            parts = [_timed(workload, model, optimizer, next(batches)) for _ in range(TIMED + 1)][1:]
    finally:
        torch.set_num_threads(before)
    return Step(*(sorted(part)[TIMED // 2] for part in zip(*parts, strict=True)))


def threads_of(workers: int) -> int:
    """Threads of each of so many workers on this machine, as runs have them."""
    return max(1, (os.cpu_count() or 1) // max(1, workers))


def _filled(shape: tuple[int, ...], device: str, generator: torch.Generator | None) -> Tensor:
    return torch.empty(shape, device=device) if generator is None else torch.randn(shape, generator=generator)


def _timed(workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Step:
    moments = [time.perf_counter()]
    optimizer.zero_grad()
    loss = workload.loss(model, batch)
    moments.append(time.perf_counter())
    loss.backward()
    moments.append(time.perf_counter())
    optimizer.step()
    moments.append(time.perf_counter())
    return Step(*(b - a for a, b in pairwise(moments)))


def _kept(workload: Workload, model: nn.Module, batch: Any) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out; each memory counted once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = workload.loss(model, batch)
    loss.backward()
    return sum(found.values())
