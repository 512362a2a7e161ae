"""All-reduce by a plan: the mean, the same bits everywhere, and the plan's bytes; sites where links are uneven."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.aggregate import weighted_mean
from laconic.compress import half, random_k, topk
from laconic.errors import ClashError, ConfigError, PacketError, PeerLost
from laconic.exchange import everyone, planned
from laconic.exchange.planned import WORTH, carried, sum_in_one_pass
from laconic.kernels import plain, sums
from laconic.links import memory, simulated
from laconic.links.network import Connection, Network, parse
from laconic.packet import Packet, message_nbytes
from laconic.plan import groups, rounds
from laconic.plan.choosing import NAMES, options, plan_of
from laconic.plan.collectives import Rates
from laconic.plan.groups import Group, nested, of_groups
from laconic.plan.turns import turns
from tests.tiny import close

PLANS = [name for name in NAMES if ":" not in name] + ["hcps:2x2", "rings:2x2"]
FREE = Rates(0.0, 8e-8)


def two_sites(sizes=(2, 2), inside=12.5e6, between=1.25e6, latency=0.0):
    """Workers with fast links in their site, and slow ones to other sites."""
    site = [number for number, size in enumerate(sizes) for _ in range(size)]
    pairs = [(i, j) for i in range(len(site)) for j in range(len(site)) if i != j]
    rates = [inside if site[i] == site[j] else between for i, j in pairs]
    links = tuple((i, j, Connection(rate, rate, latency)) for (i, j), rate in zip(pairs, rates, strict=True))
    return Network((Connection(inside, inside),) * len(site), links)


def draw(rank, numel=1000, dtype=torch.float64):
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).to(dtype)


def reduced(plan, numel, dtype=torch.float64):
    """What each worker has, and its meter's bytes and messages."""

    def work(link):
        found = carried(plan, draw(link.rank, numel, dtype), link)
        meter = link.meter
        return found, meter.bytes_out, meter.messages_out, meter.bytes_in, meter.messages_in

    return memory.run(plan.workers, work)


def simulated_seconds(plan, network, nbytes):
    """Virtual seconds until the last worker has the sum."""

    def work(link):
        carried(plan, torch.empty(int(nbytes) // 4, device="meta"), link)
        return link.now()

    return max(simulated.run(network, work))


# -- what comes out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", PLANS)
def test_by_every_plan_it_is_the_mean_and_the_same_bits_everywhere(text):
    def work(link):
        talk = planned(plan=text, cluster="gcp12")
        tensors = [draw(link.rank, 40).reshape(8, 5), draw(link.rank, 7), draw(link.rank, 0)]
        return talk.run(tensors, talk.init(tensors), link)[0]

    found = memory.run(4, work)
    mean = sum(draw(rank, 40) for rank in range(4)) / 4
    close([found[0][0]], [mean.reshape(8, 5)])
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


@settings(max_examples=30)
@given(workers=st.integers(1, 7), numel=st.integers(0, 60), text=st.sampled_from([n for n in NAMES if ":" not in n]))
def test_any_number_of_elements_and_workers_is_summed(workers, numel, text):
    plan = plan_of(text, workers, 8.0 * numel)
    whole = sum((draw(rank, numel) for rank in range(workers)), torch.zeros(numel, dtype=torch.float64))
    for found, *_ in reduced(plan, numel):
        close([found], [whole])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
@pytest.mark.parametrize("text", ["cps", "doubling", "ring", "star"])
def test_all_dtypes_end_equal(dtype, text):
    found = reduced(plan_of(text, 5, 400.0), 100, dtype)
    assert all(torch.equal(other[0], found[0][0]) and other[0].dtype == dtype for other in found)


def test_sums_of_sixteen_bits_are_rounded_once_a_round():
    """1 + 5 times 2^-8 in bfloat16: added one by one each is lost."""
    parts = [torch.tensor([1.0], dtype=torch.bfloat16)] + [torch.tensor([2.0**-8], dtype=torch.bfloat16)] * 4
    one_by_one = parts[0].clone()
    for part in parts[1:]:
        one_by_one += part
    sum_in_one_pass(parts[0], parts[1:])
    assert one_by_one.item() == 1.0
    assert parts[0].item() == 1.015625


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(count=st.integers(1, 20), numel=st.integers(0, 5_000))
def test_a_sum_in_one_pass_is_the_sum_in_order_to_the_bit(dtype, count, numel):
    mine, *others = (draw(rank, numel, dtype) for rank in range(count))
    expected = mine.clone()
    for other in others:
        expected = expected + other
    kept = [other.clone() for other in others]
    with plain():
        in_torch = mine.clone()
        sum_in_one_pass(in_torch, others)
    if dtype == torch.float32:
        compiled = mine.clone()
        sums.add_all(compiled, others)
        assert torch.equal(compiled, expected)
    sum_in_one_pass(mine, others)
    assert torch.equal(mine, expected)
    assert torch.equal(in_torch, expected)
    assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))


def test_long_sums_are_those_of_short_ones():
    mine, *others = (draw(rank, WORTH + 1, torch.float32) for rank in range(5))
    expected = mine + others[0] + others[1] + others[2] + others[3]
    sum_in_one_pass(mine, others)
    assert torch.equal(mine, expected)


def test_weights_are_heeded_and_compressed_packets_added():
    def work(link):
        talk = planned(half(), "hcps:2x2", combine=weighted_mean(link.rank + 1))
        x = [torch.full((4, 4), float(link.rank))]
        return talk.run(x, talk.init(x), link)[0][0]

    for found in memory.run(4, work):
        torch.testing.assert_close(found, torch.full((4, 4), (0 + 2 + 6 + 12) / 10), rtol=1e-3, atol=0)


@pytest.mark.parametrize("text", ["ring", "rhd", "gentree"])
def test_sparse_packets_with_shared_places_are_what_everyone_makes_of_them(text):
    def work(build):
        def on(link):
            talk = build()
            x = [draw(link.rank, 400).reshape(20, 20)]
            return talk.run(x, talk.init(x), link)[0]

        return on

    ours = memory.run(4, work(lambda: planned(random_k(0.1), text)))
    theirs = memory.run(4, work(lambda: everyone(random_k(0.1))))
    close(ours[0], theirs[0])


# -- what crosses --------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(workers=st.integers(2, 8), scale=st.integers(1, 4), text=st.sampled_from([n for n in NAMES if ":" not in n]))
def test_its_bytes_and_messages_are_the_plans(workers, scale, text):
    plan = plan_of(text, workers, 1e5)
    numel = plan.blocks * scale
    found = reduced(plan, numel)
    sent, heard = plan.shares()
    assert [messages for _, _, messages, _, _ in found] == plan.messages()
    for rank, (_, out, _, into, _) in enumerate(found):
        around = sum(
            _around(size * scale) for turn in filter(None, turns(plan)[rank]) for _, size in _sizes(turn.sends)
        )
        assert out - around == pytest.approx(8 * numel * sent[rank])
        around = sum(
            _around(size * scale) for turn in filter(None, turns(plan)[rank]) for _, size in _sizes(turn.takes)
        )
        assert into - around == pytest.approx(8 * numel * heard[rank])
    assert sum(out for _, out, *_ in found) == sum(into for *_, into, _ in found)


def _sizes(messages):
    return [(peer, sum(stop - start for start, stop in spans)) for peer, spans in messages]


def _around(numel):
    """The bytes of a message's frame and header."""
    return message_nbytes([Packet({"x": torch.empty(numel, dtype=torch.float64)})]) - 8 * numel


@given(workers=st.integers(2, 6), numel=st.integers(30, 60))
def test_a_rings_parts_differ_by_an_element_at_most_and_their_sum_is_the_whole(workers, numel):
    found = reduced(groups.ring(workers), numel)
    assert all(messages == 2 * (workers - 1) for _, _, messages, _, _ in found)
    edges = [numel * block // workers for block in range(workers + 1)]
    sizes = [stop - start for start, stop in pairwise(edges)]
    assert max(sizes) - min(sizes) <= 1
    payload = sum(2 * 8 * (numel - size) for size in sizes)
    frames = 2 * (workers - 1) * sum(map(_around, sizes))
    assert sum(out for _, out, *_ in found) == payload + frames
    assert payload == 2 * (workers - 1) * 8 * numel


# -- what it takes -------------------------------------------------------------------------------------------------

BEDS = {
    "4 even": parse("100mbit,1ms", 4),
    "8 even": parse("100mbit,1ms", 8),
    "6 even": parse("100mbit", 6),
    "4, one slow": parse("100mbit", 4, ["1:25mbit"]),
    "two sites": two_sites(),
    "three sites": two_sites((3, 1, 2), latency=0.005),
}


@pytest.mark.parametrize("bed", BEDS)
def test_every_plan_takes_what_is_predicted_on_simulated_links(bed):
    network = BEDS[bed]
    for option in options(network.workers, 4 << 20, network, FREE):
        rounds.check(option.plan)
        ratio = simulated_seconds(option.plan, network, 4 << 20) / option.seconds
        assert ratio == pytest.approx(1, abs=0.11), option.plan.name


@settings(max_examples=20)
@given(
    rates=st.lists(st.sampled_from([10e6 / 8, 25e6 / 8, 50e6 / 8, 100e6 / 8]), min_size=12, max_size=12),
    nbytes=st.sampled_from([4 << 10, 256 << 10, 4 << 20]),
)
def test_among_random_rates_the_choice_is_the_best_or_nearly(rates, nbytes):
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    links = tuple((i, j, Connection(rate, rate, 0.001)) for (i, j), rate in zip(pairs, rates, strict=True))
    network = Network((Connection(12.5e6, 12.5e6),) * 4, links)
    found = options(4, nbytes, network, FREE)
    taken = {option.plan.name: simulated_seconds(option.plan, network, nbytes) for option in found}
    assert taken[found[0].plan.name] <= 1.1 * min(taken.values())


def test_between_two_sites_the_sites_beat_a_ring_by_the_predicted_factor():
    network = two_sites()
    ring, near = (plan_of(text, 4, 4 << 20, network, FREE) for text in ("ring", "sites"))
    by_name = {option.plan.name: option.seconds for option in options(4, 4 << 20, network, FREE)}
    factor = by_name["ring"] / by_name["sites"]
    assert factor == pytest.approx(1.5 / 0.6, rel=0.01), (
        "6/4 of the vector over a slow link, against 1/2 and 1/10 of it"
    )
    measured = simulated_seconds(ring, network, 4 << 20) / simulated_seconds(near, network, 4 << 20)
    assert measured == pytest.approx(factor, rel=0.1)


@pytest.mark.parametrize("network", [two_sites(), None])
def test_auto_takes_what_suits_the_link_that_it_runs_on(network):
    """On two sites few bytes cross between them; alone with the number of workers it takes them for even."""
    numel = 1 << 20

    def work(link):
        talk = planned()
        x = [torch.empty(1024, numel // 1024, device="meta")]
        talk.run(x, talk.init(x), link)
        return link.now(), link.meter.bytes_out

    even = parse("100mbit", 4)
    seconds = max(now for now, _ in simulated.run(network or even, work))
    best = options(4, 4 * numel, network or even)[0]
    assert seconds == pytest.approx(best.seconds, rel=0.15)
    if network is not None:
        assert seconds < 0.5 * simulated_seconds(groups.ring(4), network, 4 * numel)


def test_a_cluster_that_is_named_stands_above_the_link():
    assert "1 MB by" in planned(cluster="aws10").among(10)
    assert "even" in planned().among(4)
    assert "even" not in planned(cluster="aws10").among(4)
    assert planned(plan="ring").among(4) == "ring: 6 rounds, 6 messages at most from one worker"


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: planned(plan="rign"), "did you mean 'ring'"),
        (lambda: planned(plan="ring:4"), "takes nothing behind a colon"),
        (lambda: planned(cluster="aws11"), "did you mean 'aws10'"),
        (lambda: planned(plan="hcps:3x2").among(4), "its groups hold 6 workers, and there are 4"),
        (lambda: planned(plan="hcps:ax2").among(4), "write the sizes of its groups"),
        (lambda: planned(plan="hcps").among(4), "write the sizes of its groups"),
    ],
)
def test_what_is_no_plan_is_refused_before_anything_is_sent(build, says):
    with pytest.raises(ConfigError, match=says):
        build()


def test_packets_that_cannot_be_added_are_refused_with_what_could():
    with pytest.raises(ClashError, match=r"use everyone\(topk\) or planned\(random_k\(\)\)"):
        planned(topk())


def test_a_part_of_another_size_is_told():
    def work(link):
        with pytest.raises(PacketError, match="wanted f64"):
            carried(groups.cps(2), draw(0, 10 + 10 * link.rank), link)
        return True

    assert all(memory.run(2, work))


def test_another_message_is_told():
    def work(link):
        if link.rank:
            link.send([Packet({}), Packet({})], 0)
            return True
        with pytest.raises(PacketError, match="worker 1 sent 2 packets, wanted 1; do all workers run one plan"):
            carried(groups.cps(2), draw(0, 10), link)
        return True

    assert all(memory.run(2, work))


def test_who_is_gone_is_named():
    def work(link):
        if link.rank == 2:
            return None
        with pytest.raises(PeerLost) as caught:
            carried(of_groups(nested(range(4), (2, 2)), "x"), draw(0, 8), link)
        return caught.value.peer

    assert 2 in memory.run(4, work)


def test_uneven_groups_run_too():
    plan = of_groups(Group((Group((0, 1, 2), "ring"), 3, Group((4, 5))), "direct", 1), "uneven")
    whole = sum(draw(rank, 77) for rank in range(6))
    for found, *_ in reduced(plan, 77):
        close([found], [whole])
