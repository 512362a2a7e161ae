"""The linear autoencoder: learns the directions of activations, row by row, and is linear."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import autoencoder
from laconic.errors import ConfigError, NotANumber
from laconic.packet import from_bytes, to_bytes


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def activations(step, directions, rows=200, noise=0.0):
    """Rows that lie in the span of a few directions, other ones each step."""
    x = draw(rows, directions.shape[0], seed=100 + step) @ directions
    return x + noise * draw(*x.shape, seed=1000 + step)


def trained(compressor, batches):
    """The state after these, and the relative error of each."""
    state, errors = compressor.init(batches[0]), []
    for x in batches:
        packet, state = compressor.compress(x, state)
        errors.append(float((x - compressor.decompress(packet)).square().sum() / x.square().sum()))
    return state, errors


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-20), (torch.float32, 1e-9), (torch.bfloat16, 1e-3)])
def test_activations_of_few_dimensions_are_learned_exactly(dtype, bound):
    directions = draw(5, 64)
    _, errors = trained(autoencoder(8), [activations(i, directions).to(dtype) for i in range(30)])
    assert errors[0] > 0.5, "random directions know nothing yet"
    assert max(errors[20:]) < bound


def test_noisy_activations_come_near_the_best_that_so_many_directions_can_do():
    directions = draw(6, 48) * torch.linspace(1, 3, 6, dtype=torch.float64)[:, None]
    batches = [activations(i, directions, noise=0.1) for i in range(60)]
    _, errors = trained(autoencoder(6), batches)
    together = torch.cat(batches)
    best = torch.linalg.eigvalsh(together.T @ together).flip(0)
    assert sum(errors[40:]) / 20 < 1.05 * float(best[6:].sum() / best.sum())


def test_when_the_directions_change_they_are_learned_again():
    first, second = draw(4, 32, seed=1), draw(4, 32, seed=2)
    batches = [activations(i, first) for i in range(20)] + [activations(i, second) for i in range(100)]
    _, errors = trained(autoencoder(4), batches)
    assert errors[19] < 1e-6
    assert errors[20] > 0.3
    assert errors[119] < 0.01


@given(rows=st.integers(40, 80), width=st.integers(8, 30), code=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_with_one_decoder_the_sum_of_what_is_received_is_what_is_received_of_the_sum(rows, width, code, seed):
    compressor = autoencoder(code)
    state = compressor.init(draw(rows, width))
    xs = [draw(rows, width, seed=seed + i) for i in range(3)]
    each = [compressor.decompress(compressor.compress(x, state)[0]) for x in xs]
    whole = compressor.decompress(compressor.compress(sum(xs), state)[0])
    torch.testing.assert_close(sum(each), whole, rtol=0, atol=1e-12)


def test_a_code_as_wide_as_the_rows_changes_nothing():
    x = draw(100, 12)
    for code in (12, 64):
        compressor = autoencoder(code)
        packet, _ = compressor.compress(x, compressor.init(x))
        assert torch.equal(compressor.decompress(packet), x)


def test_a_decoder_that_is_part_of_the_identity_passes_those_columns_through():
    compressor = autoencoder(3)
    state = compressor.init(draw(50, 10))._replace(decoder=torch.eye(10, dtype=torch.float64)[:, :3])
    x = draw(50, 10)
    back = compressor.decompress(compressor.compress(x, state)[0])
    assert torch.equal(back[:, :3], x[:, :3])
    assert not back[:, 3:].any()


def test_a_row_is_coded_alike_whatever_the_other_rows_are():
    compressor = autoencoder(4)
    x, other = draw(100, 32), draw(100, 32, seed=1)
    state = compressor.init(x)
    mixed = torch.cat((x[:50], other[50:]))
    one, two = (compressor.decompress(compressor.compress(t, state)[0]) for t in (x, mixed))
    torch.testing.assert_close(one[:50], two[:50], rtol=0, atol=1e-14)


def test_a_packet_is_read_alone_whichever_came_before():
    compressor = autoencoder(4)
    batches = [activations(i, draw(4, 32)) for i in range(5)]
    state = compressor.init(batches[0])
    for x in batches:
        packet, state = compressor.compress(x, state)
    (alone,) = from_bytes(to_bytes([packet]))
    assert torch.equal(autoencoder(9, seed=5).decompress(alone), compressor.decompress(packet))


def test_it_sends_a_code_for_each_row_and_the_decoder():
    x = draw(8, 128, 64, dtype=torch.float32)
    packet, _ = autoencoder(8).compress(x, autoencoder(8).init(x))
    assert sum(t.numel() for t in packet.tensors.values()) == 8 * (8 * 128 + 64)
    assert packet.nbytes < 4 * 8 * (8 * 128 + 64) + 200
    few = draw(3, 64)
    assert torch.equal(autoencoder().decompress(autoencoder(8).compress(few, autoencoder(8).init(few))[0]), few)


def test_between_trainings_the_decoder_stays():
    compressor = autoencoder(4, every=3)
    x = draw(60, 32)
    state, decoders = compressor.init(x), []
    for _ in range(7):
        packet, state = compressor.compress(x, state)
        decoders.append(packet.tensors["decoder"].clone())
    changed = [not torch.equal(a, b) for a, b in itertools.pairwise(decoders)]
    assert changed == [True, False, False, True, False, False]


def test_zeros_teach_nothing():
    compressor = autoencoder(4)
    state = compressor.init(draw(60, 32))
    _, after = compressor.compress(torch.zeros(60, 32, dtype=torch.float64), state)
    torch.testing.assert_close(after.decoder @ after.decoder.T, state.decoder @ state.decoder.T, rtol=0, atol=1e-12)


def test_what_does_not_fit_is_refused():
    for wrong in ({"code": 0}, {"every": 0}, {"decay": 0}):
        with pytest.raises(ConfigError, match="autoencoder"):
            autoencoder(**wrong)
    x = torch.full((600, 256), 65000.0, dtype=torch.float16)
    state = autoencoder(1).init(x)._replace(decoder=torch.full((256, 1), 1 / 16))
    with pytest.raises(NotANumber, match="code is beyond"):
        autoencoder(1).compress(x, state)
