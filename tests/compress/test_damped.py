"""Damping: unbiased compressors made contractive."""

import pytest
import torch

from laconic import compress
from laconic.compress import damped, error_feedback, random_k, topk
from laconic.compress.base import accumulate
from laconic.errors import ClashError, PacketError
from laconic.packet import Packet


def draw(n, seed=0, dtype=torch.float64):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


UNBIASED = {name: getattr(compress, name) for name in compress.__all__ if name != "Compressor"}
UNBIASED = {name: build for name, build in UNBIASED.items() if build().omega is not None}
UNBIASED["random_k"] = lambda: random_k(0.2, scaled=True)


@pytest.mark.parametrize("build", UNBIASED.values(), ids=UNBIASED.keys())
@pytest.mark.parametrize("n", [1, 7, 300])
def test_the_mean_error_is_within_1_minus_delta(build, n):
    x, compressor = draw(n, seed=n), damped(build())
    state, errors = compressor.init(x), []
    for _ in range(100):
        packet, state = compressor.compress(x, state)
        errors.append(float((x - compressor.decompress(packet)).square().sum()))
    bound = (1 - compressor.delta(n)) * float(x.square().sum())
    mean, spread = sum(errors) / 100, torch.tensor(errors).std().item() / 10
    assert mean <= bound + 4 * spread + 1e-12


def test_there_are_unbiased_compressors_to_damp():
    assert len(UNBIASED) >= 4


def test_damped_random_k_is_random_k_that_was_never_scaled():
    x = draw(100)
    plain, _ = random_k(0.1).compress(x, random_k(0.1).init(x))
    compressor = damped(random_k(0.1, scaled=True))
    packet, _ = compressor.compress(x, compressor.init(x))
    torch.testing.assert_close(compressor.decompress(packet), random_k(0.1).decompress(plain))
    assert compressor.delta(100) == pytest.approx(random_k(0.1).delta(100))


def test_the_receiver_needs_no_setting_of_the_senders():
    x, sender, receiver = draw(100), damped(random_k(0.1, scaled=True)), damped(random_k(0.5, scaled=True))
    packet, _ = sender.compress(x, sender.init(x))
    assert torch.equal(receiver.decompress(packet), sender.decompress(packet))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_it_adds_what_it_decompresses_to(dtype):
    x, compressor = draw(100, dtype=dtype), damped(random_k(0.1, scaled=True))
    packet, _ = compressor.compress(x, compressor.init(x))
    assert compressor.decompress(packet).dtype == dtype
    into = torch.ones(100, dtype=torch.float64)
    accumulate(compressor, packet, into, 3.0)
    torch.testing.assert_close(into, 1 + 3 * compressor.decompress(packet).double(), rtol=1e-2, atol=1e-2)


def test_feedback_around_it_stays_bounded_where_around_the_bare_compressor_it_would_not():
    x, compressor = draw(200), error_feedback(damped(random_k(0.05, scaled=True)))
    state, largest = compressor.init(x), 0.0
    for _ in range(1000):
        _, state = compressor.compress(x, state)
        largest = max(largest, float(state.residual.norm()))
    assert largest < 60 * float(x.norm())
    with pytest.raises(ClashError, match="would grow without bound"):
        error_feedback(random_k(0.05, scaled=True))


@pytest.mark.parametrize("inner", [topk(), random_k(), error_feedback(topk()), damped()], ids=lambda inner: inner.name)
def test_what_is_not_known_to_be_unbiased_is_refused(inner):
    with pytest.raises(ClashError, match="is not known to be unbiased; wrap random_k"):
        damped(inner)


@pytest.mark.parametrize("factor", [None, 0.0, -0.5, 1.5, float("nan"), "1", True, [0.5]])
def test_a_factor_that_is_none_is_refused(factor):
    compressor = damped()
    packet, _ = compressor.compress(draw(50), compressor.init(draw(50)))
    with pytest.raises(PacketError, match=r"damped is .*, wanted a number in \(0, 1\]"):
        compressor.decompress(Packet(packet.tensors, packet.header | {"damped": factor}))
