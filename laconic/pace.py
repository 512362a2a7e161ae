"""How long a step takes on a simulated machine: its floating-point operations over what the machine reaches.

Counted are those of matrix products, convolutions and attention (torch's own counter), forward and backward, on one
batch; the optimizer and what works element by element are left out, and belong into ``flops``, which is what a machine
reaches in training and not what its makers promise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from laconic.drag import factors
from laconic.errors import ConfigError
from laconic.links.base import Link
from laconic.plan.cluster import read_cluster
from laconic.recipe import FLOPS, Recipe
from laconic.workloads import Workload, load

BACKWARD = 2 / 3  # of a step whose seconds are given: twice the forward pass


class Work(NamedTuple):
    """Seconds of a forward and of a backward pass of one batch of so many ``tokens``."""

    forward: float
    backward: float
    tokens: int

    def __mul__(self, factor: float) -> Work:  # type: ignore[override]
        return Work(self.forward * factor, self.backward * factor, self.tokens)


def operations(workload: Workload, seed: int = 0) -> Work:
    """Floating-point operations of one step, in the place of seconds.

    Raises: ConfigError where none are counted.
    """
    with torch.random.fork_rng(devices=[]):
        model = workload.make_model()
        batch = next(iter(workload.batches("train", 0, 1, seed)))
        with FlopCounterMode(display=False) as counter:
            loss = workload.loss(model, batch)
            forward = counter.get_total_flops()
            loss.backward()
            backward = counter.get_total_flops() - forward
    if not forward + backward:
        raise ConfigError(
            f"{workload.name}: no matrix product, convolution or attention is counted in its step, so that it would "
            "take no time; say how long it takes: step_seconds=0.1"
        )
    return Work(float(forward), float(backward), workload.tokens(batch))


def paces(recipe: Recipe, workload: Workload) -> list[Work]:
    """What each worker's step takes: as the recipe says, else its operations over its machine's ``flops``."""
    slow = factors(recipe.slow, recipe.workers)
    if recipe.step_seconds is not None:
        tokens = workload.tokens(next(iter(workload.batches("train", 0, recipe.workers, recipe.seed))))
        whole = Work(recipe.step_seconds * (1 - BACKWARD), recipe.step_seconds * BACKWARD, tokens)
        return [whole * factor for factor in slow]
    count = operations(workload, recipe.seed)
    if recipe.flops is not None or not recipe.cluster:
        return [count * (factor / (recipe.flops or FLOPS)) for factor in slow]
    placed = read_cluster(recipe.cluster).shares(recipe.workers)
    return [count * (factor / machine.flops) for factor, machine in zip(slow, placed, strict=True)]


class Pace:
    """Charges one worker's link for what it computes, as it computes it.

    The backward pass is charged parameter by parameter as gradients get ready, each by its share of the elements: so
    buckets leave in its course. That a parameter's share of the work is its share of the elements is right for dense
    layers, and too much for embeddings.
    """

    def __init__(self, link: Link, work: Work) -> None:
        self.link, self.work = link, work
        self._elements = 1
        self._scale = self._left = 0.0

    def watch(self, model: nn.Module) -> None:
        """Follow the model's backward passes; before anything else that hooks onto its gradients."""
        params = [p for p in model.parameters() if p.requires_grad]
        self._elements = max(1, sum(p.numel() for p in params))
        for param in params:
            param.register_post_accumulate_grad_hook(self._ready)

    def forward(self, tokens: int) -> None:
        """A forward pass over so many tokens."""
        self._scale = tokens / self.work.tokens
        self.link.compute(self.work.forward * self._scale)

    def backward(self) -> None:
        """A backward pass begins."""
        self._left = self.work.backward * self._scale

    def done(self) -> None:
        """The backward pass has ended, whatever parameters it has left out."""
        self.link.compute(self._left)
        self._left = 0.0

    def _ready(self, param: Tensor) -> None:
        seconds = min(self._left, self.work.backward * self._scale * param.numel() / self._elements)
        self._left = max(0.0, self._left - seconds)
        self.link.compute(seconds)


def pace_of(recipe: Recipe) -> str:
    """What a simulation takes a step to be, in a sentence."""
    from laconic.bench import units

    seconds = [work.forward + work.backward for work in paces(recipe, load(recipe.workload, recipe.options))]
    spread = units.duration(min(seconds))
    if not math.isclose(min(seconds), max(seconds), rel_tol=1e-6):
        spread += f" to {units.duration(max(seconds))}"
    if recipe.step_seconds is not None:
        why = "as step_seconds says"
    elif recipe.flops is not None:
        why = f"at {recipe.flops / 1e9:g} Gflop/s"
    elif recipe.cluster:
        why = f"at what {recipe.cluster}'s machines reach"
    else:
        why = f"at {FLOPS / 1e9:g} Gflop/s, unless --flops or --step-seconds says otherwise"
    return f"simulated: a step computes for {spread}, {why}"
