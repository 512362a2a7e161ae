"""EControl: its conservation law and its two ends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import chain, e3m0, econtrol, ef21, identity, int8, random_k, topk
from laconic.errors import ConfigError


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INNER = {
    "topk": lambda: topk(0.1),
    "random_k": lambda: random_k(0.1),
    "int8": int8,
    "e3m0": e3m0,
    "chain": lambda: chain(topk(0.2), int8()),
}


@pytest.mark.parametrize("start", ["zero", "dense"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_the_sum_of_what_was_told_after_each_step_plus_the_error_is_all_that_came_over_100_steps(inner, start):
    compressor = econtrol(inner(), 0.1, start)
    state = compressor.init(draw(20, 11))
    came, told = torch.zeros(20, 11, dtype=torch.float64), torch.zeros(20, 11, dtype=torch.float64)
    for number in range(100):
        x = draw(20, 11, seed=number) * math.exp(number / 60)
        packet, after = compressor.compress(x, state)
        torch.testing.assert_close(after.told - state.told, compressor.decompress(packet), rtol=1e-9, atol=1e-9)
        came, told, state = came + x, told + after.told, after
    assert float((told + state.error - came).norm() / came.norm()) < 1e-12
    assert state.error.any()


@given(eta=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_with_identity_nothing_is_missed_for_any_eta(eta, seed):
    compressor = econtrol(identity(), eta)
    state = compressor.init(draw(4, 3))
    for number in range(5):
        x = draw(4, 3, seed=seed + number)
        _, state = compressor.compress(x, state)
        torch.testing.assert_close(state.told, x, rtol=1e-13, atol=1e-13)
        assert not state.error.any()


@pytest.mark.parametrize("start", ["zero", "dense"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_with_eta_0_it_is_ef21_bit_for_bit(inner, start):
    one, other = econtrol(inner(), 0.0, start), ef21(inner(), start)
    a, b = one.init(draw(9, 7)), other.init(draw(9, 7))
    for number in range(20):
        x = draw(9, 7, seed=number)
        (p, a), (q, b) = one.compress(x, a), other.compress(x, b)
        assert p.header == q.header
        assert all(torch.equal(t, q.tensors[n]) for n, t in p.tensors.items())
        assert torch.equal(a.told, b.told)


def test_the_error_is_reckoned_from_what_was_told_before():
    """By hand, for two entries of which one is sent: the wrong order of updates gives an error of 1, not of 2."""
    compressor = econtrol(topk(0.5), 0.5)
    x = torch.tensor([4.0, 2.0])
    packet, state = compressor.compress(x, compressor.init(x))
    assert compressor.decompress(packet).tolist() == [4, 0]
    assert (state.told.tolist(), state.error.tolist()) == ([4, 0], [0, 2])
    packet, state = compressor.compress(x, state)
    assert compressor.decompress(packet).tolist() == [0, 3]  # 2 + 0.5 x 2
    assert (state.told.tolist(), state.error.tolist()) == ([4, 3], [0, 1])
    packet, state = compressor.compress(x, state)
    assert compressor.decompress(packet).tolist() == [0, -0.5]  # 2 - 3 + 0.5 x 1
    assert (state.told.tolist(), state.error.tolist()) == ([4, 2.5], [0, 0.5])


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(eta):
    with pytest.raises(ConfigError, match=r"econtrol: eta must be in \[0, 1\]"):
        econtrol(eta=eta)


def test_by_default_the_share_is_what_the_compressor_keeps_at_most_a_tenth():
    for inner, eta in ((lambda: topk(0.03), 0.03), (lambda: topk(0.5), 0.1), (int8, 0.1)):
        one, other = econtrol(inner()), econtrol(inner(), eta)
        a, b = one.init(draw(10, 10)), other.init(draw(10, 10))
        for number in range(5):
            _, a = one.compress(draw(10, 10, seed=number), a)
            _, b = other.compress(draw(10, 10, seed=number), b)
        assert torch.equal(a.told, b.told)
    with pytest.raises(ConfigError, match=r"does not say what share of a tensor it keeps, so eta must be given"):
        econtrol(chain(topk(0.01), int8()))
