"""MCBench's cost model: its laws, its fit, and when compressing pays."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.links import memory
from laconic.packet import Packet
from laconic.plan.activations import (
    Costs,
    Sample,
    compressed,
    fit,
    layer_flops,
    pipeline,
    plain,
    sent,
    speed_up,
    worth,
)

# A V100-like worker on a slow link: 5e13 operations a second, 1 GB/s for 2-byte values, a floor of 0.2 ms.
SLOW = Costs(compute=2e-14, code=1e-11, least=2e-4, knee=1e5, each=2e-9)
FAST = Costs(compute=2e-14, code=1e-11, least=2e-5, knee=1e5, each=1e-11)
HIDDEN = [1024, 2304, 3072, 4096, 6144, 8192, 10240, 12288, 16384, 20480, 25600]  # of the published sweep
costs = st.builds(
    Costs,
    compute=st.floats(1e-15, 1e-12),
    code=st.floats(1e-13, 1e-9),
    least=st.floats(1e-6, 1e-3),
    knee=st.floats(1e3, 1e6),
    each=st.floats(1e-12, 1e-8),
)


@given(costs=costs, code=st.sampled_from([50, 100]))
def test_the_gain_goes_to_nothing_as_models_grow(costs, code):
    h = max(2.0, costs.knee)  # from here on every message is beyond the knee
    gains = [abs(speed_up(costs, 32, 128, h * 4**k, code) - 1) for k in range(30)]
    assert gains[-1] < 1e-6
    far = next(
        k for k in range(30) if costs.compute * layer_flops(32, 128, h * 4**k) > plain(costs, 32, 128, h * 4**k) / 2
    )
    assert all(a >= b for a, b in zip(gains[far:], gains[far + 1 :], strict=False))


def test_on_a_slow_link_the_published_sweep_loses_its_gain_step_by_step():
    gains = [speed_up(SLOW, 32, 128, h, 100) for h in HIDDEN]
    assert gains[0] > 1.5
    assert all(a > b > 1 for a, b in itertools.pairwise(gains))


@given(costs=costs, h=st.floats(1, 1e5), B=st.integers(1, 128))
def test_a_code_as_wide_as_the_tensor_that_costs_nothing_changes_nothing(costs, h, B):
    free = Costs(costs.compute, 0.0, costs.least, costs.knee, costs.each)
    assert speed_up(free, B, 128, h, h) == 1


@given(costs=costs, h=st.floats(100, 1e5), e=st.floats(1, 1e5), B=st.integers(1, 128))
def test_compressing_pays_exactly_when_the_layer_gets_faster(costs, h, e, B):
    found = worth(costs, B, 128, h, e)
    saved = plain(costs, B, 128, h) - compressed(costs, B, 128, h, e)
    assert saved == pytest.approx(found.saved, abs=1e-9 * plain(costs, B, 128, h))
    assert found.pays == (costs.message(B * 128 * h) - costs.message(B * 128 * e) > costs.code * B * 128 * h)


def test_it_says_why_it_refuses():
    assert worth(SLOW, 32, 128, 4096, 100).pays
    assert not worth(FAST, 32, 128, 4096, 4000).pays
    assert "s less, and the code" in worth(FAST, 32, 128, 4096, 4000).why
    tiny = worth(SLOW, 1, 16, 64, 8)
    assert not tiny.pays
    assert "below which none gets any faster" in tiny.why


def test_a_pipeline_pays_for_its_messages_and_codes_at_each_cut():
    values = 32 * 128 * 4096
    bare = pipeline(SLOW, 4, 16, 0.01, values)
    assert bare == 19 * (0.01 + 2e-9 * values)
    assert pipeline(SLOW, 4, 16, 0.01, values, values / 40) == 19 * (0.01 + 2e-9 * values / 40 + 1e-11 * values)


@given(ways=st.sampled_from([2, 4, 8]), seed=st.integers(0, 1000))
def test_a_linear_code_may_be_summed_on_the_way(ways, seed):
    """decode(sum encode(x_i)) = decode(encode(sum x_i)), as an all-reduce of codes would have it."""
    generator = torch.Generator().manual_seed(seed)
    encode = torch.randn(64, 10, generator=generator, dtype=torch.float64)
    decode = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    x = torch.randn(ways, 6, 64, generator=generator, dtype=torch.float64)
    summed = sum(one @ encode for one in x)
    torch.testing.assert_close(summed @ decode, x.sum(0) @ encode @ decode, rtol=0, atol=1e-6)


def test_bytes_are_those_of_an_all_reduce_or_of_a_gather():
    B, s, e, t = 32, 128, 100, 4
    assert sent(t, B * s * e, 2, linear=True) == 2 * 3 / 4 * B * s * e * 2
    k = 500
    assert sent(t, k, 2, linear=False, index_bytes=4) == (t - 1) * k * (2 + 4)


@given(t=st.integers(2, 16), share=st.floats(0.001, 1))
def test_a_gathered_code_sends_less_only_below_2_over_t(t, share):
    values = 1e6
    assert (sent(t, share * values, 2, linear=False) < sent(t, values, 2, linear=True)) == (share < 2 / t)


def sweep(true, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def jitter():
        return 1 + noise * (2 * torch.rand((), generator=generator).item() - 1)

    work = [layer_flops(B, 128, h) for h in HIDDEN for B in (16, 32, 64, 128)]
    sizes = [1000 * 2**k for k in range(16)]
    return (
        [Sample(f, true.compute * f * jitter()) for f in work],
        [Sample(x, true.code * x * jitter()) for x in sizes],
        [Sample(x, true.message(x) * jitter()) for x in sizes],
    )


@pytest.mark.parametrize("true", [SLOW, FAST])
def test_a_fit_gives_back_the_costs_that_made_the_measurements(true):
    found = fit(*sweep(true))
    assert (found.compute, found.code, found.each) == pytest.approx((true.compute, true.code, true.each))
    assert found.least == pytest.approx(true.least)
    for values in (500, 5e4, 2e5, 1e8):
        assert found.message(values) == pytest.approx(true.message(values))


def test_a_fit_to_noisy_measurements_predicts_other_layers_within_15_percent():
    found = fit(*sweep(SLOW, noise=0.1))
    for h in (1536, 5120, 14336):
        for B in (24, 96):
            for make in (plain, lambda c, *a: compressed(c, *a, 100)):
                assert make(found, B, 128, h) == pytest.approx(make(SLOW, B, 128, h), rel=0.15)


def test_messages_without_a_floor_have_none():
    found = fit(*sweep(Costs(1e-14, 1e-11, 0.0, 0.0, 2e-9)))
    assert found.message(10) == pytest.approx(2e-8)


def test_a_fit_wants_enough_measurements():
    work, coding, messages = sweep(SLOW)
    with pytest.raises(ConfigError, match="coding needs at least 3 measurements for a fit, got 2"):
        fit(work, coding[:2], messages)
    with pytest.raises(ConfigError, match="every measurement of messages is of a positive amount"):
        fit(work, coding, [*messages, Sample(0, 1.0)])


@pytest.mark.parametrize("ways", [2, 4])
def test_the_links_count_what_is_said_to_be_sent(ways):
    """A linear code on a ring, and the largest entries with their places gathered; payload, without envelopes."""
    code, k = 40 * 1024, 512

    def summed(link):
        link.all_reduce(torch.ones(code))
        return link.meter.bytes_out

    def gathered(link):
        link.all_gather([Packet({"values": torch.ones(k), "places": torch.zeros(k, dtype=torch.int32)})])
        return link.meter.bytes_out

    for run, wanted in (
        (summed, sent(ways, code, 4, linear=True)),
        (gathered, sent(ways, k, 4, linear=False, index_bytes=4)),
    ):
        for out in memory.run(ways, run):
            assert wanted <= out <= 1.06 * wanted
