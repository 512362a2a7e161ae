"""A workload as a user writes one: a small network on random rows, which goes wrong when it is told to."""

import os
import time
from pathlib import Path

import torch
from torch import nn

FEATURES, CLASSES, ROWS = 6, 3, 8


def make_model():
    """Three layers; the weights are a pure function of nothing, so threads that share torch's generator agree."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(FEATURES, 8), (8, 8), (8, CLASSES)]
    layers = [layer for shape in shapes for layer in (nn.utils.skip_init(nn.Linear, *shape), nn.Tanh())][:-1]
    with torch.no_grad():
        for layer in layers:
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / 3)
    return nn.Sequential(*layers)


def batches(split, worker, workers, seed, wrong="", at=5, wait=0.0, slow=-1, mark=""):
    """Rows for ever, each after ``wait`` seconds (on worker ``slow``, or on all); at step ``at`` worker 1 does what
    ``wrong`` says, and one that hangs leaves a file ``mark``."""
    for step in range(1, 10**9 if split == "train" else 4):
        generator = torch.Generator().manual_seed(1000 * seed + 100 * step + worker if split == "train" else step)
        x = torch.randn(ROWS, FEATURES, generator=generator)
        if split == "train":
            if slow in (-1, worker):
                time.sleep(wait)
            if wrong and worker == 1 and step == at:
                go_wrong(wrong, x, mark)
        yield x, x[:, :CLASSES].argmax(dim=1)


def go_wrong(wrong, x, mark):
    if wrong == "raise":
        raise KeyError("row 17")
    if wrong == "nan":
        x.fill_(float("nan"))
    if wrong == "kill":
        os.kill(os.getpid(), 9)
    if wrong == "hang":
        Path(mark).touch()
        time.sleep(600)
    if wrong == "shape":
        x[0, 0] = 1e6


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none" if x[0, 0] == 1e6 else "mean")


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)
