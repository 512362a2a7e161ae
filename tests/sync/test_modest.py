"""MoDeST over links: federated averaging without a server, beside training, past those who are killed."""

import os
import signal
import threading

import pytest
import torch

from laconic import attach
from laconic.compress import half, topk
from laconic.compress.error_feedback import error_feedback
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.exchange.views import everybody, order, view_packet
from laconic.links import memory, simulated
from laconic.links.network import parse
from laconic.methods import build
from laconic.packet import Packet
from laconic.sync import local_steps, modest
from laconic.sync.modest import leave
from laconic.sync.modest_service import read
from tests.links import workers
from tests.tiny import batch, close, digest, equal, loss, model, sgd, step, together, weights

COMES = 3.0  # seconds after the others
QUICK = {"ping_timeout": 1.0, "resend": 0.3, "patience": 3.0}


def loop(link, method, rounds, each=lambda link, sync, number: None, net=None):
    """An ordinary loop, which ends by the rounds; the worker's attached sync, and its number of steps."""
    net = model() if net is None else net
    sync, number = attach(net, sgd(net), method, link), 0
    while sync.rounds < rounds:
        step(net, sync, link.rank, number)
        number += 1
        each(link, sync, number)
    sync.finish()
    return sync, number


def drawn(size, round, count, seed=0):
    return order(everybody(size), round, 10**6, 0, seed)[:count]


# -- what it is without churn --------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregators", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_with_a_sample_of_everyone_it_is_local_steps(size, aggregators):
    ours = together(size, modest(every=3, aggregators=min(size, aggregators)), steps=9)
    for one, other in zip(ours, together(size, local_steps(every=3), steps=9), strict=True):
        close(one, other, 1e-14)


def averaged(size, sample, rounds, every):
    """Federated averaging with the same samples, written down plainly: the shared model after so many rounds."""
    shared, steps = weights(model()), [0] * size
    for round in range(1, rounds + 1):
        heard = []
        for rank in sorted(drawn(size, round, sample)):
            net = model()
            optimizer = sgd(net)
            with torch.no_grad():
                for p, value in zip(net.parameters(), shared, strict=True):
                    p.copy_(value)
            # Who is not in the first sample spends its first batch on finding that out.
            skipped = rank not in drawn(size, 1, sample)
            for _ in range(every):
                optimizer.zero_grad()
                loss(net, batch(rank, steps[rank] + skipped)).backward()
                optimizer.step()
                steps[rank] += 1
            heard.append(weights(net))
        shared = [sum(values) / sample for values in zip(*heard, strict=True)]
    return shared


def test_with_samples_it_is_federated_averaging_with_the_same_samples_to_the_bit():
    size, sample, rounds, every = 6, 3, 7, 2
    got = memory.run(size, lambda link: loop(link, modest(every=every, sample=sample), rounds)[0].weights())
    wanted = averaged(size, sample, rounds, every)
    for worker in got:
        assert equal(list(worker.values()), wanted)


def test_all_end_with_the_newest_model_having_taken_unequal_steps():
    def work(link):
        sync, number = loop(link, modest(every=2, sample=2), 8)
        return sync.rounds, number, digest(sync.weights().values()), sync.taken

    seen = memory.run(5, work)
    assert {rounds for rounds, *_ in seen} == {8}
    assert len({bits for _, _, bits, _ in seen}) == 1
    steps = [number for _, number, _, _ in seen]
    assert len(set(steps)) > 1
    idle = [rank not in drawn(5, 1, 2) for rank in range(5)]  # one batch that nobody asked for
    assert [n - i for n, i in zip(steps, idle, strict=True)] == [
        2 * sum(rank in drawn(5, round, 2) for round in range(1, 9)) for rank in range(5)
    ]
    assert {taken for *_, taken in seen} == {8 * 2 * 2 / 5}


@pytest.mark.parametrize("aggregators", [1, 2])
def test_a_round_sends_two_models_for_each_of_the_sample_and_the_aggregators_less_those_to_oneself(aggregators):
    size, sample, rounds = 6, 3, 9
    net = lambda: torch.nn.Linear(500, 40).double()  # noqa: E731
    body = sum(8 * p.numel() for p in net().parameters())
    sent = [0] * size

    def work(link):
        wide = net()
        torch.nn.init.zeros_(wide.weight)
        sync = attach(wide, sgd(wide), modest(every=1, sample=sample, aggregators=aggregators), link)
        before = link.meter.bytes_out
        while sync.rounds < rounds:
            wide(torch.ones(2, 500, dtype=torch.float64)).square().mean().backward()
            sync.step()
            sync.zero_grad()
        sync.finish()
        sent[link.rank] = link.meter.bytes_out - before

    memory.run(size, work)
    to_oneself = 0
    for round in range(2, rounds + 2):
        chosen = drawn(size, round, aggregators)
        to_oneself += len(chosen) + len(set(chosen) & set(drawn(size, round - 1, sample)))
    models = 2 * aggregators * sample * rounds - to_oneself
    assert models * body <= sum(sent)
    # At the end everyone has the newest model: those of the last sample too may ask, if they hear of the end first.
    assert sum(sent) <= (models + size) * body * 1.01


def test_half_precision_halves_what_crosses():
    def work(method):
        def one(link):
            loop(link, method, 6)
            return link.meter.bytes_out

        return sum(memory.run(4, one))

    whole = work(modest(every=1, sample=2))
    assert work(modest(half(), every=1, sample=2)) < 0.85 * whole


# -- while others wait, leave, come --------------------------------------------------------------------------


def test_a_worker_that_closes_its_link_is_passed_over_and_the_others_go_on():
    def work(link):
        gone = link.rank in (1, 4)
        if not gone:
            return loop(link, modest(every=1, sample=3, success=0.5, **QUICK), 25)[0].rounds
        net = model()
        sync = attach(net, sgd(net), modest(every=1, sample=3, success=0.5, **QUICK), link)
        for number in range(2):
            step(net, sync, link.rank, number)
        link.close()
        return None

    assert memory.run(6, work) == [25, None, 25, 25, None, 25]


def test_who_leaves_in_good_order_is_released_and_asked_no_more():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), modest(every=1, sample=2, **QUICK), link)
        number = 0
        while sync.rounds < 20:
            step(net, sync, link.rank, number)
            number += 1
            if link.rank == 3 and number == 3:
                leave(sync._state, link)
                step(net, sync, link.rank, number)  # it is let go, and its service is over
                break
        sync.finish()
        return sync.rounds

    *others, left = memory.run(4, work)
    assert others == [20, 20, 20]
    assert left < 20


def test_an_absent_worker_joins_by_its_first_step_and_is_drawn_from_then_on():
    def work(link):
        net = model()
        sync, seen = attach(net, sgd(net), modest(every=1, sample=2, absent=(4,)), link), []
        if link.rank == 4:
            link.compute(COMES)
        while sync.rounds < 60:
            link.compute(0.1)
            step(net, sync, link.rank, len(seen))
            seen.append((link.now(), sync.rounds))
        sync.finish()
        return sync.rounds, seen

    *others, (rounds, seen) = simulated.run(parse("100mbit,20ms", 5), work)
    before = max(ended for _, told in others for now, ended in told if now < COMES)
    assert before >= 6
    assert rounds == 60
    assert seen[0][1] >= before  # its first step waited until it was asked, in a round after it came
    assert len(seen) > 5


def test_training_may_go_on_after_a_pause_of_all_with_the_same_state():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), modest(every=2, sample=2), link)
        number = 0
        for rounds in (3, 6):
            while sync.rounds < rounds:
                step(net, sync, link.rank, number)
                number += 1
            sync.drain()
        return sync.rounds, digest(sync.weights().values())

    assert len(set(memory.run(4, work))) == 1


def test_a_run_of_samples_saved_at_a_rounds_end_resumes_bit_for_bit():
    def go(saved=None, rounds=6):
        def work(link):
            net = model()
            sync = attach(net, sgd(net), modest(every=2, sample=2), link)
            if saved is not None:
                sync.load_state_dict(saved[link.rank])
                with torch.no_grad():
                    for p, value in zip(net.parameters(), sync.weights().values(), strict=True):
                        p.copy_(value)
            while sync.rounds < rounds:  # batches by the round: who waits has drawn one that it does not train on
                step(net, sync, link.rank, 10 * sync._state.round + sync._state.step)
            sync.drain()
            return sync.state_dict()

        return memory.run(5, work)

    for one, other in zip(go(), go(saved=go(rounds=3)), strict=True):
        assert equal(list(one["tensors"].values()), list(other["tensors"].values()))


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sample": 2, "aggregators": 3}, "3 aggregators of a sample of 2"),
        ({"success": 0.0}, r"success must be in \(0, 1\], got 0.0"),
        ({"success": 1.1}, r"success must be in \(0, 1\], got 1.1"),
        ({"every": 0}, "every"),
        ({"sample": 0}, "sample"),
        ({"window": 0}, "window"),
        ({"least": 0}, "least"),
        ({"absent": (-1,)}, "absent"),
        ({"ping_timeout": 0.0}, "ping_timeout must be positive"),
        ({"patience": -1.0}, "patience must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        modest(**settings)


def test_a_sample_larger_than_the_population_is_refused_with_what_would_work():
    with pytest.raises(ConfigError, match="a sample of 10 out of 4 workers; use sample=4 or less"):
        build("modest", {"sample": 10}).among(4)
    with pytest.raises(ConfigError, match="5 aggregators of a sample of 4"):
        build("modest", {"aggregators": 5}).among(4)
    with pytest.raises(ConfigError, match=r"absent=\[4\] among 4 workers"):
        modest(absent=(4,)).among(4)
    assert build("modest").among(4) == "4 of 4 workers train in a round, and 1 of them average"
    assert build("modest").among(64).startswith("10 of 64 workers")
    assert build("modest", {"sample": 3, "absent": (2,)}).among(1).startswith("1 of 1")  # rehearsed alone

    def work(link):
        with pytest.raises(ConfigError, match="a sample of 5 out of 2 workers"):
            loop(link, modest(sample=5), 1)

    memory.run(2, work)


@pytest.mark.parametrize(
    ("compressor", "says"),
    [(topk(0.1), "would leave most of them out"), (error_feedback(half()), "belongs to one stream")],
)
def test_a_compressor_that_cannot_carry_whole_models_is_refused(compressor, says):
    with pytest.raises(ClashError, match=says):
        modest(compressor)


def test_weights_that_are_not_finite_are_named_and_never_sent():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), modest(every=1), link)
        step(net, sync, link.rank, 0)
        with torch.no_grad():
            net[2].weight[0, 0] = float("nan")
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        with pytest.raises(NotANumber, match=r"worker 0: parameter 2.weight is not finite"):
            sync.step()
        sync.drain()

    memory.run(1, work)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ([], "'None' is nothing that is said"),
        ([Packet({}, {"kind": "mine", "round": 1, "counter": 0})], "'mine' is nothing that is said"),
        ([Packet({}, {"kind": "ping", "round": -1, "counter": 0})], "ping says round=-1"),
        ([Packet({}, {"kind": "ping", "round": 1, "counter": True})], "ping says counter=True"),
        ([Packet({}, {"kind": "pong", "round": 1, "counter": 0, "busy": 1, "held": 1})], "pong says busy=1"),
        ([Packet({}, {"kind": "model", "round": 1, "counter": 0, "among": [0, 9]})], "names .* among 4 workers"),
        ([Packet({}, {"kind": "last", "round": 1, "counter": 0})], "came with 0 tensors, the model here has 1"),
        ([Packet({}, {"kind": "ack", "round": 1, "counter": 0}), Packet({})], "ack came with 1 tensors"),
        (
            [
                Packet({}, {"kind": "model", "round": 2, "counter": 0, "among": [0]}),
                view_packet(everybody(4)),
                Packet({"values": torch.zeros(6)}, {"shape": [6]}),
            ],
            r"promises shape \[6\]",
        ),
    ],
)
def test_what_a_peer_says_is_checked_before_anything_is_done_with_it(message, says):
    with pytest.raises(PacketError, match=says):
        read(message, 4, [torch.empty(2, 3, device="meta")])


# -- processes -----------------------------------------------------------------------------------------------


DOOM = 250  # a channel
PATIENCE = 100.0  # of the test, and of who waits for its end


def killed(kind, doomed, at, rounds):
    """Train over processes; worker 0 has the ``doomed`` killed in round ``at``, whatever they are doing then."""
    link = workers.connect(kind)
    net = model()
    before = float(loss(net, batch(99, 99, rows=64)).detach())
    told = []

    def each(link, sync, number):
        if link.rank == 0 and sync.rounds >= at and not told:
            told.append([link.send([Packet({})], rank, DOOM) for rank in doomed])

    def die():
        link.recv_any([0], PATIENCE, DOOM)
        os.kill(os.getpid(), signal.SIGKILL)

    if link.rank in doomed:
        threading.Thread(target=die, daemon=True).start()
    method = modest(every=2, sample=4, aggregators=2, success=0.75, **QUICK)
    sync, _ = loop(link, method, rounds, each, net)
    with torch.no_grad():
        for p, value in zip(net.parameters(), sync.weights().values(), strict=True):
            p.copy_(value)
    return sync.rounds, before - float(loss(net, batch(99, 99, rows=64)).detach())


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["tcp", "process_group"])
def test_eight_of_ten_processes_are_killed_in_mid_run_and_training_goes_on(kind):
    answers = workers.run(10, killed, kind, tuple(range(2, 10)), 10, 60, patience=PATIENCE)
    assert answers[2:] == [("died",)] * 8
    for rounds, learnt in workers.fine(answers[:2]):
        assert rounds == 60
        assert learnt > 0.1


# -- simulated -----------------------------------------------------------------------------------------------


def simulated_loop(link, seconds=0.1):
    net = model()
    sync, number = attach(net, sgd(net), modest(every=2, sample=4, aggregators=2), link), 0
    while sync.rounds < 6:
        link.compute(seconds)
        step(net, sync, link.rank, number)
        number += 1
    sync.finish()
    return number, digest(sync.weights().values()), link.meter.bytes_out, link.now()


def test_on_a_simulated_link_it_is_the_same_to_the_bit_and_the_virtual_second_each_time():
    once, again = (simulated.run(parse("100mbit,20ms", 12), simulated_loop) for _ in range(2))
    assert once == again
    assert len({bits for _, bits, *_ in once}) == 1
    # Six rounds of two steps, and of six messages at least: asking and sending, to aggregators and to participants.
    assert 6 * (0.2 + 6 * 0.02) <= min(now for *_, now in once) < 6 * 0.6


def test_a_worker_answers_while_it_trains():
    """A step takes longer than a question may stay unanswered: answered between steps only, all would be dead."""
    network = parse("100mbit,20ms", 12)
    slow = simulated.run(network, lambda link: simulated_loop(link, 12.0))
    assert [bits for _, bits, *_ in slow] == [bits for _, bits, *_ in simulated.run(network, simulated_loop)]
    assert all(now < 6 * (2 * 12.0 + 1) + 12.0 for *_, now in slow)
