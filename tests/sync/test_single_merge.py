"""Single merging: what it is at its ends, and when gossip was does not move the mean of what it reaches."""

import pytest
import torch

from laconic import attach
from laconic.exchange import graph, neighbours
from laconic.links import memory
from laconic.sync import every_step, single_merge
from tests.tiny import close, equal, model, sgd, step, together, weights


def merged(workers, sync, steps=6):
    """Each worker's weights after training and after the end."""

    def work(link):
        net = model()
        attached = attach(net, sgd(net), sync, link)
        for number in range(steps):
            step(net, attached, link.rank, number)
        before = weights(net)
        attached.finish()
        return before, weights(net)

    return memory.run(workers, work)


def test_with_everyone_in_every_step_it_is_data_parallel_training_and_the_merge_changes_nothing():
    ours = merged(3, single_merge(neighbours(budget=2), every=1))
    for (before, after), other in zip(ours, together(3, every_step()), strict=True):
        close(before, other)
        close(after, other)


def test_without_gossip_it_is_training_alone_and_one_mean():
    ours = merged(3, single_merge(neighbours(budget=0), every=2))
    alone = together(3, "alone")
    for (before, after), own in zip(ours, alone, strict=True):
        assert equal(before, own)
        close(after, [sum(ws) / 3 for ws in zip(*alone, strict=True)])


@pytest.mark.parametrize("overlap", [0, 2])
def test_at_the_end_all_hold_the_same_bits_the_mean_of_what_they_held(overlap):
    ours = merged(4, single_merge(neighbours(budget=1.5), 2, overlap), steps=8)
    for _, after in ours:
        assert equal(after, ours[0][1])
    if not overlap:
        close(ours[0][1], [sum(ws) / 4 for ws in zip(*(before for before, _ in ours), strict=True)])


def test_with_one_hessian_for_all_the_merged_model_does_not_depend_on_when_gossip_was():
    """Quadratics with minima of their own: the mean follows descent on the mean loss, whatever keeps it meanwhile."""
    centres = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    curvature = torch.tensor([0.1, 0.5, 1.0, 1.5, 0.3], dtype=torch.float64)

    def end(every, steps=24):
        def work(link):
            net = torch.nn.Linear(5, 1, bias=False).double()
            torch.nn.init.zeros_(net.weight)
            method = single_merge(graph(topology="ring"), every)
            sync = attach(net, torch.optim.SGD(net.parameters(), lr=0.3), method, link)
            for _ in range(steps):
                (0.5 * curvature * (net.weight[0] - centres[link.rank]).square()).sum().backward()
                sync.step()
                sync.zero_grad()
            sync.finish()
            return net.weight.detach()[0].clone()

        return memory.run(4, work)[0]

    x = torch.zeros(5, dtype=torch.float64)
    for _ in range(24):
        x = x - 0.3 * curvature * (x - centres.mean(0))
    for every in (1, 5, 12, 24, 100):
        torch.testing.assert_close(end(every), x)


def test_it_asks_for_normalisation_to_be_estimated_again():
    assert single_merge().recalibrates
    assert not single_merge().equal
