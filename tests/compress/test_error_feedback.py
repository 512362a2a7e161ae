"""Error feedback: nothing is lost, only late."""

import math

import pytest
import torch

from laconic.compress import (
    chain,
    e3m0,
    error_feedback,
    half,
    identity,
    int8,
    momentum_correction,
    random_k,
    topk,
    warm_up,
)
from laconic.errors import ClashError, NotANumber

INNER = {
    "topk": lambda: topk(0.05),
    "random_k": lambda: random_k(0.05),
    "int8": int8,
    "e3m0": e3m0,
    "half": half,
    "identity": identity,
    "chain": lambda: chain(topk(0.1), int8()),
    "sparse chain": lambda: chain(identity(), topk(0.1)),
    "warm_up": lambda: warm_up(topk, 0.01, 0.5, 40),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_all_that_was_sent_plus_the_residual_is_all_that_came_over_100_steps(inner):
    compressor = error_feedback(inner())
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(20, 11, dtype=torch.float64)
    state, came, sent = compressor.init(like), like.clone(), like.clone()
    for step in range(100):
        x = torch.randn(20, 11, generator=generator, dtype=torch.float64) * math.exp(step / 30)
        packet, after = compressor.compress(x, state)
        arrived = compressor.decompress(packet)
        torch.testing.assert_close(arrived + after.residual, x + state.residual, rtol=1e-12, atol=1e-12)
        came, sent, state = came + x, sent + arrived, after
    assert float((sent + state.residual - came).norm() / came.norm()) < 1e-12
    assert sent.any()


def test_with_no_compression_everything_is_sent_and_nothing_kept():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    compressor = error_feedback(identity())
    packet, state = compressor.compress(x, compressor.init(x))
    assert torch.equal(compressor.decompress(packet), x)
    assert not state.residual.any()


def test_the_residual_stays_bounded_on_a_constant_gradient_over_1000_steps():
    x = torch.randn(200, generator=torch.Generator().manual_seed(2))
    compressor = error_feedback(topk(0.05))
    state, largest = compressor.init(x), 0.0
    for _ in range(1000):
        _, state = compressor.compress(x, state)
        largest = max(largest, float(state.residual.norm()))
    assert largest < 20 * float(x.norm())  # 1/density: a dropped or doubled residual grows past it


def test_with_feedback_topk_reaches_the_minimum_that_it_misses_without():
    """Ten workers, unequal curvatures (the spec's part F): feedback's floor is a hundred times lower."""
    workers, size, rate = 10, 50, 0.01
    a = torch.arange(1, workers + 1, dtype=torch.float64) / math.sqrt(workers)
    b = torch.randn(workers, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = b * (10 / torch.arange(1, workers + 1, dtype=torch.float64))[:, None]
    best = (a[:, None] * b).sum(0) / a.square().sum()

    def floor(compressor):
        x = torch.zeros(size, dtype=torch.float64)
        states, losses = [compressor.init(x) for _ in range(workers)], []
        for step in range(600):
            total = torch.zeros_like(x)
            for i in range(workers):
                packet, states[i] = compressor.compress(a[i] * (a[i] * x - b[i]), states[i])
                total += compressor.decompress(packet)
            x = x - rate * total / workers
            if step >= 540:
                losses.append(0.5 * float(a.square().mean() * (x - best).square().sum()))
        return sum(losses) / len(losses)

    without, with_feedback = floor(topk(0.1)), floor(error_feedback(topk(0.1)))
    assert without > 1.0
    assert 1e-3 < with_feedback < 0.2


@pytest.mark.parametrize("wrap", [error_feedback, momentum_correction])
@pytest.mark.parametrize(
    "inner",
    [
        error_feedback(topk()),
        momentum_correction(topk()),
        random_k(0.1, scaled=True),
        chain(error_feedback(topk()), int8()),
        chain(identity(), random_k(0.1, scaled=True)),
        warm_up(lambda density: random_k(density, scaled=True)),
    ],
    ids=lambda inner: inner.name,
)
def test_feedback_around_feedback_or_around_what_sends_more_than_it_was_given_is_refused(wrap, inner):
    """After 60 steps on unit noise such residuals are 10^5 and 10^11 times too large."""
    with pytest.raises(ClashError, match=f"{wrap.__name__}: .* would grow without bound; use one without the other"):
        wrap(inner)


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_a_gradient_that_overflowed_leaves_the_residual_as_it_was(inner):
    compressor = error_feedback(inner())
    x = torch.randn(10, 10, generator=torch.Generator().manual_seed(3))
    _, state = compressor.compress(x, compressor.init(x))
    kept = state.residual.clone()
    for place in range(0, 100, 9):
        bad = x.clone()
        bad.view(-1)[place] = math.inf
        with pytest.raises(NotANumber):
            compressor.compress(bad, state)
    assert torch.equal(state.residual, kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrap", [error_feedback, lambda inner: momentum_correction(inner, 0.0)], ids=["ef", "dgc"])
def test_in_half_precision_what_is_small_beside_the_residual_is_late_and_not_lost(wrap, dtype):
    compressor = wrap(topk(0.5))
    x = torch.tensor([1.0, 0.002], dtype=dtype)
    state, sent = compressor.init(x), torch.zeros(2, dtype=torch.float64)
    for _ in range(2000):
        packet, state = compressor.compress(x, state)
        assert packet.tensors["values"].dtype == dtype
        sent += compressor.decompress(packet).double()
    kept = state.residual if wrap is error_feedback else state.velocity
    torch.testing.assert_close(sent + kept.double(), 2000 * x.double(), rtol=1e-4, atol=0)
    assert sent[1] > 1, "something of the small entry was sent"
