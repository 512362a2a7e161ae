"""The Triton programs: equal to the plain torch forms, on a GPU or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which torch's CUDA builds bring along")

from laconic import kernels
from laconic.compress import int4, int8
from laconic.compress.base import carry, noise_key
from laconic.compress.places import decode
from laconic.compress.topk import topk
from laconic.kernels import blocks_gpu, select_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ("normal", "ties", "zeros", "one large part", "falls between the samples")


def draw(n, seed, kind):
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    if kind == "ties":
        x = (x * 2).round()
    elif kind == "zeros":
        x = x * (x > 2.5)
    elif kind == "one large part":
        x[: n // 50] *= 1e4
    elif kind == "falls between the samples":
        x[:: n // select_gpu.SAMPLE | 1] = 0
    return x.to(DEVICE)


def plain_pick(x, residual, k):
    with kernels.plain():
        packet, left, _ = topk(k / x.numel()).carry(x, torch.zeros_like(x) if residual is None else residual, ())
    return packet, left


@pytest.mark.parametrize("n", [1, 100, 50_000, 300_001])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fed", [False, True])
def test_the_largest_entries_and_what_is_left_are_those_of_the_plain_form(n, kind, fed):
    x = draw(n, 0, kind)
    residual = draw(n, 1, "normal") if fed else None
    for k in {1, max(1, n // 100), n}:
        before = x.clone()
        places, values, left = select_gpu.pick(x, residual, k)
        packet, plain_left = plain_pick(x, residual, k)
        assert torch.equal(x, before)
        assert torch.equal(values, packet.tensors["values"])
        assert torch.equal(places, topk_places(packet, n))
        if fed:
            assert torch.equal(left, plain_left)


def topk_places(packet, n):
    return decode(packet, n, packet.tensors["values"].numel())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_among_the_values(bad):
    x = draw(50_000, 0, "normal")
    x[777] = bad
    _, values, _ = select_gpu.pick(x, None, 500)
    assert not torch.isfinite(values).all()


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter's numpy, where a block is all zeros
@pytest.mark.parametrize("build", [int8, int4], ids=["int8", "int4"])
@pytest.mark.parametrize("n", [65, 128, 40_001])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("fed", [False, True])
def test_blocks_become_the_codes_and_the_rest_of_the_plain_form(build, n, stochastic, fed):
    levels, bits, block = {int8: (127, 8, 64), int4: (7, 4, 32)}[build]
    x = draw(n, 2, "normal")
    if n > 500:
        x[200:500] = 0
        x[600] = 1e30
    residual = draw(n, 3, "normal") if fed else torch.zeros_like(x)
    compressor = build(block, stochastic=stochastic)
    key = noise_key(x + residual, 0, 0) if stochastic else None
    with kernels.plain():
        packet, left, _ = carry(compressor, x, residual, compressor.init(x))
        back = compressor.decompress(packet)
    size = packet.header["block"]
    codes, scales, mine = blocks_gpu.linear(x, residual if fed else None, size, levels, bits, 0, key)
    assert torch.equal(scales, packet.tensors["scales"])
    assert torch.equal(codes, packet.tensors["codes"].view(torch.uint8))
    if fed:
        assert torch.equal(mine, left)
    out = torch.empty_like(x)
    blocks_gpu.linear_back(codes, scales, size, bits, out, None)
    assert torch.equal(out, back)
    start = draw(n, 4, "normal")
    summed = start.clone()
    blocks_gpu.linear_back(codes, scales, size, bits, summed, 0.25)
    assert torch.equal(summed, start + back * 0.25)
