"""Deep Gradient Compression's accumulation: the published identities (spec B.1, properties 1 to 4)."""

import pytest
import torch

from laconic.compress import error_feedback, identity, momentum_correction, topk
from laconic.errors import ConfigError

WORKERS, SHAPE, STEPS = 3, (8, 5), 40


def gradients():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(STEPS, WORKERS, *SHAPE, generator=generator, dtype=torch.float64)


def drive(compressor):
    """The mean of what the workers sent at each step, their last states, and the states before each step."""
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    states, means, trail = [compressor.init(zero) for _ in range(WORKERS)], [], []
    for step in gradients():
        sent = []
        for w in range(WORKERS):
            packet, states[w] = compressor.compress(step[w], states[w])
            sent.append(compressor.decompress(packet))
        means.append(sum(sent) / WORKERS)
        trail.append(list(states))
    return means, states, trail


def momentum_sgd(m, nesterov=False):
    buffer, out = torch.zeros(SHAPE, dtype=torch.float64), []
    for step in gradients():
        g = step.mean(0)
        buffer = m * buffer + g
        out.append(g + m * buffer if nesterov else buffer)
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inner", [lambda: topk(1.0), identity], ids=["topk(1.0)", "identity"])
@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
def test_at_density_1_without_masking_it_is_momentum_sgd(inner, nesterov):
    means, _, _ = drive(momentum_correction(inner(), 0.9, masking=False, nesterov=nesterov))
    for got, wanted in zip(means, momentum_sgd(0.9, nesterov), strict=True):
        close(got, wanted)


def test_at_density_1_with_masking_it_is_the_plain_mean_gradient():
    means, _, _ = drive(momentum_correction(topk(1.0), 0.9, masking=True))
    for got, step in zip(means, gradients(), strict=True):
        close(got, step.mean(0))


def test_without_masking_what_was_sent_and_kept_is_the_sum_of_momentum_sgds_steps():
    means, states, _ = drive(momentum_correction(topk(0.1), 0.9, masking=False))
    kept = sum(s.velocity for s in states) / WORKERS
    close(sum(means) + kept, sum(momentum_sgd(0.9)))
    assert kept.norm() > 1, "something must have been held back for this to say anything"


def test_with_masking_what_was_sent_and_kept_is_the_sum_of_all_momentum():
    compressor = momentum_correction(topk(0.1), 0.9, masking=True)
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    states, sent, momenta = [compressor.init(zero) for _ in range(WORKERS)], zero.clone(), zero.clone()
    for step in gradients():
        for w in range(WORKERS):
            momenta += 0.9 * states[w].momentum + step[w]
            packet, states[w] = compressor.compress(step[w], states[w])
            sent += compressor.decompress(packet)
            assert not states[w].momentum[compressor.decompress(packet) != 0].any()
    close(sent + sum(s.velocity for s in states), momenta)


def test_without_momentum_it_is_error_feedback():
    a, states, _ = drive(momentum_correction(topk(0.1), 0.0))
    b, plain, _ = drive(error_feedback(topk(0.1)))
    for x, y in zip(a, b, strict=True):
        close(x, y)
    for x, y in zip(states, plain, strict=True):
        close(x.velocity, y.residual)


def test_it_says_that_momentum_is_in_what_it_sends():
    assert momentum_correction().momentum
    assert not momentum_correction(momentum=0.0).momentum
    assert not error_feedback().momentum


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0])
def test_a_momentum_outside_0_to_1_is_refused(momentum):
    with pytest.raises(ConfigError, match="momentum must be in"):
        momentum_correction(momentum=momentum)
