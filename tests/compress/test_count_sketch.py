"""Count sketch: linear tables, from which what is large in the sum is read."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import kernels
from laconic.compress import count_sketch, error_feedback
from laconic.compress.count_sketch import _cells, estimate, fill, hashes
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.exchange import everyone
from laconic.links import memory
from laconic.packet import Packet

CPU = torch.device("cpu")


def draw(n, seed=0, dtype=torch.float64):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_heavy(n, count, seed):
    """Small noise, and ``count`` entries that stand out."""
    x = draw(n, seed) * 0.05
    places = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]
    x[places] = (10 + draw(count, seed + 1).abs()) * draw(count, seed + 2).sign()
    return x, set(places.tolist())


@given(n=st.integers(1, 2000), rows=st.sampled_from([1, 3, 5, 9]), columns=st.integers(1, 500), seed=st.integers(0, 99))
@settings(deadline=None)
def test_the_table_of_a_sum_is_the_sum_of_the_tables(n, rows, columns, seed):
    a, b = draw(n, seed), draw(n, seed + 1)
    keys = hashes(seed, rows)
    sums = fill(a, keys, columns) * 2 + fill(b, keys, columns)
    torch.testing.assert_close(fill(2 * a + b, keys, columns), sums, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", range(10))
def test_20_heavy_hitters_in_10_000_are_found_exactly(seed):
    x, places = with_heavy(10_000, 20, seed)
    compressor = count_sketch(keep=0.002, rows=5, columns=1000, seed=seed)
    back = compressor.decompress(compressor.compress(x, ())[0])
    assert set(back.nonzero().squeeze(1).tolist()) == places
    assert float((back - x)[sorted(places)].abs().max()) < 1


def test_what_is_large_only_in_the_mean_is_found_after_an_all_reduce():
    """Each worker's own large entries cancel; the entry that all share is among the small ones of each."""
    n, shared = 4000, 1234
    xs = []
    for rank in range(4):
        x = draw(n, rank) * 0.01
        x[100:110] = 50.0 * (-1) ** rank
        x[shared] = 1.0
        xs.append(x.reshape(40, 100))

    def run(link):
        exchange = everyone(count_sketch(keep=1 / n, columns=800))
        combined, _ = exchange.run([xs[link.rank]], exchange.init([xs[link.rank]]), link)
        return combined[0]

    results = memory.run(4, run)
    for got in results:
        assert got.reshape(-1).nonzero().tolist() == [[shared]]
        assert float(got.reshape(-1)[shared]) == pytest.approx(1, abs=0.05)
        assert torch.equal(got, results[0])


def test_an_estimate_is_off_by_about_the_norm_over_the_root_of_the_columns():
    n, columns = 20_000, 400
    x = draw(n)
    keys = hashes(0, 5)
    errors = estimate(fill(x, keys, columns), keys, n) - x
    spread = float(errors.square().mean().sqrt())
    assert spread < float(x.norm()) / math.sqrt(columns)
    assert abs(float(errors.mean())) < 5 * spread / math.sqrt(columns), "it leans to neither side"
    one = hashes(1, 1)
    alone = estimate(fill(x, one, columns), one, n) - x
    assert float(alone.square().mean().sqrt()) == pytest.approx(float(x.norm()) / math.sqrt(columns), rel=0.1)


def test_cells_and_signs_are_used_evenly_and_pairs_meet_as_often_as_chance_has_it():
    n, columns = 50_000, 100
    meetings, signs = 0, 0
    for key in hashes(7, 5):
        cells, minus = _cells(0, n, key, columns, CPU)
        assert 0 <= int(cells.min()) <= int(cells.max()) < columns
        assert cells.bincount(minlength=columns).min() > 0.5 * n / columns
        assert float(minus.double().mean()) == pytest.approx(0.5, abs=0.02)
    draws = random.Random(0)
    for seed in range(3000):
        (key,) = hashes(seed, 1)
        i = draws.randrange(n - 1)
        cells, minus = _cells(i, 2, key, 10, CPU)
        meetings += int(cells[0] == cells[1])
        signs += int(minus[0] == minus[1])
    assert meetings / 3000 == pytest.approx(0.1, abs=0.03)
    assert signs / 3000 == pytest.approx(0.5, abs=0.05)


@given(n=st.sampled_from([1, 5, 1000, 70_000]), rows=st.sampled_from([1, 3, 5, 7]), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_loops_write_and_read_the_bits_of_the_plain_form(n, rows, seed):
    x = draw(n, seed, torch.float32)
    keys, columns = hashes(seed, rows), max(1, n // 30)
    table = fill(x, keys, columns)
    estimates = estimate(table, keys, n)
    with kernels.plain():
        assert torch.equal(fill(x, keys, columns), table)
        assert torch.equal(estimate(table, keys, n), estimates)


def test_the_table_has_the_size_that_was_asked_for():
    x = torch.ones(100_000)
    for compressor, values in (
        (count_sketch(), 10_000),
        (count_sketch(columns=77), 385),
        (count_sketch(size=1.0), 10**5),
    ):
        assert compressor.compress(x, ())[0].tensors["table"].numel() == values


def test_feedback_from_outside_is_refused_with_the_reason():
    with pytest.raises(ClashError, match="read only after everyone's tables are added"):
        error_feedback(count_sketch())


def test_a_table_of_no_whole_rows_or_of_an_even_number_is_refused():
    packet, _ = count_sketch(columns=10).compress(torch.ones(100), ())
    for rows in (4, 3, 0, 33):
        with pytest.raises(PacketError):
            count_sketch().decompress(Packet(packet.tensors, packet.header | {"rows": rows}))


@pytest.mark.parametrize("settings_", [{"rows": 4}, {"rows": 33}, {"columns": -1}, {"keep": 0}, {"size": 0}])
def test_settings_out_of_range_are_refused(settings_):
    with pytest.raises(ConfigError, match="count_sketch"):
        count_sketch(**settings_)
