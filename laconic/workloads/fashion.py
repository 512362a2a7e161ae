"""A small convolutional network on a part of Fashion-MNIST: ten kinds of clothing.

12,000 training and 2,000 test images of 28 x 28 pixels, balanced over the classes. The network has no batch norm,
so workers share no statistics but their parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from laconic.workloads.shares import deal_by_label, positive, stream

OPTIONS = {
    "batch_size": (64, "images in a worker's batch"),
    "skew": (0.0, "part of the images dealt by label: 0 every worker alike, 1 each worker few classes"),
}
EVAL_BATCH = 500
MEAN, DEVIATION = 0.2860, 0.3530  # of a pixel in [0, 1], over the 60,000 official training images

Batch = tuple[Float[Tensor, "batch 1 28 28"], Int[Tensor, "batch"]]


@cache
def images(split: str) -> tuple[Float[Tensor, "count 1 28 28"], Int[Tensor, "count"]]:
    """All images of a split, normalised, and their labels."""
    with np.load(Path(__file__).parent / "data" / "fashion.npz", allow_pickle=False) as packed:
        levels, labels = packed[f"{split}_levels"], packed[f"{split}_labels"]
    value = ((np.arange(16) / 15 - MEAN) / DEVIATION).astype(np.float32)  # of each of the 16 grey levels
    return torch.from_numpy(value[levels])[:, None], torch.from_numpy(labels.astype(np.int64))


def make_model() -> nn.Module:
    """Two convolutions, each followed by pooling, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def batches(
    split: str, worker: int, workers: int, seed: int, *, batch_size: int = 64, skew: float = 0.0
) -> Iterator[Batch]:
    """Batches of normalised images and their labels.

    Raises: ConfigError for an option out of its range, or more workers than images.
    """
    positive("batch_size", batch_size)
    pixels, labels = images(split)
    if split == "eval":
        return zip(pixels.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)
    share = deal_by_label(labels.numpy(), worker, workers, seed, skew)
    return ((pixels[places], labels[places]) for places in stream(share, batch_size, worker, seed))


def loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Cross-entropy."""
    pixels, labels = batch
    return F.cross_entropy(model(pixels), labels)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
