"""Prices by running: what they must equal, how they must scale, and what they must see."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from laconic import compress
from laconic.compress import int8
from laconic.exchange import everyone, two_phase
from laconic.links.network import Connection, Network, of_cluster, parse
from laconic.plan import charging
from laconic.plan.cluster import Cluster, Line, Machine
from laconic.plan.job import VALUE, Job, Step, of_parameters, of_workload
from laconic.plan.price import PLAIN_RING, price
from laconic.plan.running import BUCKET, Course, bucket_for, traced
from laconic.workloads import load

SHAPES = (*((f"blocks.{i}.weight", (96, 64)) for i in range(4)), ("head.weight", (8, 64)), ("head.bias", (8,)))
JOB = Job("small", SHAPES, 128, 1e6, 2e6, activations=1000, optimizer=2000)
STEP = Step(0.01, 0.02, 0.002)
WAYS = [
    ("ddp", {}),
    ("topk", {}),
    ("powersgd", {}),
    ("diloco", {"every": 4}),
    ("streaming-diloco", {"every": 6, "fragments": 2}),
    ("noloco", {"every": 3}),
    ("d-psgd", {}),
    ("sgp", {}),
    ("co2", {"every": 4}),
    ("local-sgd", {"every": 4, "compress": "int8"}),
]


def rated(megabytes, latency, workers):
    return Network((Connection(megabytes * 1e6, megabytes * 1e6, latency),) * workers)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])
@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(rate=st.floats(0.1, 50), latency=st.floats(0, 0.2), workers=st.integers(2, 4), pace=st.sampled_from([0.0, 1e-8]))
def test_the_terms_of_a_step_are_all_the_time_that_passes(way, rate, latency, workers, pace):
    network, course = rated(rate, latency, workers), Course(3, 1, 1)
    for trace in traced(JOB, network, [STEP] * workers, *way, course, compressing=pace):
        for a, b in pairwise(trace.marks):
            spent = [getattr(b, name) - getattr(a, name) for name in ("computing", "compressing", "waiting")]
            assert min(spent) >= -1e-9
            assert sum(spent) == pytest.approx(b.clock - a.clock, rel=1e-9)
            assert spent[0] == pytest.approx(3 * STEP.seconds)
    found = price(JOB, network, [STEP] * workers, *way, compressing=pace)
    assert found.step_seconds == pytest.approx(workers * JOB.tokens / found.tokens_per_second)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])
def test_without_latency_twice_of_everything_takes_half_the_time(way):
    once = price(JOB, rated(1.0, 0.0, 3), [STEP] * 3, *way, compressing=2e-8)
    twice = price(JOB, rated(2.0, 0.0, 3), [STEP.times(0.5)] * 3, *way, compressing=1e-8)
    assert twice.step_seconds == pytest.approx(once.step_seconds / 2, rel=1e-9)
    assert twice.bytes_out == once.bytes_out
    assert twice.waiting_share == pytest.approx(once.waiting_share, rel=1e-9)


def test_a_machine_that_is_not_used_changes_nothing():
    machines = tuple(Machine(name, 8e9, 1e9) for name in ("a", "b", "c"))
    lines = {(x.name, y.name): Line(2e6, 0.01) for x in machines for y in machines if x is not y}
    three = Cluster("three", machines, lines)
    two = Cluster("two", machines[:2], {ends: line for ends, line in lines.items() if "c" not in ends})
    for method, own in WAYS:
        prices = [price(JOB, of_cluster(each, 2), [STEP] * 2, method, own) for each in (three, two)]
        assert prices[0] == prices[1]


def test_what_hides_behind_backward_is_not_waited_for():
    # All buckets could leave within backward, were it not for the last, behind which there is nothing any more.
    large = replace(JOB, shapes=tuple((f"blocks.{i}.weight", (1024, 1024)) for i in range(20)))
    network = rated(100.0, 0.0, 2)
    exposed = price(large, network, [Step(0.1, 0.0)] * 2, "ddp")
    hidden = price(large, network, [Step(0.1, 2.0)] * 2, "ddp")
    assert exposed.waiting == pytest.approx(20 * 1024**2 * VALUE / 100e6, rel=0.01)
    assert 0 < hidden.waiting < 0.4 * exposed.waiting


def test_an_overlap_hides_a_round_and_a_period_without_one_waits_for_it():
    network, steps = rated(0.2, 0.0, 2), [Step(0.02, 0.03)] * 2  # a round takes half a second
    waits = price(JOB, network, steps, "diloco", {"every": 20})
    hides = price(JOB, network, steps, "diloco", {"every": 20, "overlap": 12})
    some = price(JOB, network, steps, "diloco", {"every": 20, "overlap": 5})
    assert waits.waiting == pytest.approx(waits.bytes_out / 0.2e6, rel=0.02)
    assert hides.waiting == pytest.approx(0.0, abs=1e-9)
    assert some.waiting == pytest.approx(waits.waiting - 5 * 0.05 / 20, rel=0.02)
    assert hides.memory.sync > waits.memory.sync  # for what is under way


def test_the_quick_wait_for_the_slow_unless_steps_are_dealt_by_speed():
    network, steps = rated(100.0, 0.0, 2), [STEP, STEP.times(3)]
    even = price(JOB, network, steps, "diloco", {"every": 12})
    uneven = price(JOB, network, steps, "uneven-diloco", {"every": 12})
    assert even.waiting == pytest.approx(STEP.seconds, rel=0.02)  # half of the workers, two steps' worth each
    assert uneven.waiting_share < 0.1
    assert uneven.tokens_per_second > 1.2 * even.tokens_per_second


def test_compressing_takes_time_and_what_the_lane_compresses_behind_backward_is_not_shown():
    network = rated(1000.0, 0.0, 2)
    free = price(JOB, network, [STEP] * 2, "topk")
    seen = price(JOB, network, [STEP] * 2, "topk", compressing=1e-8)
    assert free.compressing == 0
    assert seen.compressing > 0
    assert seen.step_seconds - free.step_seconds == pytest.approx(seen.compressing, rel=0.05)
    large = replace(JOB, shapes=tuple((f"blocks.{i}.weight", (1024, 1024)) for i in range(20)))
    bare = price(large, network, [Step(0.1, 0.0)] * 2, "topk", compressing=1e-9)
    behind = price(large, network, [Step(0.1, 0.9)] * 2, "topk", compressing=1e-9)
    assert behind.compressing < 0.5 * bare.compressing


def test_a_compressors_pace_is_measured_by_bytes_that_its_operations_make(monkeypatch):
    monkeypatch.setattr(charging, "_quickest", lambda exchange, shapes, link: 0.5)
    pace = charging.pace_of(everyone(int8()), JOB)
    with charging.Made() as made:
        torch.ones(10) + 1
        torch.ones(10).view(2, 5)
    assert made.nbytes == 120  # two tensors of ones, a sum, and no view
    assert 0.5 / pace > 2 * VALUE * JOB.parameters  # compress, decompress and combine make at least that
    assert charging.pace_of(None, JOB) == 0


@pytest.mark.parametrize("name", ["int8", "int4", "sign", "topk", "e3m0", "dct", "low_rank"])
def test_what_operations_on_meta_make_is_known_the_second_time_and_the_same(name, monkeypatch):
    compressor = getattr(compress, name)()
    x = torch.empty(96, 64, device="meta")

    def count() -> tuple[int, list[tuple]]:
        with charging.Made() as made:
            packet, _ = compressor.compress(x, compressor.init(x))
            back = compressor.decompress(packet)
        return made.nbytes, [(t.shape, t.stride(), t.dtype, t.device) for t in (*packet.tensors.values(), back)]

    with monkeypatch.context() as without:
        without.setattr(charging, "_asked", lambda *call: None)
        plain = count()
    charging._MADE.clear()
    assert count() == plain
    known = len(charging._MADE)
    assert count() == plain
    assert len(charging._MADE) == known > 0


def test_an_operation_that_changes_a_shape_or_has_data_is_never_taken_from_memory():
    x, y = torch.empty(8, device="meta"), torch.empty(8, device="meta")
    with charging.Made() as made:
        assert x.add_(1) is x
        assert x.add_(1) is x
        assert made.nbytes == 2 * x.nbytes
        for _ in range(2):
            z = torch.empty(2, 3, device="meta")
            assert z.t_() is z
            assert z.shape == (3, 2)
            assert z.resize_(7) is z
            assert z.shape == (7,)
            assert torch.zeros(3).add_(2.0).tolist() == [2.0] * 3
        made.nbytes = 0
        x.add_(1)
        assert (x.view(2, 4) + 1).shape == (2, 4)
        assert torch.equal(torch.ones(3) + torch.ones(3), torch.full((3,), 2.0))
        assert (x + 1).dtype == torch.float32
        assert (x.long() + 1).dtype == torch.int64
        assert (x + y).data_ptr() == 0
    assert made.nbytes > 0


def test_a_pace_is_that_of_the_parts_that_an_exchange_makes_among_several(monkeypatch):
    seen = []
    monkeypatch.setattr(charging, "_quickest", lambda exchange, shapes, link: seen.append(link.size) or 0.5)
    alone, three, many = (charging.pace_of(two_phase(int8()), JOB, workers=n) for n in (1, 3, 50))
    assert alone > three == many, "answers are compressed and decompressed too, so the same seconds make more bytes"
    assert set(seen) == {1, 3}


def test_memory_is_what_model_gradients_optimizer_batch_and_method_keep():
    network = rated(1.0, 0.0, 2)
    plain = price(JOB, network, [STEP] * 2, "ddp").memory
    weights = VALUE * JOB.parameters
    assert plain[:5] == (weights, weights, 2000, 1000, 0)
    assert plain.total == pytest.approx(1.1 * (2 * weights + 3000))
    assert price(JOB, network, [STEP] * 2, "diloco", {"every": 2}).memory.sync == 2 * weights
    assert price(JOB, network, [STEP] * 2, "topk").memory.sync == pytest.approx(weights, rel=0.01)


def test_a_method_that_looks_at_its_tensors_is_run_on_random_ones():
    found = price(JOB, rated(1.0, 0.0, 2), [STEP] * 2, "co2", {"every": 4})
    assert found.notes == ()
    assert found.bytes_out == pytest.approx(VALUE * JOB.parameters / 4, rel=0.05)
    many = replace(JOB, shapes=(("weight", (30_000, 1000)),))
    assert "depends on data" in price(many, rated(1.0, 0.0, 2), [STEP] * 2, "co2", {"every": 4}).notes[0]


def test_a_whole_run_sends_what_a_run_of_its_length_sends_and_not_a_share_of_the_next_round():
    network = rated(1.0, 0.0, 2)
    before = price(JOB, network, [STEP] * 2, "diloco", {"every": 8}, course=Course(7, 0, 1, whole=True))
    after = price(JOB, network, [STEP] * 2, "diloco", {"every": 8}, course=Course(8, 0, 1, whole=True))
    assert before.bytes_out < 20  # one small message, by which the workers agree
    assert after.bytes_out == pytest.approx(VALUE * JOB.parameters / 8, rel=0.02)


def test_a_large_model_has_fewer_and_larger_buckets_than_it_will_and_says_so():
    job = of_parameters(7e9)
    assert job.parameters == pytest.approx(7e9, rel=0.001)
    assert bucket_for(job, 2) == (BUCKET, None)
    larger, note = bucket_for(job, 64)
    assert larger > BUCKET
    assert "fewer latencies" in note


def test_merged_blocks_have_all_parameters_in_fewer_tensors():
    job = of_parameters(7e9)
    fewer = job.merged(60)
    assert fewer.parameters == job.parameters
    assert len(fewer.shapes) <= 70 < len(job.shapes)
    assert max(math.prod(shape) for _, shape in of_parameters(1e12).merged(30).shapes) < 2**31
    assert job.merged(10_000) is job
    found = [price(each, rated(100.0, 0.0, 2), [STEP] * 2, "topk").bytes_out for each in (job, fewer)]
    assert found[1] == pytest.approx(found[0], rel=0.01)


@pytest.mark.parametrize("parameters", [1e5, 1e7, 1e9, 70e9, 1e12])
def test_a_transformer_of_so_many_parameters_has_about_so_many(parameters):
    job = of_parameters(parameters)
    assert job.parameters == pytest.approx(parameters, rel=0.02)
    assert job.forward + job.backward == pytest.approx(6 * job.parameters * job.tokens)


def test_a_workloads_job_has_its_shapes_its_operations_and_its_memory():
    workload = load("shakespeare", {"size": "nano"})
    job = of_workload(workload)
    model = workload.make_model()
    assert [(name, tuple(p.shape)) for name, p in model.named_parameters()] == list(job.shapes)
    assert [(name, tuple(p.shape)) for name, p in job.skeleton().named_parameters()] == list(job.shapes)
    assert job.tokens == 16 * 64
    assert job.optimizer == pytest.approx(2 * VALUE * job.parameters, rel=0.01)  # AdamW's two moments
    assert job.backward == pytest.approx(2 * job.forward, rel=0.05)
    # Of each layer and token 34 widths of 16 bits are published with dropout; here float32 and a few things less.
    assert 2 * 17 * 64 * 1024 * 2 < job.activations < 2 * 2 * 40 * 64 * 1024 * 2


def test_intellect_1s_utilisation_follows_from_its_period_its_inner_time_and_its_all_reduces():
    inner, every, workers = 38 * 60, 100, 8
    job = Job("INTELLECT-1", tuple((f"blocks.{i}.weight", (1000, 1000)) for i in range(10)), 1, 1.0, 2.0)
    step = Step(inner / every / 3, inner / every * 2 / 3)
    for seconds, published in ((103, 0.957), (382, 0.856), (469, 0.830)):
        rate = 2 * (workers - 1) / workers * VALUE * job.parameters / seconds  # at which a ring takes as long as told
        network = Network((Connection(rate, rate),) * workers)
        found = price(job, network, [step] * workers, "diloco", {"every": every})
        assert found.waiting * every == pytest.approx(seconds, rel=0.001)
        assert 1 - found.waiting_share == pytest.approx(published, abs=0.001)


def test_prices_are_the_same_every_time():
    network = parse("1mbit,20ms", 3, ("1:500kbit",))
    once, again = (price(JOB, network, [STEP] * 3, "adaptive", {"every": 4}, compressing=1e-9) for _ in range(2))
    assert once == again
    assert math.isfinite(once.step_seconds)


TUNED = """
import torch
from torch import nn


def make_model():
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    return model


def make_optimizer(model):
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def batches(split, worker, workers, seed):
    while True:
        yield torch.ones(4, 64, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.long)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])
"""


def test_weights_of_16_bits_and_those_that_are_not_trained_are_counted_as_they_are(tmp_path):
    (tmp_path / "tuned.py").write_text(TUNED)
    job = of_workload(load(str(tmp_path / "tuned.py")))
    trained, frozen, buffers = 2 * 64 + 64 * 8 + 8, 64 * 64 + 64, 2 * 64
    assert (job.parameters, job.dtype, job.nbytes) == (trained, torch.bfloat16, 2 * trained)
    assert job.frozen == 2 * (frozen + buffers) + 8  # BatchNorm's count of batches is a long
    found = price(job, rated(1.0, 0.0, 2), [STEP] * 2, "ddp")
    assert found.bytes_out == pytest.approx(2 * trained, rel=0.1)  # and envelopes
    assert (found.memory.model, found.memory.gradients) == (2 * trained + job.frozen, 2 * trained)


def test_gloos_sums_of_large_models_are_priced_as_a_plain_rings_which_takes_about_as_long():
    large = replace(JOB, shapes=tuple((f"blocks.{i}.weight", (4096, 4096)) for i in range(8)))
    network = rated(100.0, 1e-3, 8)
    plain, gloo = (price(large, replace(network, gloo=each), [STEP] * 8, "ddp") for each in (False, True))
    assert gloo == replace(plain, notes=(PLAIN_RING,))  # 7.5 GB of messages
    medium = replace(JOB, shapes=large.shapes[:4])  # and 3.8 GB: as gloo sends them
    plain, gloo = (price(medium, replace(network, gloo=each), [STEP] * 8, "ddp") for each in (False, True))
    assert gloo.step_seconds != plain.step_seconds
    assert gloo.step_seconds == pytest.approx(plain.step_seconds, rel=0.1)
