"""HCEF on workers of different speeds, in virtual time: who does how much, and what is made of it."""

import pytest
import torch

from laconic import attach
from laconic.compress import int8, topk
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.links import memory
from laconic.links.base import Link
from laconic.packet import Packet, message_nbytes
from laconic.state import freeze, thaw
from laconic.sync import hcef, local_steps
from laconic.sync.control import Choice
from laconic.sync.hcef import _device
from laconic.sync.hcef import message_nbytes as whole_message
from tests.sync.clocks import Still
from tests.tiny import batch, close, digest, equal, loss, model, sgd, step, together, weights


class Slow(Link):
    """A link in virtual time: each message takes ``bytes / rate`` seconds out of its sender."""

    def __init__(self, link, rate):
        super().__init__(link.rank, link.size)
        self.under, self.seconds, self.rate, self.meter = link, 0.0, rate, Still()

    def now(self):
        return self.seconds

    def send(self, message, to):
        self.seconds += message_nbytes(message) / self.rate
        self.meter.sent(message_nbytes(message))
        self.under.send(message, to)

    def recv(self, source, timeout=None):
        return self.under.recv(source, timeout)


def driven(steps, rates, rounds=12, each=None, **settings):
    """Train workers whose steps take so many seconds on links of such rates; each one's record of every round."""

    def work(link):
        slow, net, out, number = Slow(link, rates[link.rank]), model(), [], 0
        own = {key: value[link.rank] if isinstance(value, list) else value for key, value in settings.items()}
        sync = attach(net, sgd(net), hcef(**own), slow)
        began = slow.seconds
        while sync.rounds < rounds:
            before = sync._state
            slow.seconds += steps[link.rank]
            ended = slow.seconds
            loss(net, batch(link.rank, number)).backward()
            sync.step()
            sync.zero_grad()
            number += 1
            if sync._state.round > before.round:
                sending = before.density * whole_message(topk(1.0), before.anchor) / rates[link.rank]
                out.append((before, ended - began + sending, digest(weights(net))))
                began = slow.seconds
                if each is not None:
                    sync._state = each(sync._state)
        sync.drain()
        return out, weights(net)

    return memory.run(len(steps), work)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_with_equal_steps_and_density_1_it_is_federated_averaging(workers):
    fixed = hcef(least_steps=3, most_steps=3, least_density=1.0)
    for a, b in zip(together(workers, fixed, 9), together(workers, local_steps(every=3), 9), strict=True):
        close(a, b, 1e-12)


def test_workers_of_different_speeds_are_all_ready_within_a_step_of_the_deadline():
    steps = [0.1, 0.35, 0.8]
    found = driven(steps, [1e5, 1e5, 5e4], drift_cost=0.0, variance_cost=0.01)
    for rank, (records, _) in enumerate(found):
        for state, took, _ in records[6:]:
            assert took <= state.deadline * (1 + 1e-6) + 0.02, "the numbers that are told take a little time too"
            assert state.deadline - took < steps[rank] or state.steps == 50
    taken = [records[-1][0].steps for records, _ in found]
    assert taken[0] > taken[1] > taken[2] >= 1


def test_all_workers_hold_the_same_weights_after_every_round_and_plan_alike():
    found = driven([0.1, 0.5], [1e5, 2e4])
    for (one, _, first), (two, _, second) in zip(found[0][0], found[1][0], strict=True):
        assert first == second
        assert (one.mean_steps, one.deadline) == (two.mean_steps, two.deadline)
    assert found[0][0][-1][0].steps != found[1][0][-1][0].steps
    last = [records[-1][0] for records, _ in found]
    assert last[0].mean_steps == sum(state.steps for state in last) / 2
    assert equal(found[0][1], found[1][1])


def test_equal_workers_are_given_equal_work():
    found = driven([0.3, 0.3], [1e5, 1e5])
    one, two = (Choice(records[-1][0].steps, records[-1][0].density) for records, _ in found)
    assert one == two


def test_a_slow_link_is_given_a_lower_density_and_measured_as_slow():
    fast, slow = (records[-1][0] for records, _ in driven([0.1, 0.1], [1e6, 5e3], variance_cost=0.02))
    assert slow.density < fast.density
    assert slow.rate == pytest.approx(5e3, rel=0.02)
    assert fast.rate == pytest.approx(1e6, rel=0.02)
    assert fast.seconds == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("shares", [[1.0, 1.0], [1.0, 3.0]])
def test_a_change_counts_by_its_share_of_the_data_and_its_share_of_the_steps(shares):
    """Steps of 1 and 3 pinned by hand: the mean is of ``p (mean tau / tau) change``."""
    taken = [1, 3]
    mean_steps = sum(p * t for p, t in zip(shares, taken, strict=True)) / sum(shares)

    def work(link):
        net = model()
        sync = attach(net, sgd(net), hcef(most_steps=3, weight=shares[link.rank]), link)
        sync._state = sync._state._replace(steps=taken[link.rank], mean_steps=mean_steps)
        for number in range(taken[link.rank]):
            step(net, sync, link.rank, number)
        return weights(net)

    def alone(rank):
        net = model()
        optimizer = sgd(net)
        for number in range(taken[rank]):
            optimizer.zero_grad()
            loss(net, batch(rank, number)).backward()
            optimizer.step()
        return weights(net)

    start = weights(model())
    expected = [
        s + sum(p * mean_steps / t * (w - s) for p, t, w in zip(shares, taken, ws, strict=True)) / sum(shares)
        for s, *ws in zip(start, alone(0), alone(1), strict=True)
    ]
    for got in memory.run(2, work):
        close(got, expected, 1e-12)


def test_who_has_an_allowance_of_energy_is_given_less_to_do():
    plain = driven([0.1, 0.1], [1e5, 1e5], rounds=40)
    saving = driven([0.1, 0.1], [1e5, 1e5], rounds=40, joules=1.0, allowance=[1e9, 2.0])
    used = sum(state.steps for state, _, _ in saving[1][0])
    assert used < 0.7 * sum(state.steps for state, _, _ in plain[1][0])
    assert used / 40 <= 2.0 + saving[1][0][-1][0].queue / 40 + 1
    assert saving[0][0][-1][0].queue == 0


def test_a_run_that_resumes_keeps_its_plan_and_does_not_time_the_pause():
    def pause(state):
        if state.round != 6:
            return state
        skeleton, tensors = freeze(state)
        read = thaw(skeleton, {n: t.clone() for n, t in tensors.items()})
        return read._replace(session=12345, began=-9e9)

    straight, again = driven([0.1, 0.4], [1e5, 1e5]), driven([0.1, 0.4], [1e5, 1e5], each=pause)
    assert again[0][0][-1][0].seconds == pytest.approx(straight[0][0][-1][0].seconds, rel=1e-6)
    assert again[0][0][-1][0].steps > 1


def test_what_each_dropped_is_sent_later():
    found = driven([0.1, 0.1], [1e4, 1e4], least_density=0.1, most_density=0.3)
    for records, _ in found:
        state = records[-1][0].exchange
        assert any(float(inner.residual.norm()) > 0 for inner in state.inner if hasattr(inner, "residual"))


def test_flexfl_keeps_to_its_budget_of_seconds_and_sends_more_the_more_it_has():
    spent = {}
    for budget in (0.02, 0.05):
        found = driven([0.1, 0.1], [1e4, 1e4], 70, control="flexfl", budget=budget, most_steps=2)
        for records, _ in found:
            # Each record is of the state before its round was sent: the density is of the round before.
            states = [record[0] for record in records[20:]]
            costs = [s.latency + s.density * whole_message(topk(1.0), s.anchor) / s.rate for s in states]
            spent[budget] = sum(costs) / len(costs)
            # Above the budget it is by what the queue still holds, which does not grow with the rounds.
            owed = (states[-1].queue - records[19][0].queue) / len(costs)
            assert spent[budget] <= budget * (1.02 + max(0.0, owed))
            assert states[-1].queue < 30
    assert spent[0.05] > 1.5 * spent[0.02]


def test_with_flexfl_the_fastest_takes_the_most_steps_and_the_others_in_proportion():
    records = [records for records, _ in driven([0.1, 0.2, 0.5], [1e5, 1e5, 1e5], control="flexfl", most_steps=10)]
    assert [own[-1][0].steps for own in records] == [10, 5, 2]
    assert records[0][-1][0].mean_steps == pytest.approx(17 / 3)
    assert len({own[-1][2] for own in records}) == 1, "all hold the same weights"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"least_steps": 5, "most_steps": 4}, "needs least <= most"),
        ({"least_density": 0.5, "most_density": 0.4}, "needs least <= most"),
        ({"most_steps": 0}, "most_steps must be"),
        ({"drift_cost": -1.0}, "drift_cost must be"),
        ({"control": "flexfil"}, "did you mean 'flexfl'"),
        ({"control": "flexfl", "joules": 1.0}, "only the plan knows of energy"),
        ({"budget": 0.0}, "budget must be positive"),
        ({"allowance": 0.0}, "allowance and tradeoff must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        hcef(**settings)


def test_a_compressor_without_a_density_is_refused():
    with pytest.raises(ClashError, match="hcef: int8 has no density to set"):
        hcef(int8)


@pytest.mark.parametrize("said", [None, [1.0], [1.0] * 7 + ["x"], [1.0] * 7 + [-1.0], {"a": 1}])
def test_a_peers_measurements_are_checked(said):
    with pytest.raises(PacketError, match="hcef"):
        _device([Packet({}, {} if said is None else {"device": said})])


def test_rounds_are_refused_where_all_take_the_same_steps():
    def work(link):
        net = model()
        sync = attach(net, sgd(net), "ddp", link)
        for asked in ("rounds", "taken"):
            with pytest.raises(ConfigError, match="all workers take the same steps"):
                getattr(sync, asked)
        return True

    assert memory.run(1, work) == [True]


def test_the_real_clock_serves_as_well():
    def work(link):
        net = model(torch.float32)
        sync = attach(net, sgd(net), hcef(most_steps=5), link)
        number = 0
        while sync.rounds < 6:
            step(net, sync, link.rank, number)
            number += 1
        sync.drain()
        return digest(weights(net))

    assert len(set(memory.run(3, work))) == 1
