"""Merging: the workers' mean, looked at without touching anybody, and normalisation that fits it again."""

import pytest
import torch
from torch import nn

from laconic import attach
from laconic.links import memory
from laconic.merging import distance, merged, normalisations, reestimate, standing_in
from tests.tiny import close, digest, equal, model, seeded, sgd, step, together, weights


def test_the_mean_of_the_workers_is_looked_at_without_moving_a_bit_of_anybody():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "d-psgd", link)
        for number in range(5):
            step(net, sync, link.rank, number)
        before = digest([*weights(net), *sync.state_dict()["tensors"].values()])
        mean = merged(sync)
        apart = distance(sync.weights(), mean)
        with standing_in(net, mean):
            inside = weights(net)
        after = digest([*weights(net), *sync.state_dict()["tensors"].values()])
        step(net, sync, link.rank, 5)
        sync.drain()
        return before == after, weights(net), list(mean.values()), inside, apart

    got = memory.run(3, work)
    straight = together(3, "d-psgd", 6)
    own = together(3, "d-psgd", 5)
    expected = [sum(ws) / 3 for ws in zip(*own, strict=True)]
    for rank, (untouched, ended, mean, inside, apart) in enumerate(got):
        assert untouched
        assert equal(ended, straight[rank]), "training goes on as if nobody had looked"
        close(mean, expected)
        assert equal(inside, mean)
        far = sum(float((a - b).square().sum()) for a, b in zip(own[rank], expected, strict=True))
        assert apart == pytest.approx(far)
        assert apart > 0


class Normed(nn.Module):
    """A layer with running statistics, and dropout, which estimating them must leave out."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.last = nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.first(x))))


def batches(rank, count=4, rows=16):
    return [torch.randn(rows, 4, generator=torch.Generator().manual_seed(10 * rank + n)) + rank for n in range(count)]


def test_statistics_are_those_of_everyones_batches_under_the_weights_that_are_there_now():
    def work(link):
        net = seeded(Normed())
        net(torch.randn(8, 4) * 100)  # statistics of other weights, as merging leaves them
        before = digest(net.parameters())
        found = reestimate(net, net, batches(link.rank), link)
        assert digest(net.parameters()) == before
        assert net.training
        assert net.norm.momentum == 0.1
        return found, net.norm.running_mean, net.norm.running_var, int(net.norm.num_batches_tracked)

    net = seeded(Normed())
    with torch.no_grad():
        seen = [net.first(x) for rank in range(3) for x in batches(rank)]
    mean = torch.stack([x.mean(0) for x in seen]).mean(0)
    within = torch.stack([torch.stack([x.var(0) for x in seen[4 * r : 4 * r + 4]]).mean(0) for r in range(3)]).mean(0)
    centres = torch.stack([torch.stack([x.mean(0) for x in seen[4 * r : 4 * r + 4]]).mean(0) for r in range(3)])
    for found, running_mean, running_var, count in memory.run(3, work):
        assert (found, count) == (1, 1)
        torch.testing.assert_close(running_mean, mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(running_var, within + centres.var(0, unbiased=False), rtol=1e-4, atol=1e-5)


def test_a_model_without_such_layers_is_not_run():
    def never(batch):
        raise AssertionError("it was run")

    assert reestimate(model(), never, [1, 2]) == 0
    assert normalisations(nn.BatchNorm1d(3, track_running_stats=False)) == []
