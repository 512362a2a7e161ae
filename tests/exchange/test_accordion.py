"""Accordion: the acceptance properties of its detector, and the error memory through changes of level."""

import itertools
import math

import pytest
import torch

from laconic import attach
from laconic.attached import DECAY
from laconic.compress import error_feedback, identity, int8, momentum_correction, topk
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.exchange import accordion, everyone, pairs, powersgd
from laconic.exchange.accordion import critical
from laconic.exchange.base import put, take
from laconic.links import memory
from laconic.sync import diloco, every_step, noloco, streaming
from tests.tiny import batch, equal, loss, model, sgd, together, weights

SHAPES = [(20, 30), (8, 8), (7,)]


def sparse(density):
    return everyone(error_feedback(topk(density)))


KINDS = {"topk": lambda: (sparse(0.3), sparse(0.05)), "powersgd": lambda: (powersgd(4), powersgd(1))}
kinds = pytest.mark.parametrize("kind", KINDS)


def noise(rank, step):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def rounds(talk, steps, given, workers=2, tell=()):
    """Each worker's results, levels before and bytes of each round, and last state; told of decays at ``tell``."""

    def work(link):
        state = talk.init(given(link.rank, 0))
        out = []
        for step in range(steps):
            if step in tell:
                state = talk.decayed(state)
            before, levels = link.meter.bytes_out, list(state.light)
            mean, state = talk.run(given(link.rank, step), state, link)
            out.append((mean, levels, link.meter.bytes_out - before))
        return out, state

    return memory.run(workers, work)


def levels(results):
    return [seen for _, seen, _ in results[0][0]]


@kinds
def test_with_eta_0_it_is_always_light_and_bit_for_bit_that_exchange(kind):
    light, heavy = KINDS[kind]()
    results = rounds(accordion(light, heavy, every=3, eta=0.0), 12, noise)
    assert all(all(seen) for seen in levels(results))

    def fixed(link):
        state, out = light.init(noise(0, 0)), []
        for step in range(12):
            mean, state = light.run(noise(link.rank, step), state, link)
            out.append(mean)
        return out

    for one, other in zip(results[0][0], memory.run(2, fixed)[0], strict=True):
        assert equal(one[0], other)


@kinds
def test_with_eta_infinite_it_is_light_for_two_windows_and_heavy_for_ever(kind):
    seen = levels(rounds(accordion(*KINDS[kind](), every=3, eta=math.inf), 12, noise))
    assert all(all(now) for now in seen[:6])
    assert not any(any(now) for now in seen[6:])


@kinds
@pytest.mark.parametrize("workers", [2, 3])
def test_two_equal_levels_are_that_level_to_the_bit_whatever_the_detector_finds(kind, workers):
    light = KINDS[kind]()[0]
    scale = lambda rank, step: [t * (3.0 if i == 0 and step >= 6 else 1.0) for i, t in enumerate(noise(rank, step))]  # noqa: E731
    seen = rounds(accordion(light, light, every=3, eta=1.2), 12, scale, workers)
    assert any(any(now) and not all(now) for now in levels(seen)), "the levels are mixed"

    def fixed(link):
        state, out = light.init(scale(0, 0)), []
        for step in range(12):
            mean, state = light.run(scale(link.rank, step), state, link)
            out.append(mean)
        return out

    for one, other in zip(seen[0][0], memory.run(workers, fixed)[0], strict=True):
        assert equal(one[0], other)


@pytest.mark.parametrize(
    ("second", "light"), [(1.0, False), (2.0, True), (0.5, True), (0.51, False), (1.49, False), (0.0, True)]
)
def test_a_norm_that_stays_is_heavy_and_one_that_doubles_or_halves_is_light(second, light):
    """Windows of 4 rounds; the noise of a window cancels in its sum, and must not count."""

    def given(rank, step):
        base = [torch.full(s, 1.0 + rank, dtype=torch.float64) for s in SHAPES]
        wobble = (-1) ** step * 50.0
        return [t * (second if 4 <= step < 8 else 1.0) + wobble for t in base]

    seen = levels(rounds(accordion(sparse(0.3), sparse(0.05), every=4, eta=0.5), 9, given))
    assert all(all(now) for now in seen[:8])
    assert seen[8] == [light] * len(SHAPES)


def test_a_tensor_of_zeros_is_light_again_and_again():
    seen = levels(
        rounds(accordion(every=2), 8, lambda rank, step: [torch.zeros(s, dtype=torch.float64) for s in SHAPES])
    )
    assert all(all(now) for now in seen)


@pytest.mark.parametrize(("now", "last", "eta", "light"), [(1, 0, 9, True), (1, 1, 0, True), (math.nan, 1, 0.5, True)])
def test_what_is_not_known_is_critical(now, last, eta, light):
    assert critical(now, last, eta) is light


def test_after_a_decay_every_tensor_is_light_until_the_window_ends():
    seen = levels(rounds(accordion(sparse(0.3), sparse(0.05), every=4, eta=math.inf), 16, noise, tell=(10,)))
    assert [all(now) for now in seen] == [True] * 8 + [False] * 2 + [True] * 2 + [False] * 4
    assert all(all(now) or not any(now) for now in seen)


def test_all_workers_hold_the_same_levels_though_their_gradients_differ():
    def given(rank, step):
        """Worker 1's second tensor alone changes: worker 0 by itself would find nothing."""
        grown = 5.0 if rank == 1 and step >= 3 else 1.0
        base = [torch.ones(s, dtype=torch.float64) for s in SHAPES]
        return [base[0], base[1] * grown, base[2]]

    def work(link):
        talk = accordion(sparse(0.3), sparse(0.05), every=3, eta=0.5)
        state = talk.init(given(0, 0))
        out = []
        for step in range(9):
            _, state = talk.run(given(link.rank, step), state, link)
            out.append((state.light, state.last))
        return out

    one, two, three = memory.run(3, work)
    assert one == two == three
    assert one[5][0] == [False, True, False]


@kinds
def test_the_bytes_of_a_round_are_the_exchanges_at_the_levels_of_that_round(kind):
    light, heavy = KINDS[kind]()

    def given(rank, step):
        return [t * (4.0 if i == 0 and step // 3 % 2 else 1.0) for i, t in enumerate(noise(rank, step))]

    def work(link):
        talk = accordion(light, heavy, every=3, eta=0.9)
        state, mixed = talk.init(given(0, 0)), 0
        for step in range(15):
            before = link.meter.bytes_out
            _, after = talk.run(given(link.rank, step), state, link)
            sent, before = link.meter.bytes_out - before, link.meter.bytes_out
            for level, exchange in ((True, light), (False, heavy)):
                places = [i for i, now in enumerate(state.light) if now is level]
                if places:
                    exchange.run([given(link.rank, step)[i] for i in places], take(state.inner, places), link)
            expected, before = link.meter.bytes_out - before, link.meter.bytes_out
            if after.round % 3 == 0:
                link.all_reduce(torch.zeros(len(SHAPES), dtype=torch.float64))
                expected += link.meter.bytes_out - before
            assert sent == expected
            mixed += any(state.light) and not all(state.light)
            state = after
        return mixed

    assert min(memory.run(2, work)) >= 3


@kinds
def test_changes_of_level_lose_nothing_all_that_was_sent_plus_what_is_kept_is_all_that_came(kind):
    """The 8 x 8 matrix is sent whole at rank 4 and as factors at rank 1, so its residual comes and goes."""
    talk = accordion(*KINDS[kind](), every=2, eta=0.4)
    results = rounds(talk, 40, noise, 3, tell=(7, 20, 31))
    seen = levels(results)
    assert any(not any(now[:2]) for now in seen)
    assert all(any(now[i] and not later[i] for now, later in itertools.pairwise(seen)) for i in (0, 1))
    for i in (0, 1):
        came = sum(noise(r, s)[i] for r in range(3) for s in range(40)) / 3
        sent = sum(mean[i] for mean, _, _ in results[0][0])
        inner = [state.inner for _, state in results]
        held = [s.residual[i] if kind == "powersgd" else s.inner[i].residual for s in inner]
        kept = sum(torch.zeros(SHAPES[i]) if h is None else h.reshape(SHAPES[i]) for h in held) / 3
        assert float((sent + kept - came).norm() / came.norm()) < 1e-12


def test_a_powersgd_of_another_rank_draws_a_right_factor_of_its_own_and_is_exact_at_full_rank():
    given = noise(0, 0)

    def work(link):
        low, full = powersgd(1), powersgd(20, min_rate=0.1)
        _, state = low.run(given, low.init(given), link)
        assert state.right[0].shape == (30, 1)
        mean, after = full.run(given, state, link)
        assert after.right[0].shape == (30, 20)
        torch.testing.assert_close(mean[0], given[0] + state.residual[0], rtol=0, atol=1e-12)
        damaged = state._replace(residual=[torch.zeros(3), *state.residual[1:]])
        with pytest.raises(PacketError, match="residual of another tensor"):
            low.run(given, damaged, link)
        return True

    assert memory.run(1, work) == [True]


@pytest.mark.parametrize("talk", [sparse(0.2), powersgd(2), accordion(sparse(0.2), sparse(0.1))])
def test_a_part_of_a_state_put_back_is_there_and_the_rest_untouched(talk):
    state = talk.init(noise(0, 0))
    part = take(state, [2, 0])
    assert len(take(part, [0, 1])[-1]) == 2 or hasattr(part, "round")
    back = put(state, [2, 0], part)
    assert repr(back) == repr(state)

    def work(link):
        given = noise(0, 1)
        _, after = talk.run([given[2], given[0]], part, link)
        whole = put(state, [2, 0], after)
        assert repr(take(whole, [2, 0])) == repr(after)
        assert repr(take(whole, [1])[-1]) == repr(take(put(state, [], take(after, [])), [1])[-1])
        return True

    assert memory.run(1, work) == [True]


def test_a_nan_is_refused_also_in_a_vector():
    bad = [*noise(0, 0)[:2], torch.tensor([math.nan])]

    def work(link):
        talk = accordion()
        with pytest.raises(NotANumber, match="accordion"):
            talk.run(bad, talk.init(bad), link)
        return True

    assert memory.run(1, work) == [True]


# -- a decay of the learning rate --------------------------------------------------------------------------------


def heard(rates, steps_of=every_step, optimizer=sgd, workers=1, every=10, eta=math.inf):
    """Train at these learning rates; whether all was light in each step, as every bucket says."""

    def work(link):
        net = model()
        own = optimizer(net)
        sync = attach(net, own, steps_of(accordion(sparse(0.3), sparse(0.1), every=every, eta=eta)), link)
        out = []
        for number, rate in enumerate(rates):
            for group in own.param_groups:
                group["lr"] = rate
            loss(net, batch(link.rank, number)).backward()
            sync.synchronize()
            before = [b.state for b in sync._buckets]
            sync.step()
            sync.zero_grad()
            states = before or [fragment.exchange for fragment in sync._state.fragments]
            out.append(all(all(s.light) for s in states))
        return out

    first, *others = memory.run(workers, work)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("workers", [1, 2])
def test_at_a_decay_of_the_learning_rate_every_tensor_is_light_at_that_very_step(workers):
    seen = heard([0.1] * 25 + [0.01] * 25, workers=workers, every=10)
    # What is read is the state after the step; it turns heavy at the ends of windows: after steps 20 and 30.
    assert seen == [True] * 19 + [False] * 6 + [True] * 4 + [False] * 21


def test_diloco_tells_its_exchange_of_a_decay_too():
    seen = heard([0.1] * 12 + [0.01] * 8, lambda talk: diloco(talk, every=2), every=2)
    # Rounds are every second step, windows every fourth; light are the first two, and the rest of the decay's.
    assert seen == [True] * 7 + [False] * 5 + [True] * 3 + [False] * 5


def test_a_rise_is_no_decay_and_a_warm_up_is_measured_from_its_top():
    up = [0.001 * (i + 1) for i in range(30)]
    assert heard([*up, *[0.016] * 10], every=5)[10:] == [False] * 30
    assert heard([*up, *[0.014] * 10], every=5)[30] is True


def test_a_cosine_schedule_is_not_always_light_and_each_halving_is_heard_once():
    steps = 400
    rates = [0.05 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
    seen = heard(rates, every=10)
    assert sum(seen[20:]) < 0.15 * steps
    assert sum(seen[20 : steps // 2 - 1]) == 0
    halvings, high = 0, rates[0]
    for rate in rates:
        if rate < DECAY * high:
            halvings, high = halvings + 1, rate
    turned = sum(now and not before for before, now in itertools.pairwise(seen[19:]))
    assert 4 <= turned <= halvings


def test_the_highest_rates_are_in_the_checkpoint():
    def work(link):
        net, again = model(), model()
        optimizer = sgd(net, lr=0.1)
        sync = attach(net, optimizer, "accordion", link)
        optimizer.param_groups[0]["lr"] = 0.06
        loss(net, batch(0, 0)).backward()
        sync.step()
        other = attach(again, sgd(again, lr=0.06), "accordion", link)
        other.load_state_dict(sync.state_dict())
        assert other._rates == [0.1]
        old = sync.state_dict()
        del old["rates"]  # as an earlier version wrote it
        other.load_state_dict(old)
        assert other._rates == [0.06]
        return True

    assert memory.run(1, work) == [True]


def test_syncs_that_would_not_tell_of_a_decay_refuse_it():
    for sync in (streaming, noloco):
        with pytest.raises(ClashError, match="has to hear of a learning-rate decay"):
            sync(accordion(everyone(error_feedback(int8())), everyone(error_feedback(int8(8)))))


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("light", "heavy", "says"),
    [
        (pairs(identity()), sparse(0.1), "same result on every worker"),
        (everyone(), sparse(0.1), "do not keep the same state"),
        (sparse(0.1), powersgd(1), "do not keep the same state"),
        (sparse(0.1), accordion(), "changes its level by itself"),
        (everyone(momentum_correction(topk(0.1))), everyone(momentum_correction(topk(0.1), momentum=0.0)), "momentum"),
    ],
)
def test_exchanges_that_cannot_take_each_others_place_are_refused(light, heavy, says):
    with pytest.raises(ClashError, match=says):
        accordion(light, heavy)


def test_at_density_1_a_light_round_sends_all_that_was_kept():
    talk = accordion(sparse(1.0), sparse(0.05), every=2, eta=math.inf)
    results = rounds(talk, 8, noise, tell=(6,))
    for place in (0, 1):  # the step of the decay sends everything that was kept
        sent = sum(mean[place] for mean, _, _ in results[0][0])
        came = sum(noise(r, s)[place] for r in range(2) for s in range(8)) / 2
        torch.testing.assert_close(sent, came, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("every", "eta"), [(0, 0.5), (1.5, 0.5), (3, -0.1), (3, math.nan)])
def test_settings_out_of_range_are_refused(every, eta):
    with pytest.raises(ConfigError, match=r"(every|eta) must be"):
        accordion(every=every, eta=eta)


def test_the_named_method_refuses_levels_that_make_no_sense():
    from laconic.methods import build

    for settings, says in [
        ({"kind": "rank"}, "unknown accordion kind"),
        ({"light": 0.01, "heavy": 0.1}, "would send less"),
        ({"kind": "batch", "light": 8, "heavy": 1}, "would send less"),
        ({"kind": "powersgd", "light": 2.5}, "whole numbers"),
        ({"scale_lr": True}, "scale_lr is for kind='batch'"),
    ]:
        with pytest.raises(ConfigError, match=says):
            build("accordion", settings)
    assert "powersgd(rank=2)" in build("accordion", {"kind": "powersgd", "light": 2}).name


@kinds
def test_attached_workers_end_equal_with_levels_that_change(kind):
    method = every_step(accordion(*KINDS[kind](), every=3, eta=0.3))
    one, two, three = together(3, method, 20)
    assert equal(one, two)
    assert equal(one, three)
    assert not equal(one, weights(model()))
