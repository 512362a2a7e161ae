"""The loops of quantisers: equal to the plain torch form, to the bit, for any data and any number of threads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import kernels
from laconic.compress import (
    e3m0,
    error_feedback,
    fp8,
    int4,
    int8,
    natural,
    qsgd,
    sign,
    ternary,
    threshold,
    topk,
)
from laconic.compress.base import accumulate, carry
from laconic.kernels import blocks, select

CASES = {
    "int8(7)": lambda: int8(7),
    "int8(256)": lambda: int8(256),
    "int8(64, nearest)": lambda: int8(64, stochastic=False),
    "int8(5000, nearest)": lambda: int8(5000, stochastic=False),
    "int4(6)": lambda: int4(6),
    "int4(32, nearest)": lambda: int4(32, stochastic=False),
    "int4(4096)": lambda: int4(4096),
    "qsgd(1, 8)": lambda: qsgd(1, 8),
    "qsgd(3, 512)": lambda: qsgd(3),
    "qsgd(7, 4096, max)": lambda: qsgd(7, 4096, "max"),
    "qsgd(127, 1000)": lambda: qsgd(127, 1000),
    "e3m0(128)": e3m0,
    "e3m0(6)": lambda: e3m0(6),
    "e3m0(32, stochastic)": lambda: e3m0(32, stochastic=True),
    "fp8(e4m3)": fp8,
    "fp8(e4m3, stochastic)": lambda: fp8("e4m3", 32, stochastic=True),
    "fp8(e5m2, 7)": lambda: fp8("e5m2", 7),
    "fp8(e5m2, stochastic)": lambda: fp8("e5m2", 4096, stochastic=True),
    "natural(9)": natural,
    "natural(8)": lambda: natural(8),
    "sign": sign,
    "sign(l2)": lambda: sign("l2"),
    "sign(none)": lambda: sign("none"),
    "sign(l1, 64)": lambda: sign("l1", 64),
    "sign(l2, 1048)": lambda: sign("l2", 1048),
    "ternary": ternary,
    "ternary(None)": lambda: ternary(None),
}
KINDS = ("normal", "wide", "ties", "zeros", "tiny", "equal")


def draw(n, seed, kind):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    return {
        "normal": lambda: x,
        "wide": lambda: x**15,
        "ties": lambda: (x * 2).round() / 2,
        "zeros": lambda: -x * (x > 1.5),  # negative ones among them
        "tiny": lambda: x * 1e-39,
        "equal": lambda: torch.full((n,), -0.3),
    }[kind]()


def same(a, b):
    return a.dtype == b.dtype and torch.equal(a, b) and torch.equal(torch.signbit(a), torch.signbit(b))


@pytest.mark.parametrize("name", CASES)
@given(
    n=st.sampled_from([1, 2, 7, 8, 9, 31, 1000, 1920, 2048, 2049, 4100, 9999]),
    kind=st.sampled_from(KINDS),
    weight=st.sampled_from([1.0, 0.25, -3.1]),
    seed=st.integers(0, 999),
)
@settings(max_examples=20)
def test_packets_residuals_and_values_are_those_of_the_plain_form(name, n, kind, weight, seed):
    compressor = CASES[name]()
    x, residual = draw(n, seed, kind), draw(n, seed + 1, kind)
    if name == "natural(8)":  # which refuses larger ones
        x, residual = x.clamp(-1e5, 1e5), residual.clamp(-1e5, 1e5)
    state, into = compressor.init(x), draw(n, seed + 2, "normal")
    with kernels.plain():
        packet, after = compressor.compress(x, state)
        carried, left, carried_after = carry(compressor, x, residual, state)
        values, added = compressor.decompress(packet), into.clone()
        accumulate(compressor, packet, added, weight)
    fast, fast_after = compressor.compress(x, state)
    fast_carried, fast_left, fast_carried_after = carry(compressor, x, residual, state)
    fast_added = into.clone()
    accumulate(compressor, packet, fast_added, weight)
    assert after == fast_after == carried_after == fast_carried_after
    assert packet.header == fast.header
    assert packet.tensors.keys() == fast.tensors.keys()
    for part, tensor in packet.tensors.items():
        assert same(tensor, fast.tensors[part]), part
        assert same(carried.tensors[part], fast_carried.tensors[part]), part
    assert same(left, fast_left)
    assert same(values, compressor.decompress(packet))
    assert same(added, fast_added)


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name):
    compressor, x = CASES[name](), draw(400_001, 1, "normal")
    residual, state, found = draw(400_001, 2, "normal"), compressor.init(x), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packet, left, _ = carry(compressor, x, residual, state)
            found.append((*packet.tensors.values(), left, compressor.decompress(packet)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("ternary", "sign(none)")])
def test_what_is_sent_and_what_is_left_are_the_whole(name):
    compressor, x, residual = CASES[name](), draw(5000, 3, "normal"), draw(5000, 4, "normal")
    packet, left, _ = carry(compressor, x, residual, compressor.init(x))
    torch.testing.assert_close(compressor.decompress(packet) + left, x + residual, rtol=1e-5, atol=1e-5)


def test_a_packet_is_not_the_memory_of_the_next():
    compressor = error_feedback(int8())
    x = draw(5_000_000, 5, "normal")
    state, packets, copies = compressor.init(x), [], []
    for _ in range(4):
        packet, state = compressor.compress(x, state)
        packets.append(packet)
        copies.append({n: t.clone() for n, t in packet.tensors.items()})
    for packet, copy in zip(packets, copies, strict=True):
        assert all(torch.equal(t, copy[n]) for n, t in packet.tensors.items())


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", [*CASES, "topk", "threshold"])
def test_what_goes_around_the_cache_is_what_the_plain_form_leaves(name, threads, monkeypatch):
    """With the size from which memory is recycled and stored past the cache lowered, and that worth a thread too."""
    for module in (kernels, blocks, select):
        monkeypatch.setattr(module, "BEYOND_CACHE", 1 << 12)
    monkeypatch.setattr(kernels, "KEPT", 1 << 12)
    monkeypatch.setattr(kernels, "SHARE", 500)
    went = []
    monkeypatch.setattr(
        blocks, "_around", lambda left, block, real=blocks._around: went.append(real(left, block)) or went[-1]
    )
    compressor = {"topk": lambda: topk(0.01), "threshold": lambda: threshold(0.01)}.get(name, CASES.get(name))()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n in (4096, 5000, 8192 + 16, 9999, 40_000, 70_001):
            x, residual = draw(n, n, "normal"), draw(n, n + 1, "normal")
            state = compressor.init(x)
            with kernels.plain():
                packet, left, _ = carry(compressor, x, residual, state)
            fast, fast_left, _ = carry(compressor, x, residual, state)
            assert all(same(fast.tensors[key], t) for key, t in packet.tensors.items())
            assert same(fast_left, left)
    finally:
        torch.set_num_threads(before)
    if name in ("int8(64, nearest)", "int4(32, nearest)", "e3m0(128)", "natural(9)"):
        assert any(went), "nothing went around the cache, so that nothing was tested"
