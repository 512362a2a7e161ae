"""Gossip: what its ends are, what overlapping changes, and what it refuses."""

import pytest
import torch

from laconic import attach
from laconic.compress import momentum_correction, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone, graph, pairs, push_sum
from laconic.links import memory
from laconic.sync import every_step, gossip, local_steps
from tests.tiny import batch, close, equal, loss, model, sgd, step, together, weights


def every_weight(sync, net):
    return weights(net)


@pytest.mark.parametrize("exchange", [lambda: graph(topology="complete"), lambda: push_sum(topology="complete")])
def test_on_a_complete_graph_mixing_after_each_plain_step_is_data_parallel_training(exchange):
    a = together(3, gossip(exchange(), overlap=0), each=every_weight)
    b = together(3, every_step(), each=every_weight)
    for one, other in zip(a, b, strict=True):
        for x, y in zip(one, other, strict=True):
            close(x, y)


def test_with_everyones_mean_and_no_overlap_it_is_local_steps():
    a = together(3, gossip(everyone(), every=3, overlap=0), steps=9)
    b = together(3, local_steps(every=3), steps=9)
    for one, other in zip(a, b, strict=True):
        close(one, other)


def test_one_worker_trains_alone():
    close(together(1, gossip(), steps=5)[0], together(1, "alone", steps=5)[0])


def test_by_default_it_is_the_published_recursion_with_the_gradient_before_the_mixing():
    """theta_i <- sum_j W_ij theta_j - lr grad F_i(theta_i), done by hand on three workers in a line."""
    mixing = torch.tensor([[2 / 3, 1 / 3, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 3, 2 / 3]], dtype=torch.float64)
    nets = [model() for _ in range(3)]
    for number in range(5):
        before = [weights(net) for net in nets]
        for worker, net in enumerate(nets):
            optimizer = sgd(net)
            optimizer.zero_grad()
            loss(net, batch(worker, number)).backward()
            optimizer.step()
        moved = [[a - b for a, b in zip(weights(n), old, strict=True)] for n, old in zip(nets, before, strict=True)]
        for i, net in enumerate(nets):
            with torch.no_grad():
                for k, p in enumerate(net.parameters()):
                    p.copy_(sum(mixing[i, j] * before[j][k] for j in range(3)) + moved[i][k])
    got = together(3, gossip(graph(topology="0-1,1-2")), steps=5)
    for one, net in zip(got, nets, strict=True):
        close(one, weights(net))


@pytest.mark.parametrize("overlap", [0, 1, 3])
@pytest.mark.parametrize("exchange", [graph, pairs, push_sum])
def test_the_mean_of_the_workers_moves_by_the_mean_of_their_steps_whatever_the_overlap(exchange, overlap):
    """Along a linear loss, so that gradients do not depend on where a worker is."""
    slopes = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def work(link):
        net = torch.nn.Linear(5, 1, bias=False).double()
        torch.nn.init.zeros_(net.weight)
        sync = attach(net, torch.optim.SGD(net.parameters(), lr=1.0), gossip(exchange(), 4, overlap), link)
        for slope in slopes[:, link.rank]:
            (net.weight * slope).sum().backward()
            sync.step()
            sync.zero_grad()
        sync.finish()
        return net.weight.detach().clone()

    got = torch.stack(memory.run(4, work))
    torch.testing.assert_close(got.mean(0)[0], -slopes.sum(0).mean(0))
    assert float((got - got.mean(0)).abs().max()) > 1e-3


def test_gossip_lets_gradients_be_taken_while_mixing_runs_and_waits_only_for_the_next():
    """Nobody is asked for an answer in the step in which it was sent."""
    events = []

    def work(link):
        plain = link.start

        def start(run, *args):
            handle = plain(run, *args)
            events.append("sent")
            result = handle.result
            handle.result = lambda: (events.append("taken"), result())[1]
            return handle

        net = model()
        sync = attach(net, sgd(net), gossip(), link)
        link.start = start
        for number in range(3):
            step(net, sync, 0, number)
            events.append("step")
        del link.start

    memory.run(1, work)
    assert events == ["sent", "step", "taken", "sent", "step", "taken", "sent", "step"]


def test_finishing_takes_what_is_under_way_and_once():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), gossip(graph(topology="complete")), link)
        for number in range(3):
            step(net, sync, link.rank, number)
        sync.finish()
        once = weights(net)
        sync.finish()
        return once, equal(once, weights(net))

    got = memory.run(3, work)
    assert all(same for _, same in got)
    close(got[0][0], got[1][0])


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: gossip(every=2, overlap=3), ConfigError, "overlap must be at most every=2 steps"),
        (lambda: gossip(overlap=-1), ConfigError, "overlap"),
        (lambda: gossip(everyone(topk())), ClashError, "sends whole weights"),
        (lambda: gossip(everyone(momentum_correction())), ClashError, "adds momentum"),
    ],
)
def test_settings_and_parts_that_cannot_be_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_a_graph_that_does_not_fit_the_workers_is_refused_before_the_first_step():
    def work(link):
        net = model()
        with pytest.raises(ConfigError, match=r"of 3 workers \(0 to 2\), and the run has 2"):
            attach(net, sgd(net), gossip(graph(topology="0-1,1-2")), link)
        with pytest.raises(ConfigError, match="2 workers make no rectangle"):
            attach(net, sgd(net), gossip(graph(topology="torus")), link)
        return True

    assert memory.run(2, work) == [True, True]
