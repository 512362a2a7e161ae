"""Chains: the bytes of each part, the error of all, and orders that make no sense."""

import pytest
import torch

from laconic.compress import (
    chain,
    e3m0,
    error_feedback,
    half,
    identity,
    int8,
    momentum_correction,
    random_k,
    threshold,
    topk,
)
from laconic.errors import ClashError, PacketError
from laconic.packet import Packet


def draw(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def through(compressor, x):
    packet, _ = compressor.compress(x, compressor.init(x))
    return packet, compressor.decompress(packet)


def test_half_the_entries_then_int8_cost_2_bits_of_place_and_1_byte_of_value_each():
    compressor = chain(topk(0.5), int8(250))
    sizes = [through(compressor, draw(n))[0].nbytes for n in (20_000, 40_000)]
    assert sizes[1] - sizes[0] == pytest.approx(10_000 * 1.25 + 40 * 4, abs=8)


def test_topk_then_half_keeps_topks_places_and_rounds_its_values():
    x = draw(1000)
    _, exact = through(topk(0.1), x)
    _, rounded = through(chain(topk(0.1), half()), x)
    assert torch.equal(rounded, exact.bfloat16().float())


def test_a_chain_of_three_is_the_chain_of_a_chain():
    x = draw(400)
    three, nested = chain(topk(0.5), topk(0.5), half()), chain(chain(topk(0.5), topk(0.5)), half())
    assert torch.equal(through(three, x)[1], through(nested, x)[1])
    assert int((through(three, x)[1] != 0).sum()) == 100


def test_identity_in_front_changes_nothing():
    x = draw(500)
    for inner in (topk(0.01), random_k(0.01), e3m0()):
        assert torch.equal(through(chain(identity(), inner), x)[1], through(inner, x)[1])


def test_a_chain_of_one_is_that_one_and_of_none_is_topk_then_int8():
    assert chain(half()).name == "half"
    assert chain().name == "chain(topk, int8)"


@pytest.mark.parametrize(
    ("parts", "first"),
    [
        ((int8(), topk()), "int8"),
        ((e3m0(), half()), "e3m0"),
        ((half(), int8()), "half"),
        ((topk(), int8(), half()), "int8"),
    ],
)
def test_a_part_that_leaves_nothing_to_refine_is_refused_with_the_order_that_would_work(parts, first):
    with pytest.raises(ClashError, match=rf"chain: .*{first}.* leaves nothing"):
        chain(*parts)


def test_what_a_chain_can_do_follows_from_its_parts():
    assert chain(random_k(), half()).summable
    assert not chain(topk(), half()).summable
    assert not chain(random_k(), int8()).summable
    assert chain(identity(), random_k()).sparse
    assert not chain(identity(), int8()).sparse
    assert chain(momentum_correction(topk()), int8()).momentum
    assert chain(identity(), momentum_correction(topk())).momentum
    assert not chain(momentum_correction(topk(), momentum=0.0), int8()).momentum


@pytest.mark.parametrize("wrap", [error_feedback, momentum_correction])
def test_a_chain_member_with_memory_keeps_it_between_steps(wrap):
    compressor = chain(identity(), wrap(topk(0.25)))
    x = draw(16)
    state, total = compressor.init(x), torch.zeros(16)
    for _ in range(60):
        packet, state = compressor.compress(x, state)
        total += compressor.decompress(packet)
    assert bool((total != 0).all())  # without memory the same four entries would be sent each time


@pytest.mark.parametrize("shape", [["a"], [1.5], [None], [[1]], [], [2, 3], [-1], [1 << 40], 7, None, [True]])
def test_a_refined_shape_that_is_no_single_size_within_the_tensor_is_refused(shape):
    compressor = chain(topk(0.5), half())
    packet, _ = through(compressor, draw(10))
    header = packet.header | {"values/": packet.header["values/"] | {"shape": shape}}
    with pytest.raises(PacketError):
        compressor.decompress(Packet(packet.tensors, header))


def test_feedback_after_a_sparse_member_is_refused_and_around_the_chain_is_not():
    for outer in (topk(0.1), threshold(0.1)):
        with pytest.raises(ClashError, match="put the whole chain inside the feedback"):
            chain(outer, error_feedback(int8()))
        error_feedback(chain(outer, int8()))
