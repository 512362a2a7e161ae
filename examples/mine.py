"""Two spirals: is a point in the plane on the one or on the other?

A workload of one's own is a file with three functions. Try it with `laconic train examples/mine.py`.
"""

import math

import torch
from torch import nn

# Optional: what can be set from outside, each with its default and a sentence.
OPTIONS = {
    "width": (32, "units in each hidden layer"),
    "batch_size": (50, "points in a worker's batch"),
}


def spirals(points: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy points of both spirals, and which of the two each is on."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (points,), generator=generator)
    along = torch.rand(points, generator=generator)
    angle = 2 * math.pi * along + math.pi * label
    place = (0.2 + along)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return place + 0.02 * torch.randn(points, 2, generator=generator), label


def make_model(width=32):
    """The network to train, freshly initialised."""
    first, second = nn.Linear(2, width), nn.Linear(width, width)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(width, 2))


def batches(split, worker, workers, seed, *, batch_size=50):
    """For "train" without end, from this worker's share of the points; for "eval" the same few for every worker."""
    if split == "eval":
        yield spirals(1000, seed=1)
        return
    place, label = spirals(10_000, seed=0)
    place, label = place[worker::workers], label[worker::workers]
    generator = torch.Generator().manual_seed(1000 * seed + worker)
    while True:
        order = torch.randperm(len(label), generator=generator)
        for chosen in order.split(batch_size):
            yield place[chosen], label[chosen]


def loss(model, batch):
    """The number to make small."""
    place, label = batch
    return nn.functional.cross_entropy(model(place), label)


def make_optimizer(model):
    """Optional: without it, laconic takes AdamW with a learning rate of 0.001."""
    return torch.optim.Adam(model.parameters(), lr=0.01)
