"""Random-k: the same places everywhere, each place in its turn, unbiased when scaled."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import error_feedback, random_k
from laconic.compress.base import accumulate, carry
from laconic.compress.random_k import chosen
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet

CPU = torch.device("cpu")


@given(n=st.integers(1, 3000), density=st.floats(0.001, 1), seed=st.integers(0, 999), step=st.integers(0, 10**6))
def test_the_chosen_places_are_k_different_ones_and_the_same_on_every_worker(n, density, seed, step):
    k = math.ceil(density * n)
    places = chosen(n, k, seed, step, CPU)
    assert places.numel() == k == len(set(places.tolist()))
    assert 0 <= int(places.min()) <= int(places.max()) < n
    assert torch.equal(places, chosen(n, k, seed, step, CPU))


def test_workers_with_different_tensors_send_the_same_places_and_the_next_step_others():
    one, two = torch.ones(500), torch.full((500,), 7.0)
    compressor = random_k(0.1)
    state = compressor.init(one)
    sent = []
    for _ in range(5):
        a, after = compressor.compress(one, state)
        b, _ = compressor.compress(two, state)
        kept = compressor.decompress(a) != 0
        assert torch.equal(kept, compressor.decompress(b) != 0)
        sent.append(tuple(kept.tolist()))
        state = after
    assert len(set(sent)) == 5


def test_another_seed_chooses_other_places():
    assert not torch.equal(chosen(1000, 10, 0, 0, CPU), chosen(1000, 10, 1, 0, CPU))


@pytest.mark.parametrize("n", [64, 97, 100])
def test_every_place_is_chosen_about_equally_often(n):
    k, steps = n // 8, 4000
    counts = torch.zeros(n)
    for step in range(steps):
        counts[chosen(n, k, 0, step, CPU)] += 1
    expected = steps * k / n
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_scaled_it_is_unbiased():
    n, steps = 40, 6000
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    compressor = random_k(0.25, scaled=True)
    state, total = compressor.init(x), torch.zeros(n, dtype=torch.float64)
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        total += compressor.decompress(packet)
    spread = x.abs() * math.sqrt(3 / steps)  # one value is 4 x with probability 1/4: a deviation of sqrt(3) |x|
    assert bool(((total / steps - x).abs() < 5 * spread).all())


def test_unscaled_its_mean_error_is_1_minus_the_density():
    n, steps = 50, 4000
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    compressor, errors = random_k(0.2), 0.0
    state = compressor.init(x)
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        errors += float((x - compressor.decompress(packet)).square().sum())
    assert errors / steps / float(x.square().sum()) == pytest.approx(0.8, abs=0.02)


def test_no_places_cross_the_link():
    packet, _ = random_k(0.01).compress(torch.ones(100_000), random_k().init(torch.ones(1)))
    assert 4000 <= packet.nbytes < 4000 + 100


def test_more_values_than_the_tensor_has_entries_are_refused():
    with pytest.raises(PacketError, match="11 values for a tensor of 10"):
        random_k().decompress(Packet({"values": torch.ones(11)}, {"shape": [10], "seed": 0, "step": 0}))


def test_a_density_that_is_no_share_is_refused():
    with pytest.raises(ConfigError, match="random_k: density"):
        random_k(0)


@given(
    n=st.integers(1, 3000),
    density=st.floats(0.001, 1),
    run=st.integers(1, 100),
    seed=st.integers(0, 999),
    step=st.integers(0, 10**6),
)
def test_runs_too_are_k_different_places_and_neighbours(n, density, run, seed, step):
    k = math.ceil(density * n)
    places = chosen(n, k, seed, step, CPU, run)
    assert places.numel() == k == len(set(places.tolist()))
    assert 0 <= int(places.min()) <= int(places.max()) < n
    for part in places.split(min(run, n)):
        assert bool(((part[1:] - part[:-1]) % n == 1 % n).all())


@pytest.mark.parametrize(("n", "run"), [(64, 4), (97, 16), (100, 7), (50, 64)])
def test_in_runs_too_every_place_is_chosen_about_equally_often(n, run):
    k, steps = n // 8, 6000
    counts = torch.zeros(n)
    for step in range(steps):
        counts[chosen(n, k, 0, step, CPU, run)] += 1
    expected = steps * k / n
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_a_tensor_is_covered_by_the_steps_and_with_feedback_nothing_is_lost():
    compressor = error_feedback(random_k(0.1, run=8))
    x = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    state, sent, steps = compressor.init(x), torch.zeros_like(x), 200
    for _ in range(steps):
        packet, state = compressor.compress(x, state)
        accumulate(compressor, packet, sent)
    assert bool((sent != 0).all())
    torch.testing.assert_close(sent + state.residual, steps * x, rtol=0, atol=1e-10)


def test_what_is_carried_is_what_the_sum_leaves_to_the_bit():
    x, residual = (torch.randn(500, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    compressor = random_k(0.1)
    packet, left, after = carry(compressor, x, residual, compressor.init(x))
    plain, _ = compressor.compress(x + residual, compressor.init(x))
    assert torch.equal(packet.tensors["values"], plain.tensors["values"])
    assert torch.equal(compressor.decompress(packet) + left, x + residual)
    assert after.step == 1


def test_bounds_are_those_of_the_expected_errors():
    assert random_k(0.2).delta(50) == pytest.approx(0.2)
    assert random_k(0.25, scaled=True).omega(40) == pytest.approx(3)
    assert random_k(0.2).omega is None
    assert random_k(0.2, scaled=True).delta is None


def test_a_run_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="random_k: run"):
        random_k(0.1, run=0)


@given(
    n=st.integers(1, 400),
    density=st.floats(0.001, 1),
    run=st.integers(1, 50),
    seed=st.integers(0, 999),
    apart=st.integers(1, 3),
)
def test_what_is_sent_is_the_tensor_at_the_chosen_places(n, density, run, seed, apart):
    x = torch.arange(n * apart, dtype=torch.float64)[::apart]
    compressor = random_k(density, seed=seed, run=run)
    packet, _ = compressor.compress(x, compressor.init(x))
    places = chosen(n, math.ceil(density * n), seed, 0, CPU, run)
    assert torch.equal(packet.tensors["values"], x[places])
