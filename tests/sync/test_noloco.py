"""NoLoCo: the mean follows DiLoCo, the deviations shrink at the derived rate, one peer hears one message."""

import math

import numpy as np
import pytest
import torch

from laconic.errors import ConfigError
from laconic.exchange import Exchange, pairs
from laconic.exchange.pairs import members, partner
from laconic.links import memory
from laconic.sync import diloco, noloco
from laconic.sync.noloco import radius as region
from tests.sync.quadratic import distance
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


# -- many workers, a row each ----------------------------------------------------------------------------------------


def rows(workers, group, seed=0):
    """The exchange of all workers at once, each a row of the tensors: what pairs() does, without a network."""

    def run(tensors, state, link):
        order = torch.randperm(workers, generator=torch.Generator().manual_seed(1000 * seed + state))
        out = []
        for tensor in tensors:
            mixed = torch.empty_like(tensor)
            for part in order.split(group):
                mixed[part] = tensor[part].mean(0)
            out.append(mixed)
        return out, state + 1

    return Exchange(lambda tensors: 0, run, equal=False, name="rows", group=group)


def squared_distances(method, workers, rounds, noise=0.0, dims=64, own_weights=False):
    """The workers' mean squared distance from their mean after each round, from random weights."""
    generator = torch.Generator().manual_seed(5)
    link, found = Alone(0), []
    x = torch.randn(workers, dims, generator=generator, dtype=torch.float64)
    state = method.init([x])
    for _ in range(rounds):
        x = x + noise * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        updates, state = method.after_step([x], state, link)
        x = updates.get(0, x)
        seen = x if own_weights else slow(state)
        found.append(float((seen - seen.mean(0)).square().mean()))
    return found


@pytest.mark.parametrize(
    ("lr", "momentum", "mixing"), [(0.7, 0.5, None), (0.7, 0.5, 1.2), (0.4, 0.7, 0.6), (1.0, 0.0, None)]
)
def test_the_stationary_distance_of_512_workers_is_the_derived_one(lr, momentum, mixing):
    """beta^2 sigma^2 (1 + alpha) / (gamma (2 (1 - alpha^2) - gamma)): proportional to the inner rate's square."""
    gamma, sigma = lr if mixing is None else mixing, 0.3
    derived = lr**2 * sigma**2 * (1 + momentum) / (gamma * (2 * (1 - momentum**2) - gamma))
    method = noloco(rows(512, 2), every=1, lr=lr, momentum=momentum, mixing=mixing)
    found = squared_distances(method, 512, 160, sigma)[60:]
    assert sum(found) / len(found) == pytest.approx(derived, rel=0.03)


@pytest.mark.parametrize("group", [2, 3, 4, 16])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.8])
def test_the_accepted_mixing_is_what_keeps_groups_of_any_size_together(group, momentum):
    bound = 2 * (1 - momentum**2) / (1 + momentum - 2 * momentum * (group - 1) / group)
    assert region(group, 0.5, momentum, 0.99 * bound) < 1 < region(group, 0.5, momentum, 1.01 * bound)
    noloco(pairs(group=group), lr=0.5, momentum=momentum, mixing=0.99 * bound)
    with pytest.raises(ConfigError, match=rf"in groups of {group}, got .* drift apart for ever"):
        noloco(pairs(group=group), lr=0.5, momentum=momentum, mixing=1.01 * bound)


@pytest.mark.parametrize(
    ("group", "lr", "momentum", "mixing", "own"),
    [
        (2, 0.7, 0.5, 0.7, 0.0),
        (4, 0.7, 0.5, 0.7, 0.0),
        (8, 0.5, 0.7, 1.5, 0.0),
        (2, 0.7, 0.5, 0.7, 0.5),
        (4, 0.9, 0.6, 1.2, 0.8),
    ],
)
def test_distances_shrink_at_the_rate_that_the_refusal_reckons_with(group, lr, momentum, mixing, own):
    """With ``own``, the share of its weights that a worker keeps is part of what it moved next time."""
    overlap = {"overlap": 1, "own": own, "every": 2} if own else {"every": 1}
    method = noloco(rows(1024, group), lr=lr, momentum=momentum, mixing=mixing, **overlap)
    every = overlap["every"]
    found = squared_distances(method, 1024, 40 * every, dims=32)[every - 1 :: every]
    rate = (found[28] / found[8]) ** (1 / 20)
    assert rate == pytest.approx(region(group, lr, momentum, mixing, own), rel=0.05)


def test_outside_the_region_distances_do_grow():
    method = noloco(rows(256, 2)._replace(group=None), every=1, momentum=0.5, lr=1.6)
    found = squared_distances(method, 256, 120)
    assert found[-1] > 10 * found[20]
    assert region(2, 1.6, 0.5, 1.6) > 1


def test_what_is_kept_in_an_overlap_may_leave_the_region_and_is_refused():
    assert region(2, 2.0, 0.5, 0.3) < 0.7
    assert region(2, 2.0, 0.5, 0.3, 1.0) > 1
    noloco(every=4, lr=2.0, mixing=0.3, overlap=2, own=0.5)
    for lr in (0.7, 2.0):
        with pytest.raises(ConfigError, match=r"with own=1, .* multiplies their squared distance by 1.*; use own=0"):
            noloco(every=4, lr=lr, mixing=0.3, overlap=2, own=1.0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_mean_runs_away_from_the_derived_rate_on_and_is_refused_there(momentum):
    limit = 2 * (1 + momentum)
    with pytest.raises(ConfigError, match="the workers' mean runs away"):
        noloco(lr=limit, momentum=momentum, mixing=0.1)
    for lr, stays in ((0.98 * limit, True), (1.02 * limit, False)):
        # heavy-ball diloco, which the mean follows, where a round removes all of the error
        assert (distance(diloco(every=1, lr=lr, momentum=momentum, form="heavy-ball"), 1.0, 1500) < 1) is stays


@pytest.mark.parametrize(("group", "mixing", "copies"), [(2, None, 1), (3, None, 1), (4, 0.5, 2)])
def test_a_worker_sends_its_weights_to_each_of_its_group_and_to_nobody_else(group, mixing, copies):
    size, rounds, workers = 20_000, 3, 7

    def work(link):
        heard = []
        plain = link.send
        link.send = lambda message, to: (heard.append(to), plain(message, to))
        x = torch.zeros(size)
        sync = noloco(pairs(group=group), every=1, mixing=mixing)
        state = sync.init([x])
        for _ in range(rounds):
            _, state = sync.after_step([x], state, link)
        return heard, link.meter.bytes_out

    for rank, (heard, out) in enumerate(memory.run(workers, work)):
        wanted = [other for n in range(rounds) for other in members(rank, workers, 0, n, group) if other != rank]
        assert heard == wanted
        assert 0 <= out - len(wanted) * copies * size * 4 <= len(wanted) * 400


def test_a_fragment_of_the_slow_weights_is_mixed_with_the_partners_at_its_own_steps():
    def each(sync, net):
        return [f.rounds for f in sync._state.fragments]

    seen = together(4, noloco(every=6, fragments=3, overlap=1), steps=13, each=each)[0]
    assert [sum(rounds) for rounds in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
