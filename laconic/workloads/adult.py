"""Logistic regression on Adult (LIBSVM's a9a): does a person earn more than 50,000 dollars a year?

123 binary features, of which at most 14 are 1; 32,561 training and 16,281 test rows, 24 % positive. The problem is
convex with one optimum, so a method that stops elsewhere is biased.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from laconic.workloads.shares import deal_by_label, positive, stream

OPTIONS = {
    "batch_size": (128, "rows in a worker's batch"),
    "skew": (0.0, "part of the rows dealt by label: 0 every worker alike, 1 sorted by label"),
}
FEATURES = 123
L2 = 1e-4
EVAL_BATCH = 1809  # a ninth of the test rows, so all batches weigh the same

Batch = tuple[Float[Tensor, "batch features"], Float[Tensor, "batch"]]


@cache
def rows(split: str) -> tuple[Float[Tensor, "count features"], Float[Tensor, "count"]]:
    """All rows of a split, and whether each is positive."""
    with np.load(Path(__file__).parent / "data" / "adult.npz", allow_pickle=False) as packed:
        places, labels = packed[f"{split}_places"], packed[f"{split}_labels"]
    features = np.zeros((len(places), 1 + FEATURES), np.float32)
    np.put_along_axis(features, places.astype(np.int64), 1.0, axis=1)
    # Place 0 stands for "no further feature" in the packed rows, so its column is no feature.
    return torch.from_numpy(features[:, 1:].copy()), torch.from_numpy(labels.astype(np.float32))


def make_model() -> nn.Module:
    """One linear layer that starts at zero; the problem is convex, so a random start would gain nothing."""
    model = nn.Linear(FEATURES, 1)
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def batches(
    split: str, worker: int, workers: int, seed: int, *, batch_size: int = 128, skew: float = 0.0
) -> Iterator[Batch]:
    """Batches of features and labels.

    Raises: ConfigError for an option out of its range, or more workers than rows.
    """
    positive("batch_size", batch_size)
    features, labels = rows(split)
    if split == "eval":
        return zip(features.split(EVAL_BATCH), labels.split(EVAL_BATCH), strict=True)
    share = deal_by_label(labels.numpy(), worker, workers, seed, skew)
    return ((features[places], labels[places]) for places in stream(share, batch_size, worker, seed))


def loss(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Logistic loss plus ``L2 / 2`` times the squared weights, the bias left out.

    The penalty is in the loss, not in the optimizer, so that what is reported is what is minimised, and the
    gradient that crosses the links is the whole gradient.
    """
    features, labels = batch
    penalty = sum((p.square().sum() for p in model.parameters() if p.dim() > 1), torch.zeros(()))
    return F.binary_cross_entropy_with_logits(model(features).squeeze(1), labels) + L2 / 2 * penalty


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Plain SGD."""
    return torch.optim.SGD(model.parameters(), lr=0.3)
