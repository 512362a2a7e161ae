"""Momentum before the exchange: its laws, and Signum made of it."""

import pytest
import torch

from laconic.aggregate import majority
from laconic.compress import error_feedback, momentum_correction, sign, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import accordion, everyone, powersgd, two_phase, with_momentum
from laconic.links import memory
from laconic.methods import build
from laconic.sync import diloco, every_step
from tests.tiny import equal, sgd, together, train

SHAPES = [(20, 30), (7,)]


def noise(rank, step):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def rounds(talk, steps, workers=3):
    """Each worker's results of all rounds, and its last state."""

    def work(link):
        state, out = talk.init(noise(link.rank, 0)), []
        for step in range(steps):
            got, state = talk.run(noise(link.rank, step), state, link)
            out.append(got)
        return out, state

    return memory.run(workers, work)


@pytest.mark.parametrize(
    "inner", [everyone, lambda: two_phase(sign(), majority(), feedback=False)], ids=["dense", "signs"]
)
def test_without_momentum_it_is_the_exchange_bit_for_bit(inner):
    for (mine, _), (other, _) in zip(rounds(with_momentum(inner(), 0.0), 4), rounds(inner(), 4), strict=True):
        assert all(equal(a, b) for a, b in zip(mine, other, strict=True))
    assert not with_momentum(inner(), 0.0).momentum


def test_of_a_mean_it_is_the_running_mean():
    beta = 0.8
    mean = [torch.zeros(s, dtype=torch.float64) for s in SHAPES]
    for step, got in enumerate(rounds(with_momentum(momentum=beta), 6)[0][0]):
        everyones = [sum(noise(rank, step)[i] for rank in range(3)) / 3 for i in range(len(SHAPES))]
        mean = [beta * m + (1 - beta) * x for m, x in zip(mean, everyones, strict=True)]
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(got, mean, strict=True))


def test_what_came_out_and_what_is_kept_is_what_went_in():
    """Feedback's law and momentum's together: results + residual + b/(1-b) of the running mean == inputs."""
    beta, steps = 0.9, 7
    ran = rounds(with_momentum(everyone(error_feedback(topk(0.1))), beta), steps)
    for i in range(len(SHAPES)):
        given = sum(noise(rank, step)[i] for rank in range(3) for step in range(steps)) / 3
        came = sum(got[i] for got in ran[0][0])
        for _, state in ran:
            came = came + state.mean[i] * beta / (1 - beta) / 3
            came = came + getattr(state.inner.inner[i], "residual", torch.zeros(())) / 3
        assert torch.allclose(came, given, atol=1e-10)


def test_signum_steps_by_the_majority_of_the_signs_of_running_means():
    def work(link):
        method = build("signsgd", {"momentum": 0.9})
        state, out = method.init(noise(link.rank, 0)), []
        for step in range(3):
            got, state = method.after_backward(noise(link.rank, step), state, link)
            out.append(got)
        return out

    means = [[torch.zeros(s, dtype=torch.float64) for s in SHAPES] for _ in range(3)]
    for step, got in enumerate(memory.run(3, work)[1]):
        for rank, mean in enumerate(means):
            means[rank] = [0.9 * m + 0.1 * x for m, x in zip(mean, noise(rank, step), strict=True)]
        votes = [sum(mean[i].sign() for mean in means).sign() for i in range(len(SHAPES))]
        assert equal(got, votes)


def test_dense_it_is_momentum_sgd_of_a_rate_that_makes_up_for_the_mean():
    beta, lr = 0.5, 0.1
    ours = together(2, every_step(with_momentum(momentum=beta)), optimizer=lambda net: sgd(net, lr / (1 - beta)))
    theirs = together(2, every_step(), optimizer=lambda net: sgd(net, lr, momentum=beta))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(ours[0], theirs[0], strict=True))


def test_the_learning_rates_decay_is_passed_on():
    light, heavy = everyone(error_feedback(topk(0.3))), everyone(error_feedback(topk(0.05)))
    talk = with_momentum(accordion(light, heavy, every=1, eta=1e9))
    (_, state), _ = rounds(talk, 3, workers=2)
    assert not any(state.inner.light)
    assert all(talk.decayed(state).inner.light)
    assert with_momentum().decayed is None


def test_what_does_not_fit_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"with_momentum: momentum must be in \[0, 1\), got 1.0"):
        with_momentum(momentum=1.0)
    with pytest.raises(ClashError, match="carries momentum itself"):
        with_momentum(everyone(momentum_correction(topk(0.1))))
    with pytest.raises(ClashError, match="adds momentum, which is for gradients"):
        diloco(with_momentum())
    with pytest.raises(ConfigError, match="carries momentum itself"), memory.alone() as link:
        train(link, every_step(with_momentum()), optimizer=lambda net: sgd(net, momentum=0.9))
    assert with_momentum(powersgd()).momentum
