"""Shapes on clusters: prices that add up, what is refused and why, and the laws that measurements on Frontier found."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import ConfigError
from laconic.plan.cluster import Cluster, Line, Machine
from laconic.plan.cutting import CLASSES, Job, price, stages
from laconic.plan.fabric import fabric_of
from laconic.plan.flows import in_rounds, play
from laconic.plan.footprint import RESERVE, Correction, least_memory
from laconic.plan.layout import APART, GROUP, INSIDE, Layout, hosts, ranked, summing
from laconic.plan.shapes import rank
from laconic.plan.transformer import Shape, Training, Transformer, parameters, traffic

SMALL = Transformer(8, 512, 8, 256, 4000)
NEAR, FAR = Line(10e9, 0.0), Line(1e9, 0.0)


def box(number=4, each=4, near=NEAR, far=FAR, memory=16e9, flops=1e12):
    return hosts(number, each, flops, memory, near, far)


def layout(cluster, shape, across=True):
    return Layout(cluster, tuple(ranked(cluster)), shape, across)


shapes = st.sampled_from(
    [
        Shape(p, t, 16 // (p * t), b, v)
        for p in (1, 2, 4)
        for t in (1, 2, 4)
        for b in (1, 2)
        for v in (1, 2)
        if v == 1 or p > 1
    ]
)
trainings = st.builds(
    Training,
    batch=st.just(128),
    recompute=st.sampled_from(["none", "selective", "full"]),
    flash=st.booleans(),
    sequence_parallel=st.booleans(),
    sharded_optimizer=st.booleans(),
)


@given(shape=shapes, training=trainings, across=st.booleans())
def test_the_terms_are_not_negative_and_their_sum_is_the_step(shape, training, across):
    found = price(Job(SMALL, training, 1e11), layout(box(), shape, across))
    assert min(found.terms.values()) >= -1e-12
    assert found.seconds == pytest.approx(sum(found.terms.values()))
    assert found.tokens_per_second == pytest.approx(128 * 256 / found.seconds)


@given(shape=shapes, training=trainings, across=st.booleans())
def test_twice_the_speed_of_everything_takes_half_the_time(shape, training, across):
    one = price(Job(SMALL, training, 1e11), layout(box(), shape, across))
    fast = box(near=Line(20e9, 0.0), far=Line(2e9, 0.0), flops=2e12)
    two = price(Job(SMALL, training, 2e11), layout(fast, shape, across))
    assert two.seconds == pytest.approx(one.seconds / 2)


@given(shape=shapes, training=trainings, across=st.booleans())
def test_faster_links_never_make_it_slower(shape, training, across):
    one = price(Job(SMALL, training), layout(box(), shape, across)).seconds
    for near, far in ((Line(20e9, 0.0), FAR), (NEAR, Line(2e9, 0.0)), (Line(10e9, 0.0), Line(1e9, 0.0))):
        assert price(Job(SMALL, training), layout(box(near=near, far=far), shape, across)).seconds <= one * (1 + 1e-9)


@given(t=st.sampled_from([2, 4]), b=st.sampled_from([1, 2]), recompute=st.sampled_from(["none", "full"]))
def test_bytes_over_the_links_are_those_of_the_closed_formulas(t, b, recompute):
    """Sequence-parallel and untied, so that every message is one that the formulas count; on hosts of four."""
    model, training = replace(SMALL, tied=False), Training(128, recompute=recompute)
    shape = Shape(4, t, 16 // (4 * t), b)
    found = price(Job(model, training), layout(box(), shape)).traffic
    each = traffic(model, training, shape)
    assert found[INSIDE] + found[GROUP] == pytest.approx(
        # Pipeline: three borders of four, and a middle worker has its share of two halves. Loss: the last stage alone.
        16 * each.tensor + 12 * each.pipeline + 4 * each.loss + _summed(model, training, shape),
        rel=1e-9,
    )
    assert found[APART] == 0


def _summed(model, training, shape):
    """Bytes of the data groups, by stages' own parameters."""
    from laconic.plan.transformer import data_factor, stage_parameters

    held = [stage_parameters(model, 2, i == 0, i == 3, shape.tensor) for i in range(4)]
    return sum(held) * data_factor(training, shape.data) * shape.tensor * shape.data


def test_one_tensor_way_and_one_copy_leave_only_what_passes_between_stages():
    model = replace(SMALL, tied=False)
    found = price(Job(model, Training(64)), layout(box(4, 1), Shape(4, 1, 1, 1)))
    assert found.traffic[GROUP] == 64 * 3 * 2 * 256 * 512 * 2
    assert found.terms["tensor messages"] == found.terms["summing copies"] == 0
    alone = price(Job(model, Training(64)), layout(box(1, 1), Shape(1, 1, 1, 1)))
    assert sum(alone.traffic.values()) == 0
    assert {name for name, seconds in alone.terms.items() if seconds} == {"computing"}


def test_a_worker_beside_the_cluster_changes_nothing():
    machines = tuple(Machine(f"m{i}", 16e9, 1e12, "all") for i in range(5))
    lines = {("all", "all"): FAR}
    used = tuple(machine.name for machine in machines[:4])
    four = Cluster("four", machines[:4], lines, used)
    five = Cluster("five", machines, lines, used)
    assert rank(Job(SMALL, Training(64)), four).best == rank(Job(SMALL, Training(64)), five).best


def test_copies_are_summed_within_hosts_first_where_that_is_faster():
    found = summing(layout(box(), Shape(1, 1, 16, 1)), 0, 1e9)
    assert found.inner == 4
    inside, between = 2 * 3 / 4 * 1e9 / 10e9, 2 * 3 / 4 * 0.25e9 / 1e9
    assert found.seconds == pytest.approx(inside + between)
    assert found.seconds < 2 * 15 / 16 * 1e9 / 1e9  # one ring of all
    alike = summing(layout(box(near=FAR), Shape(1, 1, 16, 1)), 0, 1e9)
    assert alike.inner == 1
    assert alike.seconds == pytest.approx(2 * 15 / 16)


def test_ranks_are_the_best_first_and_every_shape_is_ranked_or_refused():
    job = Job(SMALL, Training(128))
    every = rank(job, box(memory=2e9), keep=10_000)
    seconds = [priced.seconds for priced in every.best]
    assert seconds == sorted(seconds)
    assert every.more == 0
    few = rank(job, box(memory=2e9), keep=5)
    assert [p.seconds for p in few.best] == seconds[:5]
    assert few.more == len(seconds) - 5
    named = [one.shape for one in every.best] + [one.shape for one in every.refused]
    assert len(named) == len(set(named))
    assert {(s.pipeline, s.tensor, s.data) for s in named} == {
        (p, t, 16 // p // t) for p in (1, 2, 4, 8, 16) for t in (1, 2, 4, 8, 16) if p * t <= 16
    }


@settings(max_examples=10)
@given(memory=st.floats(4e7, 1e9))
def test_no_shape_is_returned_whose_states_and_one_micro_batch_do_not_fit(memory):
    job = Job(SMALL, Training(128), correction=Correction(0.5, 0.5, 0.0))  # measurements that claim too much
    try:
        found = rank(job, box(memory=memory), keep=20)
    except ConfigError:
        return
    for one in found.best:
        for stage in range(one.shape.pipeline):
            least = least_memory(SMALL, job.training, one.shape, one.layers, stage)
            assert least <= (1 - RESERVE) * memory
    for one in found.refused:
        if one.room is not None:
            assert one.room.taken > one.room.limit


def test_a_refusal_says_what_did_not_fit_and_by_how_much():
    found = rank(Job(SMALL, Training(128)), box(memory=0.2e9))
    whys = {str(one.shape): one.why for one in found.refused}
    assert whys["p=16 t=1 d=1 b=1"] == "16 stages are more than 8 layers"
    assert whys["p=1 t=16 d=1 b=1"] == "16 tensor ways do not divide 8 heads"
    big = next(one for one in found.refused if one.room is not None)
    assert "of states" in big.why
    assert "too much" in big.why
    wide = rank(Job(replace(SMALL, feed_forward=1001), Training(128)), box())
    assert "8 tensor ways do not divide a feed-forward width of 1001" in {one.why for one in wide.refused}
    odd = rank(Job(SMALL, Training(120)), box())
    assert "16 copies do not divide a batch of 120" in {one.why for one in odd.refused}


def test_a_model_that_fits_nowhere_says_by_how_much_and_what_would_make_it_fit():
    big = Transformer(32, 4096, 32, 2048, 32000)
    with pytest.raises(ConfigError, match=r"fits nowhere on hosts; nearest is p=.* GB too much.*GB of memory on each"):
        rank(Job(big, Training(64)), box(memory=4e9))
    few = Transformer(1, 10240, 4, 2048, 32000)  # at most four ways, whatever the workers: the copies can share states
    with pytest.raises(ConfigError, match="With a sharded optimizer it would fit, as p=1 t=4 d=4"):
        rank(Job(few, Training(64, sharded_optimizer=False)), box(memory=5.5e9))
    with pytest.raises(ConfigError, match="no shape of 11 workers comes out whole"):
        rank(Job(SMALL, Training(64)), box(11, 1))


def test_the_memory_it_names_does_suffice():
    big = Transformer(32, 4096, 32, 2048, 32000)
    with pytest.raises(ConfigError) as caught:
        rank(Job(big, Training(64)), box(memory=4e9))
    wanted = float(str(caught.value).split("It would fit with ")[1].split(" GB")[0])
    assert rank(Job(big, Training(64)), box(memory=1.01 * wanted * 1e9)).best


def test_it_says_why_the_first_is_first():
    found = rank(Job(SMALL, Training(128)), box())
    assert str(found.best[0].shape) in found.why()
    assert "% computing" in found.why()
    assert f"Next is {found.best[1].shape}, " in found.why()


def test_the_nearest_misses_come_first_and_once():
    found = rank(Job(SMALL, Training(128)), box(memory=0.2e9))
    near = found.nearly()
    over = [one.room.taken - one.room.limit for one in near]
    assert over == sorted(over)
    assert over[0] == min(one.room.taken - one.room.limit for one in found.refused if one.room)
    assert len({(s.shape.pipeline, s.shape.tensor, s.shape.data) for s in near}) == len(near)


def test_measured_peaks_correct_what_fits():
    job = Job(SMALL, Training(128))
    free = rank(job, box(memory=0.6e9), keep=100)
    more = rank(replace(job, correction=Correction(1.0, 1.0, 0.3e9)), box(memory=0.6e9), keep=100)
    assert len(more.best) < len(free.best)


# -- unlike machines and links -------------------------------------------------------------------------------------


def two_sites(near=12.5e6, far=1.25e6, fast=1e12, slow=1e12):
    """Two workers at each of two sites: fast links inside, slow ones between."""
    machines = tuple(
        Machine(f"{site}{i}", 64e9, flops, site) for site, flops in (("a", fast), ("b", slow)) for i in range(2)
    )
    lines = {(x, y): Line(near if x == y else far, 0.0) for x in "ab" for y in "ab"}
    return Cluster("sites", machines, lines, tuple(machine.name for machine in machines))


@pytest.mark.parametrize("batch", [16, 4096])
def test_stages_lie_across_the_slow_link_only_while_they_carry_less(batch):
    model = Transformer(8, 256, 4, 64, 1000)
    job = Job(model, Training(batch, sharded_optimizer=False, gradient_bytes=2))
    cluster, shape = two_sites(), Shape(2, 1, 2, 4)
    across = price(job, layout(cluster, shape, True))
    beside = price(job, layout(cluster, shape, False))
    fewer = batch * 64 * 256 < parameters(model)  # B s h < 2 (G - 1) / G P
    assert (across.seconds < beside.seconds) == fewer
    assert (across.traffic[APART] < beside.traffic[APART]) == fewer
    best = next(p for p in rank(job, cluster, keep=100, micro_batches=(4,)).best if p.shape == shape)
    assert best.traffic[APART] == min(across.traffic[APART], beside.traffic[APART])
    assert best.seconds == pytest.approx(min(across.seconds, beside.seconds))


def test_bytes_over_the_slow_cut_are_those_of_every_example_once_there_and_once_back():
    job = Job(replace(SMALL, tied=False), Training(64))
    found = price(job, layout(two_sites(), Shape(2, 1, 2, 4))).traffic
    assert found[APART] == 2 * 64 * 256 * 512 * 2


def test_faster_machines_get_more_layers_and_that_is_faster():
    job = Job(Transformer(24, 512, 8, 256, 100), Training(64))
    cluster = two_sites(fast=3e12, slow=1e12, near=1e9, far=1e9)
    one = layout(cluster, Shape(2, 1, 2, 4))
    cut = stages(job, one)
    assert cut.layers in ((18, 6), (19, 5))  # three times as many, and one more while that shortens the beginning
    assert price(job, one, cut).seconds < price(job, layout(two_sites(near=1e9, far=1e9), Shape(2, 1, 2, 4))).seconds


def test_chunks_of_an_uneven_stage_are_whole_layers():
    job = Job(Transformer(24, 512, 8, 256, 100), Training(64))
    cluster = two_sites(fast=3e12, slow=1e12, near=1e9, far=1e9)
    layers = stages(job, layout(cluster, Shape(2, 1, 2, 4, 2))).layers
    assert sum(layers) == 24
    assert layers[0] > layers[1]
    assert all(n % 2 == 0 for n in layers)


def test_layers_move_to_where_there_is_memory_for_them():
    job = Job(Transformer(24, 512, 8, 256, 100), Training(64))
    cluster = two_sites(fast=3e12, slow=1e12, far=1e9)
    small = tuple(replace(m, memory=0.5e9) if m.group == "a" else m for m in cluster.machines)
    one = layout(replace(cluster, machines=small), Shape(2, 1, 2, 1))
    found = stages(job, one).layers
    assert found[0] < 18
    assert price(job, one).room.fits


@pytest.mark.parametrize("unlike", [0.0, 1e-4])
def test_hosts_on_uneven_links_are_placed_where_they_cost_least(unlike):
    """Eight hosts in two islands that the file names mixed up: the ranking puts each pipeline inside one.

    A probe never finds two machines that are exactly as fast.
    """
    machines = tuple(Machine(f"m{i}", 64e9 - i, 1e12 * (1 + unlike * i)) for i in range(8))
    side = [0, 1, 1, 0, 1, 0, 0, 1]
    lines = {
        (a.name, b.name): Line(50e6 if side[i] == side[j] else 1e6, 0.0)
        for i, a in enumerate(machines)
        for j, b in enumerate(machines)
        if i != j
    }
    cluster = Cluster("islands", machines, lines, tuple(m.name for m in machines))
    job = Job(Transformer(8, 64, 4, 1024, 100), Training(512))
    shape = Shape(4, 1, 2, 1)
    found = next(p for p in rank(job, cluster, keep=100, micro_batches=(1,), chunks=(1,)).best if p.shape == shape)
    asis = min(price(job, layout(cluster, shape, across)).seconds for across in (True, False))
    assert found.seconds < 0.2 * asis
    places = [side[int(name[1:])] for name in found.machines]
    pipelines = [places[0::2], places[1::2]] if found.stages_across else [places[:4], places[4:]]
    assert all(len(set(row)) == 1 for row in pipelines)


def test_hosts_that_are_fast_stay_where_they_are_if_placing_by_messages_makes_it_slower():
    """Two fast and two slow hosts, a slightly better line from fast to slow: a stage is as fast as its slowest."""
    machines = tuple(Machine(f"m{i}", 64e9, flops) for i, flops in enumerate((4e12, 4e12, 1e12, 1e12)))
    lines = {
        (a.name, b.name): Line(1.1e9 if abs(i - j) == 2 else 1e9, 0.0)
        for i, a in enumerate(machines)
        for j, b in enumerate(machines)
        if i != j
    }
    cluster = Cluster("two kinds", machines, lines, tuple(m.name for m in machines))
    job = Job(Transformer(24, 512, 8, 256, 100), Training(64))
    for one in rank(job, cluster, keep=100, micro_batches=(1,), chunks=(1,)).best:
        asis = [layout(cluster, one.shape, across) for across in (True, False)]
        assert one.seconds <= min(price(job, given).seconds for given in asis) * (1 + 1e-9)


def test_stages_need_not_divide_the_layers():
    cluster = two_sites(fast=4e12, slow=3e12, near=1e9, far=1e9)
    two = replace(cluster, workers=("a0", "b0"))
    found = rank(Job(Transformer(7, 512, 8, 256, 100), Training(64)), two, keep=100)
    assert (4, 3) in {one.layers for one in found.best if one.shape.pipeline == 2}
    equal = rank(Job(Transformer(50, 64, 8, 256, 100), Training(64)), box(1, 4), keep=100)
    assert {tuple(sorted(one.layers)) for one in equal.best if one.shape == Shape(4, 1, 1, 1)} == {(12, 12, 13, 13)}


def test_many_unlike_machines_are_ranked_by_few_splits(monkeypatch):
    """Only the slowest and the fullest stage give layers: where every stage could, dozens of machines took a minute."""
    from laconic.plan import pipeline

    asked, least = [], pipeline.least_time
    monkeypatch.setattr(pipeline, "least_time", lambda *of: asked.append(1) or least(*of))
    machines = tuple(Machine(f"m{i}", 64e9, 1e12 * (1 + 0.3 * (i % 7) / 7)) for i in range(12))
    lines = {(a.name, b.name): Line(1e9, 1e-4) for a in machines for b in machines}
    cluster = Cluster("many", machines, lines, tuple(m.name for m in machines))
    shape = Shape(12, 1, 1, 1)
    stages(Job(Transformer(24, 1024, 16, 1024, 32000), Training(256)), layout(cluster, shape))
    assert len(asked) < 12 * 24


# -- what was found on Frontier, arXiv:2312.12705 ---------------------------------------------------------------------

GCD = {"flops": 0.7 * 191.5e12, "memory": 64e9}
PACKAGE, NODE, NETWORK = Line(200e9, 5e-6), Line(50e9, 5e-6), Line(12.5e9, 10e-6)
HBM = 0.85 * 1.6e12


def frontier(nodes):
    """Nodes of four packages of two dies: the two of a package have the fastest link, then those of a node."""
    machines = tuple(Machine(f"n{n}p{k}", GCD["memory"], GCD["flops"], f"n{n}") for n in range(nodes) for k in range(4))
    lines = {(m.name, m.name): PACKAGE for m in machines}
    lines |= {(f"n{a}", f"n{b}"): NODE if a == b else NETWORK for a in range(nodes) for b in range(nodes)}
    return Cluster("frontier", machines, lines, tuple(m.name for m in machines for _ in range(2)))


def recipe(batch):
    """As it was run: recomputing, flash attention, the optimizer cut."""
    return Training(batch, recompute="full", flash=True, sequence_parallel=False, sharded_optimizer=True)


def share(model, nodes, shape, batch):
    found = price(Job(model, recipe(batch), HBM), layout(frontier(nodes), shape))
    assert found.room.fits
    return found.share(191.5e12)


MODEL_22B = Transformer(48, 6144, 48, 2048, 51200)
MODEL_175B = Transformer(96, 12288, 96, 2048, 51200)
MODEL_1T = Transformer(128, 25600, 128, 2048, 51200)


def test_throughput_falls_with_tensor_ways_and_sharply_once_they_leave_the_node():
    model = Transformer(24, 2048, 16, 2048, 51200)
    found = [share(model, 2, Shape(1, t, 16 // t, 1), 128) for t in (1, 2, 4, 8, 16)]
    assert all(a > b for a, b in itertools.pairwise(found))
    falls = [1 - b / a for a, b in itertools.pairwise(found)]
    assert falls[-1] == max(falls)
    assert falls[-1] > 1.3 * falls[-2]


def test_more_micro_batches_raise_throughput_and_more_stages_lower_it_but_not_at_the_same_ratio():
    found = [share(MODEL_175B, 16, Shape(16, 4, 2, 1), 2 * m) for m in (16, 64, 160, 640)]
    assert all(a < b for a, b in itertools.pairwise(found))
    same_batch = [share(MODEL_22B, p, Shape(p, 8, 1, 1), 128) for p in (2, 4, 8, 16)]
    assert all(a > b for a, b in itertools.pairwise(same_batch))
    # At the same ratio only the head is left to count: it makes the last stage the longer, the fewer layers it has.
    same_ratio = [share(MODEL_22B, p, Shape(p, 8, 1, 1), 16 * p) for p in (2, 4, 8, 16)]
    assert same_ratio[0] / same_ratio[-1] - 1 < 0.6 * (same_batch[0] / same_batch[-1] - 1)
    headless = replace(MODEL_22B, vocabulary=1)
    same_ratio = [share(headless, p, Shape(p, 8, 1, 1), 16 * p) for p in (2, 4, 8, 16)]
    assert max(same_ratio) / min(same_ratio) - 1 < 0.06


def test_the_three_models_reach_their_shares_of_the_peak_in_the_published_order():
    """Published are 38.38, 36.14 and 31.96 %, and ours are 11, 9 and 10 points above: each as we rank it."""
    found = []
    for model, nodes, batch in ((MODEL_22B, 2, 640), (MODEL_175B, 16, 1280), (MODEL_1T, 128, 3200)):
        job = Job(model, recipe(batch), HBM)
        best = rank(job, frontier(nodes), keep=1, micro_batches=(1, 2), chunks=(1,)).best[0]
        found.append(100 * best.share(191.5e12))
    assert found == sorted(found, reverse=True)
    assert found == pytest.approx([49.0, 45.1, 42.2], abs=0.3)  # told in docs/shapes.md


def test_the_recommended_cuts_fit_and_smaller_ones_do_not():
    for model, shape, batch in ((MODEL_175B, Shape(16, 4, 2, 1), 1280), (MODEL_1T, Shape(64, 8, 2, 1), 3200)):
        fitting = price(Job(model, recipe(batch), HBM), layout(frontier(shape.workers // 8), shape))
        assert fitting.room.fits
        half = replace(shape, pipeline=shape.pipeline // 4)
        assert not price(Job(model, recipe(batch), HBM), layout(frontier(half.workers // 8), half)).room.fits


def test_weak_scaling_is_nearly_perfect():
    """100 % from two copies of the 175 B model to 16, at the same batch for each."""
    one = share(MODEL_175B, 16, Shape(16, 4, 2, 1), 2 * 640)
    more = share(MODEL_175B, 128, Shape(16, 4, 16, 1), 16 * 640)
    assert more / one > 0.95


def test_links_are_told_apart_by_what_they_join():
    one = layout(frontier(2), Shape(1, 1, 16, 1))
    assert [one.kind(0, k) for k in (1, 2, 8)] == [INSIDE, GROUP, APART]
    assert [one.line(0, k) for k in (1, 2, 8)] == [PACKAGE, NODE, NETWORK]
    assert set(CLASSES) == {INSIDE, GROUP, APART}


def test_a_workers_own_connection_limits_what_stays_on_its_machine_as_it_does_on_simulated_links():
    cluster = box(2, 2)
    slow = replace(cluster, machines=tuple(replace(m, up=1e6) for m in cluster.machines))
    one = layout(slow, Shape(1, 1, 4, 1))
    assert layout(cluster, Shape(1, 1, 4, 1)).line(0, 1).bandwidth == 10e9
    for other in (1, 2):
        assert one.line(0, other).bandwidth == 1e6
        played = play(fabric_of(slow), in_rounds(4, [[(0, other, 1e6)]]))
        assert played.left[0] == pytest.approx(1.0)
    assert math.isinf(one.machines[0].down)
