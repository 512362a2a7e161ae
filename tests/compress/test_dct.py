"""DCT: energy is kept, the low frequencies come back, and everything is linear."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import dct, error_feedback
from laconic.compress.base import accumulate
from laconic.compress.dct import BY_MATRIX, basis, inverse, transform
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.exchange import everyone
from laconic.links import memory
from laconic.packet import Packet

CPU = torch.device("cpu")
WHOLE = [(100, 0), (257, 0), (1000, 0), (1000, 64), (1001, 64), (7, 64), (4099, 300)]


def draw(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def coefficients(x, chunk):
    """By the definition, and nothing else: F_j = a_j sum of x_i cos(pi (2i + 1) j / 2N)."""
    found = []
    for part in x.split(chunk or x.numel()):
        n = part.numel()
        i, j = torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)[:, None]
        f = math.sqrt(2 / n) * (torch.cos(math.pi * (2 * i + 1) * j / (2 * n)) @ part)
        f[0] /= math.sqrt(2)
        found.append(f)
    return found


@pytest.mark.parametrize(("n", "chunk"), WHOLE)
def test_what_is_sent_are_the_low_coefficients_by_their_definition(n, chunk):
    x = draw(n)
    for keep in (0.1, 0.35, 1.0):
        packet, _ = dct(keep, chunk).compress(x, dct().init(x))
        full = math.ceil(keep * min(chunk or n, n))
        wanted = [f[: -(-full * f.numel() // min(chunk or n, n))] for f in coefficients(x, chunk)]
        torch.testing.assert_close(packet.tensors["coefficients"], torch.cat(wanted), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("n", "chunk"), WHOLE)
def test_energy_is_kept_and_the_error_is_the_energy_of_what_was_dropped(n, chunk):
    x = draw(n)
    exact = dct(1.0, chunk)
    packet, _ = exact.compress(x, exact.init(x))
    torch.testing.assert_close(packet.tensors["coefficients"].norm(), x.norm(), rtol=1e-12, atol=0)
    torch.testing.assert_close(exact.decompress(packet), x, rtol=0, atol=1e-12)
    part = dct(0.3, chunk)
    packet, _ = part.compress(x, part.init(x))
    error = (x - part.decompress(packet)).square().sum()
    dropped = x.square().sum() - packet.tensors["coefficients"].square().sum()
    torch.testing.assert_close(error, dropped, rtol=1e-10, atol=1e-12)


@given(size=st.integers(1, 700), keep=st.floats(0.01, 1.0), first=st.integers(0, 2000), rows=st.integers(1, 3))
@settings(deadline=None)
def test_any_band_of_any_length_is_rows_of_the_orthonormal_matrix_there_and_back(size, keep, first, rows):
    count = math.ceil(keep * size)
    x = draw(rows * size).reshape(rows, size)
    matrix = basis(size, torch.float64, CPU)
    band = (torch.arange(count) + first) % size
    values = transform(x, count, first)
    torch.testing.assert_close(values, x @ matrix[band].T, rtol=0, atol=1e-11)
    torch.testing.assert_close(inverse(values, size, first), values @ matrix[band], rtol=0, atol=1e-11)


def test_both_ways_of_computing_it_are_used():
    assert any(chunk > BY_MATRIX or (not chunk and n > BY_MATRIX) for n, chunk in WHOLE)
    assert any(0 < chunk <= BY_MATRIX for _, chunk in WHOLE)


@pytest.mark.parametrize("chunk", [0, 64])
def test_the_mean_of_packets_is_the_packet_of_the_mean_in_an_all_reduce_too(chunk):
    xs = [draw(900, seed).reshape(30, 30) for seed in range(3)]
    compressor = dct(0.2, chunk)

    def run(link):
        exchange = everyone(dct(0.2, chunk))
        combined, _ = exchange.run([xs[link.rank]], exchange.init([xs[link.rank]]), link)
        return combined[0], link.meter.bytes_out

    mean = sum(xs) / 3
    wanted = compressor.decompress(compressor.compress(mean, compressor.init(mean))[0])
    for got, _ in memory.run(3, run):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def test_it_sends_so_many_values_and_no_places():
    x = torch.ones(100_000)
    for chunk, values in ((0, 10_000), (64, 1562 * 7 + 4)):
        packet, _ = dct(0.1, chunk).compress(x, dct().init(x))
        assert packet.tensors["coefficients"].numel() == values
        assert packet.nbytes <= 4 * values + 150


def test_what_is_smooth_is_sent_nearly_whole_and_white_noise_no_better_than_a_fixed_part():
    t = torch.linspace(0, 1, 6400, dtype=torch.float64)
    smooth, white = torch.sin(7 * t) + t**2, draw(6400)

    def kept(x, keep, chunk):
        compressor = dct(keep, chunk)
        back = compressor.decompress(compressor.compress(x, compressor.init(x))[0])
        return 1 - float((x - back).square().sum() / x.square().sum())

    for chunk in (0, 64):
        assert kept(smooth, 0.05, chunk) > 0.9999
        assert kept(white, 0.7, chunk) == pytest.approx(0.7, abs=0.03)


def test_rounds_without_rotation_never_leave_the_low_frequencies():
    change = torch.zeros(640, dtype=torch.float64)
    compressor = dct(0.25, 64)
    state = compressor.init(change)
    for seed in range(20):
        packet, state = compressor.compress(draw(640, seed), state)
        change += compressor.decompress(packet)
    assert transform(change.reshape(10, 64), 64)[:, 16:].abs().max() < 1e-12
    assert transform(change.reshape(10, 64), 64)[:, :16].abs().min() > 0


@pytest.mark.parametrize("chunk", [0, 64])
def test_with_rotation_and_feedback_every_frequency_is_sent_in_time(chunk):
    x = draw(1000)
    compressor = error_feedback(dct(0.3, chunk, rotate=True))
    state, sent, residuals = compressor.init(x), torch.zeros_like(x), []
    for _ in range(80):
        packet, state = compressor.compress(x, state)
        accumulate(compressor, packet, sent)
        residuals.append(float(state.residual.norm()))
    torch.testing.assert_close(sent + state.residual, 80 * x, rtol=0, atol=1e-9)
    assert max(residuals[40:]) <= 1.1 * max(residuals[:40]), "bounded"


def test_feedback_around_a_fixed_band_is_refused():
    with pytest.raises(ClashError, match="dct never sends what it drops"):
        error_feedback(dct())
    error_feedback(dct(1.0))


def test_a_coefficient_beyond_float16_is_refused_by_its_name():
    x = torch.full((10_000,), 3000.0, dtype=torch.float16)
    with pytest.raises(NotANumber, match="smaller chunk"):
        dct(0.1, 0).compress(x, dct().init(x))
    dct(0.1, 16).compress(x, dct().init(x))


def test_a_packet_of_another_number_of_coefficients_is_refused():
    packet, _ = dct(0.1).compress(torch.ones(640), dct().init(torch.ones(1)))
    with pytest.raises(PacketError):
        dct().decompress(Packet(packet.tensors, packet.header | {"keep": 8}))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="dct: keep"):
        dct(0)
    with pytest.raises(ConfigError, match="dct: chunk"):
        dct(0.1, -1)
