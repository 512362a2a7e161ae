"""Mixing with neighbours: the mean stays, deviations shrink at the graph's rate."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.compress import e3m0, ef21, error_feedback, half, int8, natural, qsgd, topk
from laconic.errors import ClashError
from laconic.exchange import graph, neighbours, push_sum
from laconic.exchange.mixing import contraction, keeping_the_mean, mean_matrix
from laconic.exchange.topology import shape
from laconic.links import memory


def mixed(size, rounds, build, dims=40, scale=1.0):
    """Everyone's tensor before, and after each round."""
    start = scale * torch.randn(size, dims, generator=torch.Generator().manual_seed(size), dtype=torch.float64)

    def work(link):
        talk, x, trail = build(), [start[link.rank]], []
        state = talk.init(x)
        for _ in range(rounds):
            x, state = talk.run(x, state, link)
            trail.append(x[0])
        return trail

    return start, [torch.stack(step) for step in zip(*memory.run(size, work), strict=True)]


@pytest.mark.parametrize("topology", ["ring", "torus", "exponential", "one-peer", "random", "0-1,1-2,2-3,3-4,4-5,0-5"])
def test_a_round_multiplies_by_the_matrix_of_the_round(topology):
    start, trail = mixed(6, 4, lambda: graph(topology=topology))
    made, expected = shape(topology).among(6), start
    for number, after in enumerate(trail):
        expected = mean_matrix(made, keeping_the_mean(), number) @ expected
        torch.testing.assert_close(after, expected)


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(2, 7),
    topology=st.sampled_from(["ring", "exponential", "one-peer", "complete", "random:0.7"]),
    compressor=st.sampled_from([None, half, int8, e3m0, lambda: error_feedback(int8())]),
)
def test_the_mean_stays_whatever_the_graph_and_the_compressor(size, topology, compressor):
    start, trail = mixed(size, 5, lambda: graph(compressor() if compressor else None, topology))
    for after in trail:
        torch.testing.assert_close(after.mean(0), start.mean(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("topology", ["ring", "torus", "exponential", "regular:3"])
def test_deviations_shrink_by_the_second_eigenvalue_a_round(topology):
    start, trail = mixed(16, 80, lambda: graph(topology=topology))
    rho = contraction([mean_matrix(shape(topology).among(16), keeping_the_mean(), 0)])
    apart = [float((after - start.mean(0)).norm()) for after in trail]
    first = 19 if topology == "ring" else 9
    assert (apart[first + 20] / apart[first]) ** (1 / 20) == pytest.approx(rho, rel=0.02)
    assert apart[0] <= float((start - start.mean(0)).norm()) * rho * (1 + 1e-9)


def test_one_peer_of_a_power_of_two_averages_exactly_in_its_logarithm():
    start, trail = mixed(8, 3, lambda: graph(topology="one-peer"))
    torch.testing.assert_close(trail[2], start.mean(0).expand(8, -1))
    assert float((trail[1] - start.mean(0)).abs().max()) > 0.1


def test_where_all_hold_the_same_nothing_moves_by_a_bit():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))

    def work(link):
        for build in (graph, lambda: graph(topology="exponential"), lambda: graph(half()), lambda: graph(int8())):
            talk = build()
            got, _ = talk.run([x], talk.init([x]), link)
            assert torch.equal(got[0], x)
        return True

    assert all(memory.run(5, work))


@pytest.mark.parametrize(("compressor", "floor"), [(half, 2e-3), (int8, 2e-2)])
def test_compressed_deviations_shrink_down_to_what_the_compressor_can_tell_apart(compressor, floor):
    start, trail = mixed(8, 60, lambda: graph(compressor(), "exponential"))
    apart = float((trail[-1] - start.mean(0)).abs().max())
    assert apart < floor * float(start.abs().max())


@pytest.mark.parametrize("exchange", [graph, neighbours, push_sum])
def test_random_rounding_as_large_as_the_weights_is_refused_and_finer_is_not(exchange):
    x = [torch.zeros(64, 32)]
    with pytest.raises(ClashError, match="would carry the weights away; use int8 or half"):
        exchange(qsgd(levels=1)).init(x)
    exchange(natural()).init(x)
    exchange(int8()).init(x)


def test_a_round_sends_one_message_of_the_weights_to_each_neighbour_and_no_more_among_more_workers():
    def work(link):
        talk = graph()
        x = [torch.zeros(10_000)]
        talk.run(x, talk.init(x), link)
        return link.meter.messages_out, link.meter.bytes_out

    for size in (4, 16):
        for messages, out in memory.run(size, work):
            assert messages == 2
            assert 0 <= out - 2 * 40_000 < 2 * 200


@pytest.mark.parametrize(
    ("compressor", "says"),
    [
        (topk, "sends whole weights, and topk.* would leave most of them out, which pulls neighbours towards zero"),
        (lambda: ef21(topk()), "sends changes for everyone to add up; neighbours hold different ones"),
    ],
)
def test_compressors_that_leave_parts_out_are_refused(compressor, says):
    with pytest.raises(ClashError, match=says):
        graph(compressor())
