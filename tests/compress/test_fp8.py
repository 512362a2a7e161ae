"""FP8: the nearest of torch's own 8-bit floats, its relative error, and unbiased at random."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import fp8
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet
from tests.compress.repeated import is_unbiased, normal, once, relative_error

KINDS = {
    "e4m3": (torch.float8_e4m3fn, 448.0, 1 / 16, 2.0**-10 / 448),
    "e5m2": (torch.float8_e5m2, 57344.0, 1 / 8, 2.0**-17 / 57344),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@given(
    kind=st.sampled_from(list(KINDS)),
    n=st.integers(1, 300),
    block=st.sampled_from([7, 64, 1000]),
    power=st.sampled_from([1, 5, 9]),
    seed=st.integers(0, 999),
)
def test_the_error_is_within_half_a_step_of_the_value_or_of_the_smallest(kind, n, block, power, seed):
    x = normal(n, seed=seed) ** power
    back = once(fp8(kind, block), x)
    _, _, relative, absolute = KINDS[kind]
    for a, b in zip(x.double().split(block), back.double().split(block), strict=True):
        bound = torch.maximum(a.abs() * relative, a.abs().max() * absolute)
        assert bool(((a - b).abs() <= bound * (1 + 1e-5)).all())
    assert relative_error(fp8(kind, block), x) <= 1 - fp8(kind, block).delta(n)


@kinds
def test_every_8_bit_float_decodes_to_what_torch_has_and_compresses_to_itself(kind):
    dtype, top, _, _ = KINDS[kind]
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    x = every[every.isfinite()]
    packet, _ = fp8(kind, 256).compress(x, ())
    assert float(packet.tensors["scales"]) == 1.0
    assert torch.equal(packet.tensors["codes"], x.to(dtype).view(torch.uint8))
    assert torch.equal(fp8(kind).decompress(packet), x)
    assert float(x.max()) == top


@kinds
def test_at_random_it_is_unbiased_down_to_the_smallest_and_within_omega(kind):
    x = normal(300) ** 5
    assert is_unbiased(fp8(kind, 64, stochastic=True), x)
    assert relative_error(fp8(kind, 64, stochastic=True), x, 50) <= fp8(kind, 64, stochastic=True).omega(300)


def test_a_bit_more_of_mantissa_is_more_exact_on_gaussian_values():
    x = normal(1 << 16)
    fine, coarse = (relative_error(fp8(kind), x) for kind in KINDS)
    assert coarse == pytest.approx(4 * fine, rel=0.1)
    assert fine < 1e-3


def test_it_goes_as_plain_bytes_one_a_value_and_four_a_block():
    packet, _ = fp8(block=64).compress(torch.ones(1000), ())
    assert packet.tensors["codes"].dtype == torch.uint8
    assert packet.tensors["codes"].numel() == 1000
    assert packet.tensors["scales"].numel() == 16


def test_the_header_says_which_kind_it_is():
    x = normal(100)
    packet, _ = fp8("e5m2").compress(x, ())
    assert torch.equal(fp8("e4m3").decompress(packet), fp8("e5m2").decompress(packet))
    with pytest.raises(PacketError, match="kind is 'e3m4', wanted one of e4m3, e5m2"):
        fp8().decompress(Packet(packet.tensors, packet.header | {"kind": "e3m4"}))
    with pytest.raises(ConfigError, match="e3m4"):
        fp8("e3m4")
    with pytest.raises(ConfigError, match="fp8: block must be at least 1"):
        fp8(block=0)
