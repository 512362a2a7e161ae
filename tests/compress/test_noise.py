"""The noise of random rounding: uniform, and independent of neighbours, of other keys and of other seeds."""

import pytest
import torch

from laconic.compress import error_feedback, int4
from laconic.compress.base import noise_key
from laconic.compress.noise import halves, noise, uniform

BIG = torch.empty(1 << 18)


@pytest.mark.parametrize("key", [0, 1, 1 << 40, (1 << 63) - 1])
def test_it_is_uniform_in_all_24_bits(key):
    u = uniform(BIG, key).double()
    n = u.numel()
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 4 / (12 * n) ** 0.5
    counts = torch.histc(u, 256, 0, 1)
    assert float(((counts - n / 256).square() / (n / 256)).sum()) < 255 + 5 * (2 * 255) ** 0.5  # chi squared
    bits = (noise(BIG, key)[:, None] >> torch.arange(32)) & 1
    assert float((bits.double().mean(0) - 0.5).abs().max()) < 5 / (4 * n) ** 0.5


@pytest.mark.parametrize("step", [1, 2, 8, 64, 256, 1024, 4096])
def test_entries_apart_by_a_power_of_two_are_independent(step):
    u = uniform(BIG, 7).double() - 0.5
    assert abs(float((u[:-step] * u[step:]).mean())) < 5 / 12 / (u.numel() - step) ** 0.5


@pytest.mark.parametrize("other", [6, 8, 7 + (1 << 32), 7 + (1 << 62), -7])
def test_close_keys_give_independent_streams_with_no_part_in_common(other):
    a, b = uniform(BIG, 7).double() - 0.5, uniform(BIG, other).double() - 0.5
    assert abs(float((a * b).mean())) < 5 / 12 / a.numel() ** 0.5
    # Two runs of the same three values in a row would be one stream at another place.
    runs = [torch.stack((t[:-2], t[1:-1], t[2:]), 1) for t in (noise(BIG, 7), noise(BIG, other))]
    assert len(set(map(tuple, runs[0].tolist())) & set(map(tuple, runs[1].tolist()))) == 0


def test_it_depends_on_the_place_and_not_on_the_length_or_the_shape():
    short = noise(torch.empty(10), 3)
    assert torch.equal(noise(torch.empty(5, 7), 3).reshape(-1)[:10], short)
    assert noise(torch.empty(0), 3).shape == (0,)


def test_it_is_pinned():
    """Another mix would change what every seed gives."""
    assert halves(1) == (269157861, 1452414493)
    assert noise(torch.empty(3), 1).tolist() == [419380340, -1169980658, -248418787]


@pytest.mark.parametrize("feedback", [False, True])
def test_workers_whose_gradients_are_mostly_zeros_round_independently(feedback):
    """Embeddings: the few entries that the key looks at first may be zero on all workers."""
    size, errors = 8, []
    for worker in range(size):
        x = torch.zeros(5000, 64)
        rows = torch.arange(100) * 50 + 1
        x[rows] = 1 + 0.001 * torch.randn(100, 64, generator=torch.Generator().manual_seed(worker))
        compressor = error_feedback(int4()) if feedback else int4()
        errors.append(compressor.decompress(compressor.compress(x, compressor.init(x))[0]) - x)
    mean = torch.stack(errors).mean(0).square().sum() / errors[0].square().sum()
    assert mean < 1.5 / size, "independent errors average out, and the same ones stay"


def test_the_key_of_a_sum_is_the_key_of_its_two_parts():
    x, residual = torch.zeros(2, 5000)
    for place in (None, 7, 0):
        if place is not None:
            x[place], residual[place] = 0.25, 0.5
        assert noise_key(x, 1, 2, residual) == noise_key(x + residual, 1, 2)
