"""A tiny model, its data, and its training on memory links: what the tests of syncs and of attach share."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from laconic import attach
from laconic.links import memory

FEATURES, CLASSES, ROWS = 6, 3, 8


def model(dtype=torch.float64, seed=0):
    """Three layers, blocks that are numbered, matrices and vectors; 2-D weights of more than rank 1."""
    layers = [nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return seeded(nn.Sequential(*layers).to(dtype), seed)


def seeded(net, seed=0):
    """Weights from a generator of their own: workers are threads, and torch's global one is shared by all of them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def batch(worker, step, dtype=torch.float64, rows=ROWS):
    """Rows that worker sees at this step: a pure function of both."""
    generator = torch.Generator().manual_seed(1000 * worker + step)
    x = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return x, x[:, :CLASSES].argmax(dim=1)


def loss(net, data):
    x, y = data
    return nn.functional.cross_entropy(net(x), y)


def sgd(net, lr=0.1, **settings):
    return torch.optim.SGD(net.parameters(), lr=lr, **settings)


def step(net, sync, worker, number):
    """One step of an ordinary loop; of a method without backward, by the loss alone."""
    if sync.sync.explore is not None:
        data = batch(worker, number, next(net.parameters()).dtype)
        sync.step(lambda: loss(net, data))
        return
    loss(net, batch(worker, number, next(net.parameters()).dtype)).backward()
    sync.step()
    sync.zero_grad()


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def train(link, method, steps=6, make=model, optimizer=sgd, each=None, **settings):
    """Train on one worker and return its weights; ``each(sync, net)`` is collected after every step, if given."""
    net = make()
    sync = attach(net, optimizer(net), method, link, **settings)
    seen = []
    for number in range(steps):
        step(net, sync, link.rank, number)
        if each is not None:
            seen.append(each(sync, net))
    sync.drain()
    return seen if each is not None else weights(net)


def together(workers, method, steps=6, **settings):
    """Train on so many workers; each one's result, in rank order."""
    return memory.run(workers, lambda link: train(link, method, steps, **settings))


def digest(tensors):
    """A hash of all bits."""
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
    return hashlib.sha256(b"".join(raw)).hexdigest()


def equal(a, b):
    """The same bits, tensor by tensor."""
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, tolerance=1e-12):
    """Equal up to rounding, tensor by tensor."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
