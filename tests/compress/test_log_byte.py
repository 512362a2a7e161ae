"""log_byte: every number to within a sixteenth of its logarithm, in one byte."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import error_feedback, log_byte
from laconic.errors import NotANumber

LEAST, MOST = math.exp(-63 / 8), math.exp(63 / 8)
BOUND = math.exp(1 / 16) - 1


def there_and_back(x, **settings):
    packet, _ = log_byte(**settings).compress(x, ())
    assert packet.tensors["codes"].dtype == torch.uint8
    assert packet.tensors["codes"].shape == (x.numel(),)
    return log_byte().decompress(packet)


@given(log=st.floats(math.log(LEAST) - 1 / 16, math.log(MOST) + 1 / 16), sign=st.sampled_from([-1.0, 1.0]))
def test_the_relative_error_is_within_the_stated_bound_over_the_stated_range(log, sign):
    x = torch.tensor([sign * math.exp(log)], dtype=torch.float64)
    back = there_and_back(x)
    assert float((back - x).abs() / x.abs()) <= BOUND + 1e-6
    assert torch.equal(back.sign(), x.sign())


def test_the_bound_is_reached_and_is_six_and_a_half_percent():
    x = torch.exp((torch.arange(-62, 63, dtype=torch.float64) + 0.5) / 8 - 1e-9)
    error = ((there_and_back(x) - x).abs() / x).max()
    assert 0.06 < float(error) <= BOUND < 0.0645


@given(x=st.floats(-1e300, 1e300, allow_nan=False))
def test_no_number_is_moved_further_than_to_zero(x):
    x = torch.tensor([x], dtype=torch.float64)
    assert float((there_and_back(x) - x).abs()) <= float(x.abs()) * (1 + 1e-6)


def test_what_is_beyond_the_range_goes_to_its_ends():
    x = torch.tensor([1e6, -1e30, LEAST / 1.9, -LEAST / 2.1, 1e-30])
    torch.testing.assert_close(there_and_back(x), torch.tensor([MOST, -MOST, LEAST, 0.0, 0.0]))


def test_what_was_decoded_once_is_coded_the_same_again():
    codes = torch.cat([torch.arange(128), torch.arange(129, 256)])  # without "no number"
    x = torch.exp((codes % 128 - 64) / 8).double() * torch.where(codes > 128, -1, 1)
    x[0] = 0.0
    once = there_and_back(x)
    packet, _ = log_byte().compress(once, ())
    assert packet.tensors["codes"].tolist() == codes.tolist()


def test_what_is_no_number_has_a_code_of_its_own_where_that_is_asked_for():
    x = torch.tensor([1.0, math.nan, -math.inf, math.inf, -1.0])
    back = there_and_back(x, missing=True)
    assert back.isnan().tolist() == [False, True, True, True, False]
    torch.testing.assert_close(back[[0, 4]], torch.tensor([1.0, -1.0]))
    with pytest.raises(NotANumber, match="log_byte"):
        there_and_back(x)


def test_with_feedback_what_is_too_small_to_send_is_sent_once_it_has_grown():
    keep = error_feedback(log_byte())
    x, total = torch.full((3,), LEAST / 10), torch.zeros(3)
    state = keep.init(x)
    for _ in range(100):
        packet, state = keep.compress(x, state)
        total += keep.decompress(packet)
    torch.testing.assert_close(total + state.residual, 100 * x, rtol=1e-4, atol=1e-7)
    assert bool((total > 0).all())
