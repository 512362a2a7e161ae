"""Push-sum: no mass is lost, on one-way, changing, late and lossy links, and the mean comes out."""

import copy
import random

import pytest
import torch

from laconic.compress import half, identity, int8, topk
from laconic.errors import ClashError, ConfigError, PacketError, PeerTimeout
from laconic.exchange import graph, push_sum
from laconic.links import memory
from laconic.links.base import Link
from laconic.state import freeze, thaw

UNEVEN = "0>1,1>2,2>3,3>0,0>2"
QUIET = 150  # rounds at the end in which no message is lost


def together(size, rounds, build, dims=30):
    start = torch.randn(size, dims, generator=torch.Generator().manual_seed(size), dtype=torch.float64)

    def work(link):
        talk, x, seen = build(), [start[link.rank]], []
        state = talk.init(x)
        for _ in range(rounds):
            x, state = talk.run(x, state, link)
            seen.append((x[0], state))
        return seen

    return start, memory.run(size, work)


@pytest.mark.parametrize("compressor", [identity, half, int8])
@pytest.mark.parametrize("topology", [UNEVEN, "one-peer", "0>1;1>2,2>3;3>0"])
def test_mass_and_weight_are_conserved_in_every_round_whatever_the_graph_and_the_compressor(compressor, topology):
    start, seen = together(4, 12, lambda: push_sum(compressor(), topology))
    for states in zip(*seen, strict=True):
        assert sum(state.weight for _, state in states) == pytest.approx(4, rel=1e-12)
        torch.testing.assert_close(sum(state.mass[0] for _, state in states), start.sum(0), rtol=1e-9, atol=1e-9)


def test_on_a_one_way_graph_it_finds_the_mean_and_mixing_alone_does_not():
    start, seen = together(4, 120, lambda: push_sum(topology=UNEVEN))
    for worker in seen:
        torch.testing.assert_close(worker[-1][0], start.mean(0))
    weights = torch.tensor([worker[-1][1].weight for worker in seen])
    assert weights.max() > 1.2, "without them the quotient would be another"
    assert weights.min() < 0.9
    wrong = torch.stack([worker[-1][1].mass[0] for worker in seen])
    assert float((wrong - start.mean(0)).abs().max()) > 0.1
    with pytest.raises(ConfigError, match="none of its weights keep the mean"):
        graph(topology=UNEVEN).among(4)


def test_on_a_regular_graph_weights_stay_1_and_it_is_plain_mixing():
    _, pushed = together(8, 5, lambda: push_sum(topology="one-peer"))
    _, mixed = together(8, 5, lambda: graph(topology="one-peer"))
    for one, other in zip(pushed, mixed, strict=True):
        for (x, state), (y, _) in zip(one, other, strict=True):
            assert state.weight == 1
            torch.testing.assert_close(x, y)


def test_one_peer_of_a_power_of_two_averages_exactly_in_its_logarithm():
    start, seen = together(8, 3, push_sum)
    for worker in seen:
        torch.testing.assert_close(worker[2][0], start.mean(0))


def test_what_moved_since_the_last_answer_enters_the_mass_whole():
    """Descent steps between rounds: the sum of all masses is the start and all that was ever moved."""
    moves = torch.randn(9, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def work(link):
        talk, x = push_sum(topology=UNEVEN), [torch.ones(6, dtype=torch.float64)]
        state = talk.init(x)
        for move in moves:
            x, state = talk.run([x[0] + move[link.rank]], state, link)
        return state

    states = memory.run(4, work)
    expected = 4 + moves.sum((0, 1))
    torch.testing.assert_close(sum(state.mass[0] for state in states), expected)


# -- late --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [1, 3])
def test_late_messages_are_taken_so_many_rounds_after_and_the_mean_still_comes_out(late):
    start, seen = together(4, 200 * late, lambda: push_sum(topology=UNEVEN, late=late))
    for worker in seen:
        torch.testing.assert_close(worker[-1][0], start.mean(0))
    for states in list(zip(*seen, strict=True))[late:]:
        flying = sum(
            kept["weight"] * share
            for _, state in states
            for kept in state.flying.values()
            for share in kept["shares"].values()
        )
        assert len(states[0][1].flying) == late
        assert sum(state.weight for _, state in states) + flying == pytest.approx(4)


def test_after_a_restart_what_was_under_way_is_sent_again():
    build = lambda: push_sum(half(), UNEVEN, late=2)  # noqa: E731
    start = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))

    def first(link):
        talk, x = build(), [start[link.rank]]
        state, saved = talk.init(x), None
        for number in range(9):
            if number == 5:
                saved = copy.deepcopy((x, freeze(state)))
            x, state = talk.run(x, state, link)
        return saved, x[0]

    straight = memory.run(4, first)

    def second(link):
        x, frozen = straight[link.rank][0]
        talk, state = build(), thaw(*frozen)
        assert state.sender is None
        for _ in range(4):
            x, state = talk.run(x, state, link)
        return x[0]

    for (_, one), other in zip(straight, memory.run(4, second), strict=True):
        assert torch.equal(one, other)


# -- lossy -------------------------------------------------------------------------------------------------------


class Lossy:
    """Ends of a network that loses messages by a seed; everyone is run in one thread, in turn."""

    def __init__(self, size, share, seed):
        self.size, self.share, self.draw = size, share, random.Random(seed)
        self.queues = {(a, b): [] for a in range(size) for b in range(size)}
        self.lost = 0

    def end(self, rank):
        network = self

        class End(Link):
            def send(self, message, to, channel=0):
                if network.draw.random() < network.share:
                    network.lost += 1
                else:
                    network.queues[rank, to].append(message)

            def recv(self, source, timeout=None):
                if not network.queues[source, rank]:
                    raise PeerTimeout(f"nothing from {source}", source)
                return network.queues[source, rank].pop(0)

        return End(rank, self.size)


def lossy(share, rounds, seed=0, size=4, topology=UNEVEN, late=0, moving=0.0):
    """States after each round on a network that loses that share of messages, and at last none."""
    network = Lossy(size, share, seed)
    generator = torch.Generator().manual_seed(seed)
    links = [network.end(rank) for rank in range(size)]
    talk = push_sum(topology=topology, patience=0.0, late=late)
    xs = [[torch.randn(20, generator=generator, dtype=torch.float64)] for _ in range(size)]
    total = sum(x[0] for x in xs)
    states = [talk.init(x) for x in xs]
    for number in range(rounds):
        if number == rounds - QUIET:
            network.share = 0.0
        for rank in range(size):
            move = (
                moving * torch.randn(20, generator=generator, dtype=torch.float64) if number < rounds - QUIET else 0.0
            )
            total = total + move
            xs[rank], states[rank] = talk.run([xs[rank][0] + move], states[rank], links[rank])
    return network, xs, states, total


@pytest.mark.parametrize("late", [0, 2])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_with_lost_messages_no_mass_is_lost_and_the_mean_comes_out(share, late):
    network, xs, states, total = lossy(share, 350, late=late, moving=0.1)
    assert network.lost > 0.8 * share * 200 * 5
    for x in xs:
        torch.testing.assert_close(x[0], total / 4, rtol=1e-3, atol=1e-4)
    under_way = sum(
        (told.double() - (states[to].counters.heard[0][rank].double())) / 2.0**22
        for rank in range(4)
        for to, told in enumerate(states[rank].counters.sent[0])
        if states[rank].counters.sent_weight.get(to) is not None
    )
    held = sum(state.mass[0] for state in states)
    torch.testing.assert_close(held + under_way, total, rtol=1e-9, atol=1e-9)


def test_without_counters_the_same_losses_would_be_noticed_and_refused():
    network = Lossy(2, 0.0, 0)
    links = [network.end(rank) for rank in range(2)]
    talk = push_sum()
    states = [talk.init([torch.ones(3)]) for _ in range(2)]
    network.share = 1.0
    with pytest.raises(PeerTimeout):
        talk.run([torch.ones(3)], states[0], links[0])
    network.share = 0.0
    with pytest.raises(PeerTimeout):
        talk.run([torch.ones(3)], states[1]._replace(round=1), links[1])
    with pytest.raises(PacketError, match=r"of round 1, wanted 2 of round 0; where links lose messages, set patience"):
        talk.run([torch.ones(3)], states[0], links[0])


def test_counters_wrap_and_the_difference_still_comes_out():
    from laconic.exchange.counters import GRID, REACH

    told = torch.tensor([2**31 - 5], dtype=torch.int32)
    after = told + torch.tensor([20], dtype=torch.int32)
    assert int(after) < 0
    assert int(after - told) == 20
    _, xs, *_ = lossy(0.3, 400, topology="0>1,1>0", size=2, moving=0.1)
    assert all(torch.isfinite(x[0]).all() for x in xs)
    assert REACH == 512
    talk, x = push_sum(topology="0>1,1>0", patience=0.0), [torch.full((3,), 2.0 * REACH)]
    with pytest.raises(ConfigError, match="beyond the 512 that its counters hold"):
        talk.run(x, talk.init(x), Lossy(2, 0.0, 0).end(0))
    assert GRID == 2.0**22


def test_a_worker_that_nobody_hears_keeps_some_weight():
    """One that sends, and whose incoming messages are all lost, does not give away what it could not tell from zero."""
    network = Lossy(2, 0.0, 0)
    link, talk, x = network.end(0), push_sum(topology="0>1,1>0", patience=0.0), [torch.ones(4)]
    state = talk.init(x)
    for _ in range(100):
        x, state = talk.run(x, state, link)
    assert state.weight == pytest.approx(1 / 128)
    torch.testing.assert_close(x[0], torch.ones(4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: push_sum(topk()), ClashError, "sends whole weights"),
        (lambda: push_sum(half(), patience=1.0), ClashError, "with patience it sends exact sums, and half"),
        (lambda: push_sum(patience=-1.0), ConfigError, "patience must be at least 0"),
        (lambda: push_sum(late=-1), ConfigError, "late"),
    ],
)
def test_settings_that_would_lose_mass_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()
