"""EF21 and its form with momentum."""

import pytest
import torch

from laconic import attach
from laconic.compress import ef21, ef21_sgdm, identity, int8, random_k, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone
from laconic.links import memory
from laconic.sync import diloco, every_step
from tests.tiny import model, sgd


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("start", ["zero", "dense"])
@pytest.mark.parametrize("inner", [lambda: topk(0.1), int8, lambda: random_k(0.1)], ids=["topk", "int8", "random_k"])
def test_with_a_1_the_form_with_momentum_is_ef21_bit_for_bit(start, inner):
    one, other = ef21(inner(), start), ef21_sgdm(inner(), 1.0, start)
    a, b = one.init(draw(9, 7)), other.init(draw(9, 7))
    for number in range(20):
        x = draw(9, 7, seed=number)
        (p, a), (q, b) = one.compress(x, a), other.compress(x, b)
        assert p.header == q.header
        assert all(torch.equal(t, q.tensors[n]) for n, t in p.tensors.items())
        assert torch.equal(a.told, b.told)


def test_on_a_constant_tensor_what_was_told_closes_in_at_the_compressors_own_rate():
    x, compressor = draw(500), ef21(topk(0.1))
    state, left = compressor.init(x), x.square().sum()
    for _ in range(10):  # each entry is sent once in ten rounds of a tenth of them, exactly
        _, state = compressor.compress(x, state)
        now = (x - state.told).square().sum()
        assert now <= (1 - 0.1) * left
        left = now
    assert not left


def test_the_form_with_momentum_sends_the_running_average_begun_at_the_first_tensor():
    compressor, average = ef21_sgdm(identity(), a=0.25), None
    state = compressor.init(draw(6, 5))
    for number in range(8):
        x = draw(6, 5, seed=number)
        average = x if average is None else 0.75 * average + 0.25 * x
        _, state = compressor.compress(x, state)
        torch.testing.assert_close(state.told, average, rtol=1e-14, atol=1e-14)


def test_without_momentum_no_velocity_is_kept():
    assert ef21().init(draw(3, 3)).velocity is None
    assert not ef21().momentum
    assert not ef21_sgdm(a=1.0).momentum


def test_the_optimizer_must_have_no_momentum_of_its_own_beside_it():
    def work(link):
        net = model()
        with pytest.raises(ClashError, match="carries momentum itself"):
            attach(net, sgd(net, momentum=0.9), every_step(everyone(ef21_sgdm(topk(0.1)))), link)
        attach(net, sgd(net, momentum=0.9), every_step(everyone(ef21(topk(0.1)))), link)

    memory.run(1, work)
    with pytest.raises(ClashError, match="adds momentum, which is for gradients"):
        diloco(everyone(ef21_sgdm(topk())))


@pytest.mark.parametrize("a", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(a):
    with pytest.raises(ConfigError, match=r"ef21_sgdm: a must be in \(0, 1\]"):
        ef21_sgdm(a=a)
