"""What overlap hides: virtual seconds on a simulated network, to the microsecond."""

import pytest
import torch

from laconic.compress import e3m0
from laconic.exchange import everyone
from laconic.links import simulated
from laconic.links.network import parse
from laconic.sync import co2, diloco, local_steps, noloco, slowmo, streaming

STEPS = 25  # of a second each, five rounds of five in them


def seconds(method, latency, workers=2, link="1gbit"):
    """Virtual seconds of the steps on each worker, without the first agreement, and how long it waited."""

    def work(link):
        tensors = {f"blocks.{i}.w": torch.zeros(4) for i in range(3)}
        state, params = method.init(tensors), list(tensors.values())
        _, state = method.after_step(params, state, link)  # all find that they go together
        start, waited = link.now(), link.meter.seconds_waiting
        for _ in range(STEPS - 1):
            link.compute(1.0)
            updates, state = method.after_step(params, state, link)
            params = [updates.get(i, p) for i, p in enumerate(params)]
        return link.now() - start, link.meter.seconds_waiting - waited

    return simulated.run(parse(f"{link},{round(latency * 1000)}ms", workers), work)


def rounds(every):
    return STEPS // every


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("overlap", [1, 3])
@pytest.mark.parametrize("build", [diloco, local_steps, slowmo, streaming, noloco])
def test_a_transfer_within_the_overlap_costs_nothing_and_a_longer_one_what_is_over(build, overlap, share):
    method = build(every=5, fragments=1, overlap=overlap)
    latency = overlap * share
    landed = (STEPS - overlap) // 5
    for took, waited in seconds(method, latency):
        late = max(0.0, latency - overlap) * landed
        assert took == pytest.approx(STEPS - 1 + late, abs=0.01)
        assert waited == pytest.approx(late, abs=0.01)


def test_without_overlap_every_round_waits_for_the_whole_transfer():
    for took, waited in seconds(diloco(every=5), 0.5):
        assert took - waited == pytest.approx(STEPS - 1, abs=0.01)
        assert waited == pytest.approx(0.5 * rounds(5), abs=0.01)


@pytest.mark.parametrize("latency", [2.0, 4.9, 7.0])
def test_co2_hides_a_transfer_behind_a_whole_round(latency):
    for took, waited in seconds(co2(every=5), latency):
        late = max(0.0, latency - 5) * (rounds(5) - 1)  # the last one's answer is not waited for here
        assert took == pytest.approx(STEPS - 1 + late, abs=0.01)
        assert waited == pytest.approx(late, abs=0.01)


def test_several_fragments_under_way_hide_a_transfer_longer_than_the_time_between_them():
    """Three fragments, two steps apart: with an overlap of 5 three are under way, one after the other on the lane."""
    short = seconds(streaming(every=6, fragments=3, overlap=1), 1.8)
    long = seconds(streaming(every=6, fragments=3, overlap=5), 1.8)
    assert all(waited > 5 for _, waited in short)
    assert all(waited < 0.01 for _, waited in long)


def test_a_noloco_round_takes_as_long_among_32_workers_as_among_4_and_an_all_reduce_does_not():
    def waiting(method, workers):
        return max(waited for _, waited in seconds(method, 0.01, workers, "100kbit"))

    few, many = (waiting(noloco(every=5), workers) for workers in (4, 32))
    assert many == pytest.approx(few, rel=0.05)
    few, many = (waiting(diloco(every=5), workers) for workers in (4, 32))
    assert many > 4 * few


@pytest.mark.parametrize("overlap", [0, 2])
def test_the_most_that_leaves_at_once_is_one_fragment_in_4_bits(overlap):
    """Peak bytes an event: the largest fragment's, (0.5 + 2/128) a value, once to each of the others."""
    sizes = [4096, 12_800, 8192]
    method = streaming(everyone(e3m0()), every=6, fragments=3, overlap=overlap)

    def work(link):
        tensors = {f"blocks.{i}.w": torch.ones(size // 64, 64) for i, size in enumerate(sizes)}
        state, params = method.init(tensors), list(tensors.values())
        out = []
        for _ in range(18 + overlap):  # on a simulated link a transfer is reckoned when its answer is asked for
            before = link.meter.bytes_out
            link.compute(1.0)
            _, state = method.after_step(params, state, link)
            link.compute(0.5)
            out.append(link.meter.bytes_out - before)
        return out

    for out in simulated.run(parse("1gbit,1ms", 3), work):
        events = [nbytes for nbytes in out[1:] if nbytes]
        assert len(events) == 9
        codes = [2 * size * (0.5 + 2 / 128) for size in sizes]
        for nbytes, code in zip(events, codes * 3, strict=True):
            assert 0 <= nbytes - code < 300
