"""The loops that find large entries: equal to the plain torch form to the bit, for any data and number of threads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import kernels
from laconic.compress import chain, error_feedback, half, topk
from laconic.compress.base import accumulate, carry
from laconic.compress.topk import largest
from laconic.kernels import select

KINDS = ("normal", "cubed", "ties", "zeros", "one large part", "tiny")


def draw(n, seed, kind="normal"):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return {
        "normal": lambda: x,
        "cubed": lambda: x**5 * 1e-3,
        "ties": (x * 2).round,
        "zeros": lambda: x * (x > 2.5),
        "one large part": lambda: torch.where(torch.arange(n) < n // 50, x * 1e4, x),
        "tiny": lambda: x * 1e-41,
    }[kind]()


def both(run):
    with kernels.plain():
        plain = run()
    return run(), plain


@given(
    n=st.sampled_from([1, 2, 31, 33, 1000, 40_000, 300_000]),
    density=st.sampled_from([1e-4, 0.01, 0.2, 0.5, 1.0]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_entries_are_those_of_the_plain_form_and_of_a_full_sort(n, density, kind, seed):
    x, k = draw(n, seed, kind), max(1, int(density * n))
    fast, plain = both(lambda: largest(x, k))
    assert torch.equal(fast[0], plain[0])
    assert torch.equal(fast[1], plain[1])
    by_sort = np.sort(np.argsort(-x.abs().numpy(), kind="stable")[:k])
    assert np.array_equal(fast[0].numpy(), by_sort)


@given(
    n=st.sampled_from([1, 100, 40_000, 300_000]),
    density=st.sampled_from([1e-4, 0.01, 0.5, 1.0]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_a_residual_is_carried_as_in_the_plain_form(n, density, kind, seed):
    x, residual = draw(n, seed, kind), draw(n, seed + 1)
    (packet, left, _), (plain, plain_left, _) = both(lambda: carry(topk(density), x, residual, ()))
    assert torch.equal(left, plain_left)
    assert all(torch.equal(t, plain.tensors[name]) for name, t in packet.tensors.items())
    assert torch.equal(topk().decompress(packet) + left, x + residual)


def test_a_guess_that_fails_is_made_good():
    """The sample sees every other entry only; all that is large lies between."""
    n = 400_000
    stride = n // select.SAMPLE | 1
    x = draw(n, 0) * 1e-3
    x[1::stride] *= 1e6
    x[::stride] = 0
    fast, plain = both(lambda: largest(x, 4000))
    assert torch.equal(fast[0], plain[0])
    (packet, left, _), (_, plain_left, _) = both(lambda: carry(topk(0.01), x, x.clone(), ()))
    assert torch.equal(left, plain_left)
    assert torch.equal(topk().decompress(packet) + left, x + x)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads, tied):
    x, residual = draw(1_000_003, 1), draw(1_000_003, 2)
    if tied:  # of thousands of equal entries the first are taken, wherever the parts end
        x, residual = x.round(), residual.round()
    before = torch.get_num_threads()
    wanted = carry(topk(0.01), x, residual, ())
    try:
        torch.set_num_threads(threads)
        packet, left, _ = carry(topk(0.01), x, residual, ())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(left, wanted[1])
    assert all(torch.equal(t, wanted[0].tensors[name]) for name, t in packet.tensors.items())


@pytest.mark.parametrize("weight", [1.0, 0.25, 3.0])
def test_adding_a_packet_is_adding_what_it_decompresses_to(weight):
    x, start = draw(50_000, 3), draw(50_000, 4)
    for compressor in (topk(0.03), chain(topk(0.03), half())):
        packet, _ = compressor.compress(x, compressor.init(x))
        fast, plain = start.clone(), start.clone()
        accumulate(compressor, packet, fast, weight)
        with kernels.plain():
            accumulate(compressor, packet, plain, weight)
        assert torch.equal(fast, plain)
        torch.testing.assert_close(fast, start + weight * compressor.decompress(packet))


def test_feedback_around_a_chain_keeps_the_rounding_of_the_values_too():
    compressor = error_feedback(chain(topk(0.1), half()))
    x = draw(5000, 5)
    packet, state = compressor.compress(x, compressor.init(x))
    assert torch.equal(compressor.decompress(packet) + state.residual, x)
    assert bool(((compressor.decompress(packet) != 0) & (state.residual != 0)).any())


def test_memory_of_a_large_tensor_is_used_again_once_nobody_holds_it():
    like = torch.zeros(kernels.KEPT // 4)
    one = kernels.empty_like(like)
    address, view = one.data_ptr(), one[5:]
    del one
    assert kernels.empty_like(like).data_ptr() != address, "a view still lies in it"
    del view
    assert kernels.empty_like(like).data_ptr() == address
