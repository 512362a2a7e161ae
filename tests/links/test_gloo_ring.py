"""gloo's ring on a simulated link: the same sums, and what its announcements and its segments cost."""

import dataclasses

import pytest
import torch

from laconic.links import simulated
from laconic.links.network import parse


def network(workers, text, gloo=True):
    return dataclasses.replace(parse(text, workers), gloo=gloo)


def seconds(workers, text, numel, gloo=True):
    """Virtual seconds of a sum of float32."""

    def work(link):
        link.all_reduce(torch.empty(numel, device="meta"))
        return link.now()

    return max(simulated.run(network(workers, text, gloo), work))


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("numel", [0, 1, 3, 1000, 600_001])
def test_it_sums_and_leaves_the_same_bits_everywhere(workers, numel):
    def given(rank):
        return torch.randn(numel, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)

    def work(link):
        tensor = given(link.rank)
        assert link.all_reduce(tensor) is tensor
        link.all_reduce(torch.ones(3))  # nothing of the first is taken for the second
        return tensor, link.meter.bytes_out

    ended = simulated.run(network(workers, "1gbit,1ms"), work)
    wanted = sum(given(rank) for rank in range(workers))
    for tensor, out in ended:
        assert torch.equal(tensor, ended[0][0])
        assert torch.allclose(tensor, wanted)
        # besides the tensors: a word and a header a segment
        assert out <= 2 * (workers - 1) / workers * 8 * numel + 200 * 2 * (workers - 1) * (4 + numel // 50_000) + 100


@pytest.mark.parametrize("workers", [2, 3, 4, 8])
def test_a_small_sum_waits_twice_as_often_as_a_plain_ring(workers):
    hops = 2 * (workers - 1)
    assert seconds(workers, "10gbit,10ms", 4000) == pytest.approx(2 * hops * 0.010, rel=0.02)
    assert seconds(workers, "10gbit,10ms", 4000, gloo=False) == pytest.approx(hops * 0.010, rel=0.02)


@pytest.mark.parametrize("workers", [2, 4])
def test_in_a_large_sum_the_announcements_are_hidden_behind_the_other_segment(workers):
    numel = 2_000_000
    wire = 2 * (workers - 1) / workers * 4 * numel / 2.5e6
    assert seconds(workers, "20mbit,10ms", numel) == pytest.approx(wire, rel=0.03)


def test_a_dtype_that_gloo_cannot_sum_goes_by_the_plain_ring():
    def work(link):
        link.all_reduce(torch.ones(10_000, dtype=torch.bfloat16))
        return link.now()

    assert simulated.run(network(3, "100mbit,10ms"), work) == simulated.run(network(3, "100mbit,10ms", False), work)
