"""What EF21, EF21-SGDM and EControl share: what was told, the mean that everyone keeps of it, and what they refuse."""

import copy
import math

import pytest
import torch

from laconic import attach, compress
from laconic.aggregate import Rule, mean, weighted_mean
from laconic.compress import (
    chain,
    damped,
    e3m0,
    econtrol,
    ef21,
    ef21_sgdm,
    error_feedback,
    half,
    identity,
    int8,
    momentum_correction,
    qsgd,
    random_k,
    topk,
    warm_up,
)
from laconic.errors import ClashError, ConfigError, NotANumber, PeerLost
from laconic.exchange import everyone, pairs, ring
from laconic.links import memory
from laconic.state import freeze
from laconic.sync import every_step
from tests.tiny import batch, digest, equal, loss, model, sgd, step


def econtrol_(compressor=None, eta=0.05, start="zero"):
    return econtrol(compressor, eta, start)


econtrol_.__name__ = "econtrol"
WRAPS = {"ef21": ef21, "ef21_sgdm": ef21_sgdm, "econtrol": econtrol_}
INNER = {
    "topk": lambda: topk(0.05),
    "random_k": lambda: random_k(0.05),
    "damped": lambda: damped(random_k(0.05, scaled=True)),
    "int8": int8,
    "e3m0": e3m0,
    "half": half,
    "identity": identity,
    "chain": lambda: chain(topk(0.1), int8()),
    "warm_up": lambda: warm_up(topk, 0.01, 0.5, 40),
}
wraps = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
inners = pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def states_after(build, steps, dtype=torch.float64, workers=3):
    """Each worker's state and last result for one (20, 11) tensor that differs by worker and step."""

    def work(link):
        talk, got = build(), []
        state = talk.init([draw(20, 11, dtype=dtype)])
        for number in range(steps):
            x = draw(20, 11, seed=link.rank) + 0.1 * draw(20, 11, seed=100 * number + link.rank)
            got, state = talk.run([x.to(dtype)], state, link)
        return state.inner[0], got[0]

    return memory.run(workers, work)


@wraps
@inners
def test_what_was_told_is_the_sum_of_all_that_was_sent(wrap, inner):
    compressor = wrap(inner())
    state, sent = compressor.init(draw(20, 11)), torch.zeros(20, 11, dtype=torch.float64)
    for number in range(100):
        packet, state = compressor.compress(draw(20, 11, seed=number) * math.exp(number / 30), state)
        sent += compressor.decompress(packet)
    assert float((state.told - sent).norm() / sent.norm()) < 1e-12
    assert sent.any()


@wraps
@inners
def test_everyone_steps_with_the_mean_of_what_all_told_and_holds_the_same_bits(wrap, inner):
    got = states_after(lambda: everyone(wrap(inner())), 8)
    told = sum(state.told for state, _ in got) / 3
    for state, result in got:
        torch.testing.assert_close(result, told, rtol=1e-12, atol=1e-12)
        assert torch.equal(result, got[0][1])
        assert torch.equal(state.mean, got[0][0].mean)
    assert not torch.equal(got[0][0].told, got[1][0].told)


@wraps
@pytest.mark.parametrize("inner", [lambda: topk(0.2), half, lambda: random_k(0.2)], ids=["topk", "half", "random_k"])
def test_with_tensors_of_16_bits_the_mean_does_not_drift_from_what_was_told(wrap, inner):
    """A mean rounded to 16 bits before it is added up would be off by 2e-3 after so many rounds, and ever more."""
    for state, _ in (got := states_after(lambda: everyone(wrap(inner())), 100, torch.bfloat16)):
        told = sum(other.told for other, _ in got) / 3
        assert state.mean.dtype == torch.float32
        assert float((state.mean - told).norm() / told.norm()) < 1e-5


@wraps
def test_equal_weights_are_the_plain_mean(wrap):
    plain = states_after(lambda: everyone(wrap(topk(0.2))), 10)
    weighted = states_after(lambda: everyone(wrap(topk(0.2)), weighted_mean(5.0)), 10)
    torch.testing.assert_close(weighted[0][1], plain[0][1], rtol=1e-12, atol=1e-12)


@wraps
def test_constant_weights_give_the_weighted_mean_of_what_all_told(wrap):
    def work(link):
        talk = everyone(wrap(topk(0.2)), weighted_mean(1.0 + link.rank))
        state, got = talk.init([draw(20, 11)]), []
        for number in range(20):
            got, state = talk.run([draw(20, 11, seed=100 * number + link.rank)], state, link)
        return state.inner[0].told, got[0]

    got = memory.run(3, work)
    expected = sum((1 + rank) * told for rank, (told, _) in enumerate(got)) / 6
    torch.testing.assert_close(got[0][1], expected, rtol=1e-12, atol=1e-12)


@wraps
@pytest.mark.parametrize("start", ["zero", "dense"])
@pytest.mark.parametrize("inner", [identity, lambda: topk(1.0), lambda: random_k(1.0)], ids=["identity", "1", "all"])
def test_with_no_compression_the_result_is_the_mean_of_the_tensors(wrap, start, inner):
    settings = {"a": 1.0} if wrap is ef21_sgdm else {}

    def work(link):
        talk = everyone(wrap(inner(), start=start, **settings))
        state = talk.init([draw(7, 5)])
        for number in range(10):
            got, state = talk.run([draw(7, 5, seed=10 * number + link.rank)], state, link)
            exact = sum(draw(7, 5, seed=10 * number + rank) for rank in range(3)) / 3
            torch.testing.assert_close(got[0], exact, rtol=1e-13, atol=1e-13)

    memory.run(3, work)


@wraps
def test_vectors_go_whole_unless_asked_otherwise(wrap):
    def work(link):
        for talk, exactly in ((everyone(wrap(topk(0.1))), True), (everyone(wrap(topk(0.1)), small=wrap()), False)):
            mine = [draw(30, seed=link.rank)]
            (got,), state = talk.run(mine, talk.init(mine), link)
            assert torch.allclose(got, (draw(30, seed=0) + draw(30, seed=1)) / 2) == exactly
            assert (state.inner[0] == ()) == exactly

    memory.run(2, work)


@wraps
@inners
def test_its_packets_are_those_of_error_feedback(wrap, inner):
    ours, theirs = wrap(inner()), error_feedback(inner())
    a, b = ours.init(draw(40, 30)), theirs.init(draw(40, 30))
    for number in range(4):
        x = draw(40, 30, seed=number)
        (one, a), (other, b) = ours.compress(x, a), theirs.compress(x, b)
        assert one.header.keys() == other.header.keys()
        assert one.tensors.keys() == other.tensors.keys()
        if ours.sized or number == 0:  # the places of the largest entries are coded, and take what they take
            assert one.nbytes == other.nbytes
        else:
            assert one.nbytes == pytest.approx(other.nbytes, rel=0.1)


@wraps
def test_a_dense_start_sends_the_first_tensor_whole_and_says_so(wrap):
    compressor = wrap(topk(0.1), start="dense")
    x = draw(9, 8)
    first, state = compressor.compress(x, compressor.init(x))
    assert first.header["whole"] is True
    assert torch.equal(compressor.decompress(first), x)
    assert torch.equal(state.told, x)
    second, after = compressor.compress(x, state)
    assert "whole" not in second.header
    assert torch.equal(after.told, x), "nothing has changed, so nothing is told"
    meta = torch.empty(9, 8, dtype=torch.float64, device="meta")
    assert compressor.compress(meta, compressor.init(meta))[0].nbytes == first.nbytes
    into = draw(9, 8, seed=1)
    compressor.add(first, into, 2.0)
    torch.testing.assert_close(into, draw(9, 8, seed=1) + 2 * x)


@wraps
def test_its_state_is_of_float32_though_the_tensor_has_16_bits(wrap):
    for dtype in (torch.bfloat16, torch.float16):
        x = draw(20, 11, dtype=dtype)
        packet, state = wrap(topk(0.1)).compress(x, wrap(topk(0.1)).init(x))
        assert packet.tensors["values"].dtype == dtype
        assert {t.dtype for t in freeze(state)[1].values()} == {torch.float32}


@wraps
def test_what_it_gives_away_is_not_its_memory(wrap):
    """A gradient is clipped or zeroed in place by whoever gets it."""
    compressor = wrap(topk(0.5))
    packet, state = compressor.compress(draw(6, 6), compressor.init(draw(6, 6)))
    got, state = compressor.integrate(compressor.decompress(packet), state)
    kept = state.mean.clone()
    got.zero_()
    assert torch.equal(state.mean, kept)
    assert kept.any()


@wraps
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_overflow_on_one_worker_leaves_every_state_on_every_worker_as_it_was(wrap, bad):
    def work(link):
        net = model()
        talk = everyone(wrap(topk(0.2)), small=wrap(topk(0.5)))
        sync = attach(net, sgd(net), every_step(talk), link, bucket_bytes=1)
        for number in range(3):
            step(net, sync, link.rank, number)
        before, weights = digest(sync.state_dict()["tensors"].values()), digest(net.parameters())
        loss(net, batch(link.rank, 3)).backward(inputs=list(net.parameters())[1:])
        first = next(net.parameters())
        first.grad = torch.ones_like(first)
        if link.rank == 1:
            first.grad[0, 0] = bad
        with pytest.raises(NotANumber if link.rank == 1 else PeerLost):
            sync.step()
        buckets = [bucket.state for bucket in sync._buckets]
        held = freeze({"sync": None, "buckets": buckets})[1]
        return digest(held.values()) == before, digest(net.parameters()) == weights

    assert memory.run(2, work) == [(True, True), (True, True)]


@wraps
def test_the_state_stays_bounded_on_unlike_data_over_1000_steps(wrap):
    """Each worker's gradient has a part of its own that never goes away, and noise."""
    own = [draw(200, seed=1), -draw(200, seed=1) + 0.1 * draw(200, seed=2)]
    compressor = wrap(topk(0.05))
    states, largest = [compressor.init(own[0]) for _ in own], 0.0
    generator = torch.Generator().manual_seed(3)
    for _ in range(1000):
        for i, x in enumerate(own):
            noisy = x + 0.5 * torch.randn(200, generator=generator, dtype=torch.float64)
            _, states[i] = compressor.compress(noisy, states[i])
        kept = [t for state in states for t in freeze(state)[1].values()]
        largest = max(largest, *(float(t.norm()) for t in kept))
    assert largest < 60 * float(own[0].norm())  # a residual that added up would be at 1000
    assert float((states[0].told - own[0]).norm()) < 1.5 * float(own[0].norm())


@wraps
@pytest.mark.parametrize(
    "inner",
    [
        error_feedback(topk()),
        ef21(topk()),
        ef21_sgdm(topk()),
        econtrol(topk()),
        momentum_correction(topk()),
        random_k(0.1, scaled=True),
    ],
    ids=lambda inner: inner.name,
)
def test_feedback_around_feedback_or_around_what_sends_more_than_it_was_given_is_refused(wrap, inner):
    with pytest.raises(ClashError, match=f"{wrap.__name__}: .* would grow without bound; use one without the other"):
        wrap(inner)
    if inner.integrate is not None:
        with pytest.raises(ClashError, match="would grow without bound"):
            error_feedback(inner)


@wraps
def test_an_unbiased_compressor_that_may_miss_by_more_than_it_was_given_is_refused_and_damped_it_converges(wrap):
    x = draw(4096)
    with pytest.raises(ClashError, match=rf"{wrap.__name__}: qsgd is unbiased .* use \w+\(damped\(qsgd\)\)"):
        wrap(qsgd(levels=2, bucket=4096)).init(x)
    inner = damped(qsgd(levels=2, bucket=4096))
    compressor = econtrol(inner) if wrap is econtrol_ else wrap(inner)
    state, left = compressor.init(x), []
    for _ in range(450):
        _, state = compressor.compress(x, state)
        left.append(float((state.told - x).norm() / x.norm()))
    assert left[-1] < 0.5 * left[225]
    assert left[-1] < 0.1


def median():
    return Rule(lambda tensors, weights: torch.stack(list(tensors)).median(dim=0).values, name="median")


@wraps
@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda c: chain(c, int8()), r"chain: \w+\(topk\) sends changes .* put the whole chain inside it"),
        (lambda c: chain(identity(), c), r"chain: \w+\(topk\) sends changes .* put the whole chain inside it"),
        (lambda c: warm_up(lambda density: c), r"warm_up: \w+\(topk\) sends changes .* put the warm-up inside it"),
        (pairs, r"pairs: \w+\(topk\) sends changes .* use everyone"),
        (lambda c: everyone(c, median()), r"everyone: .* the median of changes is no change of a median; use mean"),
        (lambda c: everyone(identity(), median(), small=c), "everyone: .* the median of changes"),
        (ring, "ring: needs summable packets"),
        (damped, "damped: .* is not known to be unbiased"),
        (momentum_correction, "momentum_correction: .* would grow without bound"),
    ],
)
def test_where_nothing_would_add_the_changes_up_they_are_refused(wrap, build, says):
    with pytest.raises(ClashError, match=says):
        build(wrap(topk()))
    everyone(wrap(topk()), mean())
    everyone(wrap(chain(topk(), int8())), weighted_mean(3.0))


@wraps
def test_another_start_is_refused_with_the_nearest(wrap):
    with pytest.raises(ConfigError, match=f"unknown {wrap.__name__} start 'dens'; did you mean 'dense'"):
        wrap(start="dens")


@wraps
def test_it_is_public_and_its_default_is_topk(wrap):
    assert wrap.__name__ in compress.__all__
    assert wrap().name == f"{wrap.__name__}(topk)"


@wraps
@pytest.mark.parametrize("start", ["zero", "dense"])
def test_over_a_link_it_gives_the_numbers_of_a_loop_over_the_compressors(wrap, start):
    compressor = wrap(topk(0.1), start=start)
    workers, steps, rate = 4, 30, 0.05
    targets = [draw(10, 5, seed=i) * 10 / (1 + i) for i in range(workers)]

    def over_links(link):
        talk, x = everyone(wrap(topk(0.1), start=start)), torch.zeros(10, 5, dtype=torch.float64)
        state = talk.init([x])
        for _ in range(steps):
            (got,), state = talk.run([(1 + link.rank) * (x - targets[link.rank])], state, link)
            x = x - rate * got
        return x, state

    x = torch.zeros(10, 5, dtype=torch.float64)
    states = [compressor.init(x) for _ in range(workers)]
    for _ in range(steps):
        total = torch.zeros_like(x)
        for i, target in enumerate(targets):
            packet, states[i] = compressor.compress((1 + i) * (x - target), states[i])
            total += compressor.decompress(packet)
        both = [compressor.integrate(total / workers, state) for state in states]
        states = [state for _, state in both]
        x = x - rate * both[0][0]
    for rank, (there, state) in enumerate(memory.run(workers, over_links)):
        assert torch.equal(there, x)
        assert equal(list(freeze(state.inner[0])[1].values()), list(freeze(states[rank])[1].values()))


@wraps
def test_it_leaves_the_old_state_alone(wrap):
    compressor = wrap(identity())
    state = compressor.init(draw(5, 4))
    for number in range(3):
        before = copy.deepcopy(state)
        packet, after = compressor.compress(draw(5, 4, seed=number), state)
        _, after = compressor.integrate(compressor.decompress(packet), after)
        assert equal(list(freeze(state)[1].values()), list(freeze(before)[1].values()))
        state = after
