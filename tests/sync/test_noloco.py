"""NoLoCo: the mean follows DiLoCo, the deviations shrink at the derived rate, one peer hears one message."""

import math

import numpy as np
import pytest
import torch

from laconic.exchange import Exchange, pairs
from laconic.exchange.pairs import partner
from laconic.links import memory
from laconic.sync import noloco
from tests.tiny import close, together


class Alone:
    """A stand-in for a link: the exchange below reads a table, so everything may run at once."""

    def __init__(self, rank):
        self.rank, self.size = rank, 1

    def start(self, run, *args):
        answer = run(*args)
        return type("Done", (), {"result": staticmethod(lambda: answer)})


def slow(state):
    return state.fragments[0].anchor[0]


def population(workers, lr, momentum, mixing, seed, rounds, move, dims=32):
    """Simulate NoLoCo's own after_step on many workers; yields their slow weights after each round."""
    table = {}

    def run(tensors, state, link):
        other = partner(link.rank, workers, seed, state)
        both = [table[r] for r in sorted({link.rank, other})]
        return [sum(ts) / len(ts) for ts in zip(*both, strict=True)], state + 1

    talk = Exchange(lambda tensors: 0, run, equal=False, name="table")
    sync = noloco(talk, every=1, lr=lr, momentum=momentum, mixing=mixing)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(workers, dims, generator=generator, dtype=torch.float64)
    states = [sync.init([start[r]]) for r in range(workers)]
    for number in range(rounds):
        thetas = [slow(states[r]) + move(number, r, slow(states[r])) for r in range(workers)]
        for r in range(workers):
            moved = [thetas[r] - slow(states[r]), slow(states[r])]
            table[r] = [thetas[r]] if mixing in (None, lr) else moved
        states = [sync.after_step([thetas[r]], states[r], Alone(r))[1] for r in range(workers)]
        yield torch.stack([slow(s) for s in states]), torch.stack([s.fragments[0].velocity[0] for s in states])


@pytest.mark.parametrize("mixing", [None, 0.3])
@pytest.mark.parametrize("workers", [6, 7])
def test_the_mean_over_workers_follows_the_heavy_ball_recursion_whoever_met_whom(mixing, workers):
    lr, momentum, rounds = 0.6, 0.5, 12
    moves = torch.randn(rounds, workers, 32, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    start = torch.randn(workers, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    phi, delta = start.mean(0), torch.zeros(32, dtype=torch.float64)
    trail = population(workers, lr, momentum, mixing, 1, rounds, lambda n, r, slow: moves[n, r])
    for number, (slow, velocity) in enumerate(trail):
        delta = momentum * delta + lr * moves[number].mean(0)
        phi = phi + delta
        torch.testing.assert_close(velocity.mean(0), delta, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(slow.mean(0), phi, rtol=1e-12, atol=1e-12)


def radius(alpha, gamma, workers):
    """The largest eigenvalue of the recursion of (E x^2, E x d, E d^2), for pairs among so many workers."""
    k = workers / (2 * (workers - 1))
    velocity = np.array([gamma**2 * k, -2 * alpha * gamma * k, alpha**2])
    mixed = np.array([-gamma * k, alpha, 0]) + velocity
    position = np.array([1 - 2 * gamma * k, 2 * alpha, 0]) + velocity
    return max(abs(np.linalg.eigvals(np.array([position, mixed, velocity]))))


@pytest.mark.parametrize(("alpha", "gamma", "published"), [(0.5, 0.7, 0.70), (0.0, 1.0, 0.5)])
def test_deviations_shrink_at_the_derived_rate(alpha, gamma, published):
    assert radius(alpha, gamma, 10**9) == pytest.approx(published, abs=0.01)
    still = lambda number, rank, slow: torch.zeros_like(slow)  # noqa: E731
    workers, totals = 32, np.zeros(17)
    for seed in range(8):
        for number, (slow, _) in enumerate(population(workers, gamma, alpha, None, seed, 17, still)):
            totals[number] += float((slow - slow.mean(0)).square().mean())
    assert (totals[16] / totals[4]) ** (1 / 12) == pytest.approx(radius(alpha, gamma, workers), rel=0.05)


def test_outside_the_accepted_region_deviations_would_grow():
    """What the refusal of mixing >= 2 (1 - momentum^2) is for."""
    assert radius(0.5, 1.45, 10**9) < 1 < radius(0.5, 1.55, 10**9)
    assert radius(0.9, 0.37, 10**9) < 1 < radius(0.9, 0.40, 10**9)


def test_sending_the_weights_alone_is_sending_slow_weights_and_displacement():
    lr = 0.7
    a = together(4, noloco(every=2, lr=lr), steps=8)
    b = together(4, noloco(every=2, lr=lr, mixing=math.nextafter(lr, 1)), steps=8)
    for one, other in zip(a, b, strict=True):
        close(one, other)


@pytest.mark.parametrize(("mixing", "copies"), [(None, 1), (0.5, 2)])
def test_a_round_sends_one_message_of_the_weights_to_one_peer_or_of_twice_that(mixing, copies):
    size = 50_000

    def work(link):
        heard = []
        plain = link.send
        link.send = lambda message, to: (heard.append(to), plain(message, to))
        x = torch.zeros(size)
        sync = noloco(pairs(), every=1, mixing=mixing)
        state = sync.init([x])
        for _ in range(3):
            _, state = sync.after_step([x], state, link)
        return heard, link.meter.bytes_out

    for rank, (heard, out) in enumerate(memory.run(4, work)):
        assert heard == [partner(rank, 4, 0, n) for n in range(3)]
        assert 0 <= out - 3 * copies * size * 4 < 3 * 300


def test_workers_weights_differ_and_a_pair_that_met_holds_the_same_mean_pull():
    got = together(4, noloco(every=2), steps=4)
    assert any(not torch.equal(a, b) for a, b in zip(got[0], got[1], strict=True))
