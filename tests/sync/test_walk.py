"""Token walks: where they go, what they carry, and what happens when a holder is lost."""

import collections
import itertools
import math
import random
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import attach
from laconic.compress import half, topk
from laconic.errors import ClashError, ConfigError, PeerLost
from laconic.exchange.kernel import base, draw, repelled, sampling_covariance
from laconic.exchange.topology import shape
from laconic.links import memory
from laconic.sync import walk
from laconic.sync.walk import NONE
from tests.tiny import batch, close, equal, loss, model, sgd, step, together, weights

CHORDS = "0-1,1-2,2-3,3-4,4-5,0-5,0-3,1-4,1-5"


def transitions(graph, size, target=None):
    """The base chain's matrix."""
    made = shape(graph).among(size)
    degrees = {rank: len(made.targets(rank, 0)) for rank in range(size)}
    rows = torch.zeros(size, size, dtype=torch.float64)
    for rank in range(size):
        near = {other: degrees[other] for other in (rank, *made.targets(rank, 0))}
        for to, chance in base(near, rank, target).items():
            rows[rank, to] = chance
    return rows


# -- where it goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, [0.3, 0.1, 0.2, 0.1, 0.2, 0.1]])
def test_the_base_chain_is_reversible_towards_its_target(target):
    rows = transitions(CHORDS, 6, target)
    torch.testing.assert_close(rows.sum(1), torch.ones(6, dtype=torch.float64))
    flow = (torch.tensor(target or [1 / 6] * 6, dtype=torch.float64)[:, None]) * rows
    torch.testing.assert_close(flow, flow.T)


@given(
    visits=st.lists(st.floats(1e-6, 1.0), min_size=6, max_size=6),
    alpha=st.floats(0, 50),
    scale=st.floats(1e-3, 1e3),
    at=st.integers(0, 5),
)
def test_chances_sum_to_1_add_no_edge_and_depend_on_the_ratios_of_visits_alone(visits, alpha, scale, at):
    chances = base({rank: d for rank, d in enumerate([3, 4, 2, 3, 3, 3]) if rank in (at, (at + 1) % 6)}, at)
    got = repelled(chances, visits, alpha)
    assert math.fsum(got.values()) == pytest.approx(1)
    assert set(got) <= {j for j, p in chances.items() if p > 0}
    again = repelled(chances, [scale * v for v in visits], alpha)
    assert all(again[j] == pytest.approx(p, rel=1e-6, abs=1e-12) for j, p in got.items())
    even = repelled(chances, [1 / 6] * 6, alpha)
    assert all(even[j] == pytest.approx(chances[j]) for j in even)


def test_without_alpha_a_token_moves_as_the_base_chain_says():
    rows, at, counts = transitions(CHORDS, 6), 0, torch.zeros(6, 6, dtype=torch.float64)
    generator = random.Random(0)
    for _ in range(60_000):
        chances = repelled({j: float(p) for j, p in enumerate(rows[at]) if p}, [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], 0.0)
        to = draw(chances, generator.random())
        counts[at, to] += 1
        at = to
    torch.testing.assert_close(counts / counts.sum(1, keepdim=True), rows, atol=0.012, rtol=0)


def test_the_covariance_of_visits_follows_from_the_chain_and_falls_with_alpha():
    """Against the textbook's limit for an ordinary chain, from its fundamental matrix; the formula's alpha is measured
    by benchmarks/walk_variance.py."""
    rows = transitions(CHORDS, 6)
    mu = torch.full((6,), 1 / 6, dtype=torch.float64)
    fundamental = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - rows + mu.expand(6, 6))
    textbook = mu[:, None] * fundamental
    textbook = textbook + textbook.T - torch.diag(mu) - torch.outer(mu, mu)
    torch.testing.assert_close(sampling_covariance(rows, 0.0), textbook)
    traces = [float(sampling_covariance(rows, alpha).trace()) for alpha in (0.0, 1.0, 5.0, 20.0, 1e4)]
    assert traces == sorted(traces, reverse=True)
    assert traces[-1] * 1e4 == pytest.approx(float(sampling_covariance(rows, 1e5).trace()) * 1e5, rel=1e-3)


# -- what it carries ---------------------------------------------------------------------------------------------


def active(sync):
    return None if sync._state.active == NONE else sync._state.active


def holders(sync, net):
    return active(sync), weights(net)


def test_one_token_is_trained_by_one_worker_at_a_time_on_that_workers_data():
    """The walk, followed by hand: one model, stepped with the batches of whoever held it."""
    seen = together(4, walk(every=2), steps=16, each=holders, optimizer=sgd)
    net = model()
    optimizer = sgd(net)
    at = 0
    for number in range(16):
        optimizer.zero_grad()
        loss(net, batch(at, number)).backward()
        optimizer.step()
        here = [rank for rank in range(4) if seen[rank][number][0] is not None]
        assert len(here) == 1
        close(seen[here[0]][number][1], weights(net))
        at = here[0]
    visited = [next(r for r in range(4) if seen[r][n][0] is not None) for n in range(16)]
    assert len(set(visited)) == 4
    assert all(abs(a - b) in (0, 1, 3) for a, b in itertools.pairwise(visited)), "along the ring"


def test_with_one_worker_it_trains_alone():
    assert equal(together(1, walk())[0], together(1, "alone")[0])


def test_repelled_visits_are_more_even_than_those_of_the_base_chain():
    def spread(alpha):
        seen = together(6, walk(graph=CHORDS, alpha=alpha, memory=1.0), steps=120, each=lambda s, n: active(s))
        counts = [sum(token is not None for token in worker) for worker in seen]
        assert sum(counts) == 120
        return sum((c - 20) ** 2 for c in counts)

    assert spread(10.0) < spread(0.0) / 3


@pytest.mark.parametrize("tokens", [2, 4])
def test_several_tokens_are_all_somewhere_and_of_those_at_one_place_one_is_trained(tokens):
    seen = together(4, walk(tokens=tokens, graph="complete"), steps=20, each=lambda s, n: s._state)
    waited = 0
    for states in zip(*seen, strict=True):
        places = collections.Counter(number for state in states for number in state.holding.here)
        assert places == dict.fromkeys(range(tokens), 1)
        for state in states:
            assert (state.active == NONE) == (not state.holding.here)
            waited += max(0, len(state.holding.here) - 1)
    assert waited, "two did meet"


@pytest.mark.parametrize("tokens", [1, 3])
def test_at_the_end_all_have_the_mean_of_the_tokens(tokens):
    def work(link):
        net = model()
        sync = attach(net, sgd(net), walk(tokens=tokens), link)
        for number in range(9):
            step(net, sync, link.rank, number)
        held = {
            n: (weights(net) if n == sync._state.active else t.weights) for n, t in sync._state.holding.here.items()
        }
        sync.finish()
        return held, weights(net)

    got = memory.run(3, work)
    everything = [w for held, _ in got for w in held.values()]
    assert len(everything) == tokens
    expected = [sum(ws) / tokens for ws in zip(*everything, strict=True)]
    for _, ended in got:
        close(ended, expected)


def test_a_hop_sends_the_weights_and_the_visits_to_one_neighbour_and_a_few_words_to_each():
    def work(link):
        x = torch.zeros(30_000)
        sync = walk(graph="complete")
        state = sync.init([x])
        for _ in range(20):
            _, state = sync.after_step([x], state, link)
        return link.meter.bytes_out

    hops, words = 20, 20 * 5 * 4  # on a complete graph a token always moves, and each tells each
    assert 0 <= sum(memory.run(5, work)) - hops * (120_000 + 5 * 4) < 140 * words


def test_the_learning_rate_cools_with_a_tokens_visits_and_not_a_workers():
    def work(link):
        net = torch.nn.Linear(2, 1, bias=False).double()
        torch.nn.init.zeros_(net.weight)
        sync = attach(net, torch.optim.SGD(net.parameters(), lr=1.0), walk(memory=0.8, cooling=0.9), link)
        for _ in range(10):
            net.weight.sum().backward()
            sync.step()
            sync.zero_grad()
        sync.finish()
        return float(net.weight[0, 0].detach())

    expected = -sum((n + 1) ** -0.9 for n in range(10))
    assert memory.run(3, work) == pytest.approx([expected] * 3)


# -- faults ------------------------------------------------------------------------------------------------------


def with_a_death(size, dies_at, steps=60, graph="complete"):
    """Whoever holds the token after that step is gone, with all it had; what the others saw and hold at the end."""

    def work(link):
        net = model()
        sync = attach(net, sgd(net), walk(graph=graph), link)
        trail = []
        for number in range(steps):
            step(net, sync, link.rank, number)
            trail.append(sync._state.holding.here.get(sync._state.active))
            if number == dies_at and trail[-1] is not None:
                return trail, None, True
        return trail, weights(net), False

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return memory.run(size, work), [str(w.message) for w in said]


@pytest.mark.parametrize("dies_at", [5, 17])
def test_a_token_whose_holder_is_lost_goes_on_from_the_copy_of_who_sent_it_and_that_is_said(dies_at):
    seen, said = with_a_death(5, dies_at)
    dead = next(rank for rank in range(5) if seen[rank][2])
    last = seen[dead][0][-1]
    assert [s for s in said if "is gone" in s] == [
        f"worker {last.source}: worker {dead} is gone, and token 0 with it after {last.hops} visits; it goes on from "
        "the copy here"
    ]
    after = [[seen[rank][0][number] for rank in range(5) if rank != dead] for number in range(dies_at + 1, 60)]
    assert all(sum(token is not None for token in tokens) == 1 for tokens in after), "one token, and one only"
    back = next(token for token in after[0] if token is not None)
    assert (back.hops, back.epoch) == (last.hops, 1)
    ended = next(token for token in after[-1] if token is not None)
    assert ended.hops > 40
    net = model()
    start = float(loss(net, batch(99, 99, rows=64)).detach())
    holder = next(rank for rank in range(5) if rank != dead and seen[rank][0][-1] is not None)
    with torch.no_grad():
        for p, w in zip(net.parameters(), seen[holder][1], strict=True):
            p.copy_(w)
    assert float(loss(net, batch(99, 99, rows=64)).detach()) < start - 0.05, "and it has learned"


@pytest.mark.filterwarnings("ignore:worker 0")
def test_who_has_no_neighbour_left_says_so():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), walk(graph="0-1"), link)
        step(net, sync, link.rank, 0)
        if link.rank == 1:
            return None
        with pytest.raises(PeerLost, match="worker 0: no neighbour in the graph is left"):
            step(net, sync, link.rank, 1)
        return True

    assert memory.run(2, work)[0]


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: walk(alpha=-1), ConfigError, "alpha must be at least 0"),
        (lambda: walk(memory=0.5), ConfigError, r"memory must be in \(0.5, 1\]"),
        (lambda: walk(cooling=0.3), ConfigError, "cooling must be 0"),
        (lambda: walk(memory=0.9, cooling=0.7), ConfigError, "alpha does nothing where the weights settle before"),
        (lambda: walk(pseudo=0), ConfigError, "pseudo must be positive"),
        (lambda: walk(tokens=0), ConfigError, "tokens"),
        (lambda: walk(topk()), ClashError, "sends whole weights"),
        (lambda: walk(tokens=5).among(4), ConfigError, "5 tokens among 4 workers"),
        (lambda: walk(graph="one-peer").among(4), ConfigError, "a walk has to be reversible; use ring"),
        (lambda: walk(graph="0-1,2-3").among(4), ConfigError, "not connected"),
    ],
)
def test_settings_that_cannot_be_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_a_compressed_token_arrives_rounded_and_goes_on():
    got = together(3, walk(half()), steps=12, each=holders)
    assert all(sum(worker[n][0] is not None for worker in got) == 1 for n in range(12))
