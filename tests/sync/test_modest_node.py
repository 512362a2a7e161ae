"""MoDeST's protocol, in virtual time: what a round does, and what it survives."""

import itertools

import pytest

from laconic.exchange.views import everybody, order
from laconic.sync.modest_node import Terms
from tests.sync.nodes import World, number

TERMS = Terms(4, ping_timeout=5.0, resend=1.0, patience=300.0)
A_ROUND = 1.0 + 6 * 0.01 + 1e-9  # training; asking for and sending to aggregators, and asking for and to participants


def drawn(size, round, count=4):
    return order(everybody(size), round, 10**6, 0)[:count]


@pytest.mark.parametrize(("size", "sample"), [(4, 4), (12, 4), (30, 10), (3, 1)])
def test_without_churn_it_is_federated_averaging_with_the_same_samples(size, sample):
    world = World(size, Terms(sample, window=10**6)).upto(20)
    value = 0.0
    for round in range(1, 20):
        sampled = sorted(drawn(size, round, sample))
        seen = world.rounds[round]
        assert sorted(seen) == sampled
        assert {got for _, got in seen.values()} == {value}
        value = sum(world.train(rank, round, value) for rank in sampled) / sample


def test_every_round_takes_its_training_and_six_messages_times_and_no_more():
    world = World(30, Terms(10)).upto(11)
    starts = [min(moment for moment, _ in world.rounds[round].values()) for round in range(1, 12)]
    assert all(after - before <= A_ROUND for before, after in itertools.pairwise(starts))


@pytest.mark.parametrize("aggregators", [1, 2, 3])
def test_a_round_moves_two_models_for_each_of_the_sample_and_the_aggregators_whatever_the_networks_size(aggregators):
    for size in (20, 200):
        world = World(size, Terms(5, aggregators, window=10**6)).upto(21)
        world.run(until=world.now + 0.5)
        to_oneself = 0
        for round in range(2, 22):
            chosen = drawn(size, round, aggregators)
            to_oneself += len(chosen) + len(set(chosen) & set(drawn(size, round - 1, 5)))
        assert world.sent == 2 * aggregators * 5 * 20 - to_oneself


def test_pings_are_at_most_two_for_each_model_and_the_rest_is_acknowledgements():
    world = World(50, Terms(5, 2)).upto(21)
    assert world.words <= 20 * (2 * (5 * 2 + 2 * 5) + 2 * 5)


def test_what_one_knows_of_the_others_travels_with_the_models():
    world = World(12, TERMS).upto(30)
    for rank in world.rounds[29]:
        active = [entry.active for entry in world.nodes[rank].view.values()]
        assert sum(round >= 20 for round in active) >= 10


# -- crashes -------------------------------------------------------------------------------------------------


def chosen(size, round, count, sample=4):
    return drawn(size, round, sample)[:count]


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "silent"])
def test_crashing_all_but_one_of_the_aggregators_loses_no_round(noticed):
    world = World(20, Terms(6, 3, 0.5, patience=300.0)).upto(5)
    gone = chosen(20, 6, 3)[:2]
    world.run(until=world.now + 0.9)
    world.crash(*gone, noticed=noticed)
    before = world.now
    world.upto(6)
    assert world.now - before < 20  # a few pings' time, and not an aggregation's
    world.upto(12)
    assert world.now - before < 7 * 30


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "silent"])
def test_crashing_all_aggregators_after_they_took_the_models_loses_at_most_one_attempt(noticed):
    world = World(20, Terms(6, 2, 0.5, patience=300.0)).upto(5)
    gone = chosen(20, 6, 2)
    world.run(enough=lambda: any(6 in world.nodes[rank]._tables for rank in gone))
    world.crash(*gone, noticed=noticed)
    before = world.now
    world.upto(6)
    terms = world.terms
    assert world.now - before < (2 if noticed else 2 * (terms.patience + terms.grace))
    assert len(world.rounds[6]) == 6
    world.upto(10)


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "silent"])
def test_a_participant_that_crashes_costs_a_full_success_round_the_timer_and_a_closed_connection_nothing(noticed):
    world = World(20, TERMS).upto(5)
    gone = next(rank for rank in world.rounds[5] if rank not in drawn(20, 6))
    world.run(until=world.now + 0.5)
    world.crash(gone, noticed=noticed)
    before = world.now
    world.upto(6)
    assert (world.now - before > TERMS.patience) is not noticed
    assert (world.now - before < A_ROUND) is noticed


def test_a_success_share_under_one_does_not_wait_for_who_crashed():
    world = World(20, TERMS._replace(success=0.75)).upto(5)
    gone = next(rank for rank in world.rounds[5] if rank not in drawn(20, 6))
    world.run(until=world.now + 0.5)
    world.crash(gone)
    before = world.now
    world.upto(6)
    assert world.now - before < 10


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "silent"])
@pytest.mark.parametrize("seed", range(8))
def test_with_four_fifths_of_the_nodes_killed_at_once_training_goes_on(noticed, seed):
    size = 40
    world = World(size, Terms(4, 2, 0.75, patience=30.0, seed=seed), seconds=lambda rank: 1.0 + rank % 3).upto(6)
    world.run(until=world.now + 0.4 * seed)
    dead = [rank for rank in range(size) if (rank + seed) % 5]
    world.crash(*dead, noticed=noticed)
    before, reached = world.now, max(world.rounds)
    world.upto(reached + 10)
    assert set(world.rounds[reached + 10]) <= set(range(size)) - set(dead)
    attempt = 2 * (world.terms.patience + world.terms.grace)  # one may be lost
    # In silence four of five who are asked are dead, and each costs a ping's time, till the window ends.
    assert world.now - before < attempt + (40 if noticed else 10 * 160)


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "silent"])
def test_when_the_whole_sample_dies_the_newest_model_among_the_living_is_taken_up_again(noticed):
    world = World(20, TERMS._replace(patience=30.0)).upto(5)
    value = {value for _, value in world.rounds[5].values()}
    world.run(until=world.now + 0.5)
    world.crash(*world.rounds[5], noticed=noticed)
    held = max(node.held[0] for node in world.nodes if node.me not in world.dead)
    newest = {number(node.held[1]) for node in world.nodes if node.held[0] == held and node.me not in world.dead}
    world.upto(6)
    assert {value for _, value in world.rounds[6].values()} <= newest | value
    assert len(world.rounds[6]) == 4
    world.upto(9)


def test_a_crashed_node_is_asked_no_more_after_the_window():
    world = World(10, Terms(3, 1, 0.6, window=12, patience=30.0)).upto(4)
    gone = 7
    world.crash(gone)
    world.upto(60)
    alive = [rank for rank in world.rounds[59] if rank != gone]
    assert all(gone not in order(world.nodes[rank].view, 60, 12, rank) for rank in alive)


def test_two_aggregators_that_see_different_samples_and_slow_workers_do_no_harm():
    world = World(25, Terms(6, 3, 0.5), seconds=lambda rank: 1.0 + 5 * (rank % 4 == 0)).upto(30)
    assert all(len(world.rounds[round]) >= 3 for round in range(1, 30))


# -- coming and going ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.0, 0.3, 1.02, 1.04, 1.06])
@pytest.mark.parametrize("rank", [3, 8, 17])
def test_a_joiner_is_never_in_the_sample_of_the_round_in_which_it_announced(moment, rank):
    world = World(20, TERMS, absent=(rank,)).upto(4)
    world.run(until=world.now + moment)
    node = world.nodes[rank]
    node.idle(1, world.now)
    world.do(node, lambda: node.join(world.now))
    announced = max(world.rounds)
    world.upto(announced + 60)
    asked = [round for round, seen in world.rounds.items() if rank in seen]
    assert asked, "it is asked once it is known"
    assert min(asked) > announced
    assert all(rank not in among for round in range(1, announced + 1) for among in world.among[round])
    for round in range(announced + 1, announced + 60):  # nor do two views of one round differ about it
        assert len({rank in among for among in world.among[round]}) == 1


def test_who_leaves_is_asked_no_more_and_stops_answering():
    world = World(12, TERMS).upto(4)
    gone = next(rank for rank in range(12) if rank not in world.rounds[4])
    node = world.nodes[gone]
    world.do(node, lambda: node.leave(world.now))
    left = max(world.rounds)
    world.upto(left + 20)
    assert gone in world.stopped
    assert all(gone not in world.rounds[round] for round in range(left + 2, left + 20))


def test_an_aggregator_that_leaves_sends_its_contributors_to_the_next_and_no_time_is_lost():
    world = World(20, TERMS).upto(5)
    (gone,) = chosen(20, 6, 1)
    world.run(enough=lambda: 6 in world.nodes[gone]._tables)
    node = world.nodes[gone]
    world.do(node, lambda: node.leave(world.now))
    before = world.now
    world.upto(6)
    assert world.now - before < 1.0
    assert gone not in world.rounds[6]
    assert len(world.rounds[6]) == 4


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [(), (2, 5, 7, 11)], ids=["all alive", "some dead"])
def test_when_one_loop_ends_all_are_released_with_the_newest_model_and_stop_serving(dead):
    world = World(12, TERMS._replace(patience=20.0)).upto(3)
    world.crash(*dead)
    ended = set()

    def ends(rank):
        if rank not in ended and rank not in world.dead:
            ended.add(rank)
            world.do(world.nodes[rank], lambda: world.nodes[rank].end(world.now))

    world.upto(8)
    ends(min(world.rounds[8]))

    def all_stopped():
        for rank in world.released - ended:
            ends(rank)
        for rank, node in enumerate(world.nodes):  # a loop that ends by the rounds it has seen
            if node.adopted >= 8:
                ends(rank)
        return world.stopped >= set(range(12)) - world.dead

    world.run(enough=all_stopped, until=world.now + 1000)
    assert all_stopped()
    final = {number(node.held[1]) for node in world.nodes if node.me not in world.dead}
    assert len(final) == 1
    assert {node.adopted for node in world.nodes if node.me not in world.dead} == {8}
