"""Half precision: the rounding error, and the values that do not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import error_feedback, half
from laconic.errors import ConfigError, NotANumber


@given(kind=st.sampled_from(["bf16", "fp16"]), seed=st.integers(0, 2**31))
def test_the_relative_error_is_the_formats(kind, seed):
    x = torch.randn(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x[x.abs() > 1e-3]
    back = half(kind).decompress(half(kind).compress(x, ())[0])
    assert bool(((back - x).abs() <= x.abs() * (2**-8 if kind == "bf16" else 2**-11)).all())


def test_each_kind_takes_two_bytes_an_entry_and_comes_back_in_the_tensors_dtype():
    for kind in ("bf16", "fp16"):
        packet, _ = half(kind).compress(torch.ones(1000), ())
        assert 2000 <= packet.nbytes < 2100
        assert half().decompress(packet).dtype == torch.float32  # the packet says how to read it, not the receiver


def test_fp16_refuses_what_it_cannot_hold_and_bf16_takes_it():
    x = torch.tensor([1.0, 7e4])
    with pytest.raises(NotANumber, match=r"half\('fp16'\): a value of 7e\+04 is beyond its range, 6\.55e\+04"):
        half("fp16").compress(x, ())
    with pytest.raises(NotANumber, match="holds NaN or infinity"):
        half("fp16").compress(torch.tensor([float("nan"), 7e4]), ())
    back = half("bf16").decompress(half("bf16").compress(x, ())[0])
    torch.testing.assert_close(back, x, rtol=2**-8, atol=0)


def test_a_tensor_already_in_that_format_crosses_unchanged_also_with_feedback():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    compressor = error_feedback(half("bf16"))
    packet, state = compressor.compress(x, compressor.init(x))
    assert torch.equal(compressor.decompress(packet), x)
    assert not state.residual.any()


def test_another_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'bf16'"):
        half("bf-16")
