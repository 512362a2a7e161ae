"""Everyone with everyone: the mean, its weighted ladder, and what a ring refuses."""

import itertools

import pytest
import torch

from laconic.aggregate import mean, weighted_mean
from laconic.compress import e3m0, error_feedback, half, identity, int8, random_k, topk
from laconic.errors import ClashError, PacketError
from laconic.exchange import everyone, ring
from laconic.links import memory
from laconic.packet import Packet
from tests.tiny import equal


def draw(rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in [(9, 4), (5,), ()]]


def once(workers, build, inputs=draw):
    def work(link):
        talk = build(link)
        given = inputs(link.rank)
        return talk.run(given, talk.init(given), link)[0]

    return memory.run(workers, work)


def close(a, b, tolerance=1e-14):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "compressor", [identity, lambda: topk(1.0), lambda: random_k(1.0), lambda: error_feedback(topk(1.0))]
)
def test_uncompressed_and_at_density_1_it_is_the_mean(workers, compressor):
    exact = [sum(parts) / workers for parts in zip(*(draw(r) for r in range(workers)), strict=True)]
    for got in once(workers, lambda link: everyone(compressor())):
        close(got, exact)


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("compressor", [identity, lambda: topk(0.5), half], ids=["identity", "topk", "half"])
def test_equal_weights_are_the_plain_mean(compressor, weight):
    plain = once(3, lambda link: everyone(compressor()))
    weighted = once(3, lambda link: everyone(compressor(), weighted_mean(weight)))
    close(weighted[0], plain[0], 1e-2 if compressor is half else 1e-12)


@pytest.mark.parametrize("compressor", [identity, lambda: topk(1.0)], ids=["all-reduce", "all-gather"])
def test_weights_of_the_batch_sizes_give_the_mean_over_samples(compressor):
    sizes = [1, 10, 100]
    exact = [
        sum(n * t for n, t in zip(sizes, ts, strict=True)) / 111
        for ts in zip(*(draw(r) for r in range(3)), strict=True)
    ]
    got = once(3, lambda link: everyone(compressor(), weighted_mean(sizes[link.rank])))
    assert all(equal(worker, got[0]) for worker in got)
    close(got[0], exact)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_large_weights_neither_overflow_nor_round_in_half_precision(kind):
    weights = [5000, 70_001]
    inputs = [[torch.full((4, 4), 100.0)], [torch.full((4, 4), 200.0)]]
    got = once(2, lambda link: everyone(half(kind), weighted_mean(weights[link.rank])), lambda rank: inputs[rank])
    exact = (5000 * 100 + 70_001 * 200) / 75_001
    torch.testing.assert_close(got[0][0], torch.full((4, 4), exact), rtol=2**-7, atol=0)


def test_the_sum_of_many_large_half_precision_values_does_not_overflow():
    got = once(4, lambda link: everyone(half("fp16")), lambda rank: [torch.full((3, 3), 6e4)])
    torch.testing.assert_close(got[0][0], torch.full((3, 3), 6e4), rtol=1e-3, atol=0)


@pytest.mark.parametrize("compressor", [identity, lambda: topk(0.4), int8, e3m0])
def test_the_mean_does_not_depend_on_which_worker_holds_what(compressor):
    orders = list(itertools.permutations(range(3)))
    results = [once(3, lambda link: everyone(compressor()), lambda rank, o=order: draw(o[rank]))[0] for order in orders]
    for other in results[1:]:
        close(other, results[0])


@pytest.mark.parametrize("compressor", [e3m0, int8, lambda: topk(0.3)], ids=["e3m0", "int8", "topk"])
def test_each_worker_counts_its_own_tensor_as_the_others_see_it(compressor):
    """The mean of decompressed tensors, mine too; with mine undecompressed the workers would drift apart."""
    given = [draw(r)[:1] for r in range(3)]
    decoded = [compressor().decompress(compressor().compress(g[0], compressor().init(g[0]))[0]) for g in given]
    for got in once(3, lambda link: everyone(compressor()), lambda rank: given[rank]):
        torch.testing.assert_close(got[0], sum(decoded) / 3, rtol=1e-14, atol=1e-14)


def test_vectors_and_scalars_go_uncompressed_beside_sparse_matrices_unless_told_otherwise():
    got = once(2, lambda link: everyone(topk(0.01)))
    exact = [(a + b) / 2 for a, b in zip(draw(0), draw(1), strict=True)]
    close(got[0][1:], exact[1:])
    assert not torch.equal(got[0][0], exact[0])
    small = once(2, lambda link: everyone(topk(0.01), small=topk(0.01)))
    assert int((small[0][1] != 0).sum()) <= 2


@pytest.mark.parametrize("compressor", [topk, int8, e3m0, lambda: error_feedback(topk())])
def test_a_ring_refuses_packets_that_cannot_be_added_and_says_what_works(compressor):
    with pytest.raises(ClashError, match=r"ring: needs summable packets, and .*'s are not; use everyone"):
        ring(compressor())


@pytest.mark.parametrize("compressor", [identity, half, lambda: random_k(0.5)], ids=["identity", "half", "random_k"])
def test_a_ring_of_what_can_be_added_is_everyone(compressor):
    one = once(3, lambda link: ring(compressor()))
    other = once(3, lambda link: everyone(compressor(), small=compressor()))
    assert equal(one[1], other[1])


@pytest.mark.parametrize(
    "message",
    [
        [],
        [Packet({}, {})],
        [Packet({"values": torch.ones(4), "places": torch.arange(4, dtype=torch.int32)}, {"shape": [5, 2]})],
        [Packet({"values": torch.ones(4), "places": torch.arange(4, dtype=torch.int32)}, {"shape": [1 << 40]})],
        [Packet({"values": torch.ones(1), "places": torch.tensor([99], dtype=torch.int32)}, {"shape": [2, 5]})],
        [Packet({}, {"weight": 0})] * 2,
        [Packet({}, {"weight": True}), Packet({}, {})],
        [Packet({}, {"weight": "heavy"}), Packet({}, {})],
        [Packet({}, {})] * 3,
    ],
)
def test_a_message_that_does_not_fit_my_tensors_is_refused(message):
    given = [torch.randn(2, 5)]

    def work(link):
        if link.rank == 1:
            link.recv(0)
            link._queues[1][0].put(message)  # as it is: not every one of these could be encoded
            return True
        talk = everyone(topk(0.5))
        with pytest.raises(PacketError):
            talk.run(given, talk.init(given), link)
        return True

    assert memory.run(2, work) == [True, True]


def test_a_rule_that_is_not_linear_is_never_computed_by_an_all_reduce():
    largest = mean()._replace(
        combine=lambda tensors, weights: torch.stack(list(tensors)).amax(0), linear=False, name="max"
    )
    exact = [torch.stack(ts).amax(0) for ts in zip(*(draw(r) for r in range(3)), strict=True)]
    for got in once(3, lambda link: everyone(identity(), largest)):
        assert equal(got, exact)
