"""Two phases: the mean where nothing is dropped, nothing lost where something is, and fewer bytes than a gathering."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.aggregate import weighted_mean
from laconic.compress import e3m0, ef21, error_feedback, half, identity, int8, momentum_correction, qsgd, sign, topk
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.exchange import everyone, two_phase
from laconic.links import memory
from laconic.state import freeze, like, thaw
from tests.tiny import close, equal

SHAPES = [(70, 50), (3, 5), (0, 4), (2500,), (3,), (), (0,), (1, 1)]


def draw(rank, round=0, shapes=SHAPES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 * round + rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def mean(workers, round=0, shapes=SHAPES):
    return [sum(ts) / workers for ts in zip(*(draw(r, round, shapes) for r in range(workers)), strict=True)]


def rounds(workers, build, number=1, shapes=SHAPES, dtype=torch.float64):
    """Each worker's results of each round, and its last state."""

    def work(link):
        talk = build()
        state = talk.init(draw(link.rank, 0, shapes, dtype))
        results = []
        for round in range(number):
            result, state = talk.run(draw(link.rank, round, shapes, dtype), state, link)
            results.append(result)
        return results, state

    return memory.run(workers, work)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("build", [identity, lambda: topk(1.0), lambda: error_feedback(topk(1.0))])
def test_where_nothing_is_dropped_it_is_the_mean(workers, build):
    for results, _ in rounds(workers, lambda: two_phase(build()), 2):
        close(results[0], mean(workers, 0))
        close(results[1], mean(workers, 1))


def test_weights_of_the_batch_sizes_give_the_mean_over_samples():
    def work(link):
        talk = two_phase(identity(), weighted_mean([1, 10, 100][link.rank]))
        return talk.run(draw(link.rank), talk.init(draw(link.rank)), link)[0]

    exact = [
        sum(n * t for n, t in zip((1, 10, 100), ts, strict=True)) / 111 for ts in zip(*map(draw, range(3)), strict=True)
    ]
    for got in memory.run(3, work):
        close(got, exact)


@pytest.mark.parametrize("build", [int8, e3m0, lambda: int8(7, stochastic=False), lambda: topk(0.1)])
@settings(max_examples=8, deadline=None)
@given(
    workers=st.integers(1, 4),
    number=st.integers(1, 4),
    shapes=st.lists(st.sampled_from([(70, 50), (3, 5), (2, 1500), (0, 4), (2500,), (), (1, 1)]), max_size=4),
)
def test_all_that_came_back_and_what_workers_and_owners_keep_is_all_that_went_in(build, workers, number, shapes):
    found = rounds(workers, lambda: two_phase(error_feedback(build())), number, shapes)
    for i, shape in enumerate(shapes):
        total = sum(results[i] for results in found[0][0])
        wanted = sum(mean(workers, round, shapes)[i] for round in range(number))
        if len(shape) < 2 or not wanted.numel():  # these travel as they are
            close([total], [wanted])
            continue
        residuals = [torch.cat([part.residual.reshape(-1) for part in state.cuts[i].out]) for _, state in found]
        kept = sum(residuals) / workers
        if workers > 2:  # the owners' parts, in the order in which the tensor is cut: from worker i on
            order = [(i + j) % workers for j in range(workers)]
            backs = [found[owner][1].cuts[i].back for owner in order]
            kept = kept + torch.cat([back.residual for back in backs if back is not None])
        close([total + kept.reshape(shape)], [wanted], 1e-12)


def two_level_reference(given, kept, owners, build, edges):
    """The compressed all-reduce with compensation at both ends, written as the paper's steps; one tensor, flat."""
    compressor, pieces = build(), []
    for start, stop in edges:
        sent = []
        for rank, x in enumerate(given):
            buffer = x[start:stop] + kept[rank][start:stop]
            packet, _ = compressor.compress(buffer, compressor.init(buffer))
            decoded = compressor.decompress(packet)
            kept[rank][start:stop] = buffer - decoded
            sent.append(decoded)
        buffer = sum(sent) / len(given) + owners[start:stop]
        packet, _ = compressor.compress(buffer, compressor.init(buffer))
        pieces.append(compressor.decompress(packet))
        owners[start:stop] = buffer - pieces[-1]
    return torch.cat(pieces)


@pytest.mark.parametrize(
    "build", [e3m0, lambda: int8(stochastic=False), lambda: sign("l2")], ids=["e3m0", "int8", "sign, as the paper"]
)
def test_it_is_the_compressed_all_reduce_of_1_bit_adam_with_errors_kept_at_both_ends(build):
    shape, edges = [(96, 64)], [(0, 2048), (2048, 4096), (4096, 6144)]
    found = rounds(3, lambda: two_phase(error_feedback(build())), 4, shape)
    kept, owners = torch.zeros(3, 6144, dtype=torch.float64), torch.zeros(6144, dtype=torch.float64)
    for round in range(4):
        flat = [draw(rank, round, shape)[0].reshape(-1) for rank in range(3)]
        wanted = two_level_reference(flat, kept, owners, build, edges)
        for results, _ in found:
            torch.testing.assert_close(results[round][0].reshape(-1), wanted, rtol=0, atol=1e-12)


def test_without_feedback_the_owner_forgets_and_with_it_remembers():
    shape = [(64, 64)]
    for feedback in (True, False):
        found = rounds(4, lambda f=feedback: two_phase(error_feedback(e3m0()) if f else e3m0(), feedback=f), 20, shape)
        missed = sum(r[0] for r in found[0][0]) - sum(mean(4, round, shape)[0] for round in range(20))
        wrong = float(missed.norm() / torch.stack([mean(4, r, shape)[0] for r in range(20)]).norm())
        assert wrong < 0.1 if feedback else wrong > 0.2, (feedback, wrong)
        tensors = freeze(found[0][1])[1]
        assert bool(tensors) == feedback


def test_feedback_is_kept_at_the_owners_also_where_the_workers_keep_none():
    _, state = rounds(3, lambda: two_phase(int8()), 1, [(64, 64)])[0]
    assert state.cuts[0].back.residual.abs().max() > 0
    assert not hasattr(state.cuts[0].out[0], "residual")


def test_a_cut_goes_between_blocks_so_that_parts_have_the_whole_tensors_scales():
    given = draw(0, 0, [(100, 103)], torch.float32)
    packet, _ = int8(1500, stochastic=False).compress(given[0], int8().init(given[0]))
    once = int8().decompress(packet)

    def work(link):  # everyone has the same: the mean is what one has, and rounding it again changes nothing
        talk = two_phase(int8(1500, stochastic=False), feedback=False)
        return talk.run(given, talk.init(given), link)[0][0]

    for got in memory.run(4, work):
        torch.testing.assert_close(got, once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_it_sends_twice_the_packet_less_a_share_where_a_gathering_sends_it_to_each(workers):
    def sent(build):
        def work(link):
            given = draw(link.rank, 0, [(640, 512)], torch.float32)
            talk = build()
            talk.run(given, talk.init(given), link)
            return link.meter.bytes_out, link.meter.messages_out

        return memory.run(workers, work)

    packet, _ = int8().compress(torch.ones(640, 512), int8().init(torch.ones(())))
    for out, messages in sent(lambda: two_phase(int8())):
        assert out == pytest.approx(2 * (workers - 1) / workers * packet.nbytes, rel=0.01)
        assert messages == (workers - 1) * (1 if workers == 2 else 2), "all tensors share a message"
    assert sent(lambda: everyone(int8()))[0][0] == pytest.approx((workers - 1) * packet.nbytes, rel=0.01)


def test_short_tensors_are_combined_whole_by_all_workers_in_turn():
    def work(link):
        given = draw(link.rank, 0, [(100,)] * 30)
        talk = two_phase(int8())
        _, state = talk.run(given, talk.init(given), link)
        return link.meter.bytes_out, [len(cut.out) for cut in state.cuts]

    found = memory.run(3, work)
    assert found[0][1] == [1] * 30
    assert len({out for out, _ in found}) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_all_workers_hold_the_same_bits_in_every_dtype(dtype):
    found = rounds(4, lambda: two_phase(error_feedback(int8())), 3, dtype=dtype)
    for results, _ in found:
        assert all(equal(a, b) for a, b in zip(results, found[0][0], strict=True))
        assert all(t.dtype == dtype for t in results[0])


def test_a_state_from_the_first_round_on_can_take_the_place_of_a_new_one():
    for workers in (2, 3):
        _, state = rounds(workers, lambda: two_phase(error_feedback(int8())), 2)[0]
        read = thaw(*freeze(state))
        like(two_phase(error_feedback(int8())).init(draw(0)), read)
        assert repr(freeze(read)[0]) == repr(freeze(state)[0])


def test_a_changed_number_of_workers_is_refused_in_words():
    _, state = rounds(3, lambda: two_phase(error_feedback(int8())))[0]

    def work(link):
        with pytest.raises(ConfigError, match="its state is of 3 workers, and there are 4 now"):
            two_phase(error_feedback(int8())).run(draw(0), state, link)
        return True

    assert all(memory.run(4, work))


def test_workers_with_other_tensors_are_told_so():
    def work(link):
        given = draw(0, 0, [(50, 50)] if link.rank else [(90, 90)])
        talk = two_phase(int8())
        with pytest.raises(PacketError, match="promises shape"):
            talk.run(given, talk.init(given), link)
        return True

    assert all(memory.run(3, work))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: two_phase(momentum_correction()), "sends momentum, which owners would add twice"),
        (lambda: two_phase(ef21()), r"use everyone\(ef21"),
    ],
)
def test_what_an_owner_cannot_combine_is_refused_with_what_can(build, says):
    with pytest.raises(ClashError, match=says):
        build()


def test_a_value_that_does_not_fit_is_refused_before_anything_is_sent():
    def work(link):
        given = [torch.full((40, 40), float("nan"))]
        talk = two_phase(half("fp16"))
        with pytest.raises(NotANumber):
            talk.run(given, talk.init(given), link)
        return link.meter.bytes_out

    assert memory.run(1, work) == [0]


def test_a_compressor_that_misses_by_too_much_for_feedback_answers_without_and_is_refused_with_it_at_the_start():
    x = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    talk = two_phase(qsgd(1))
    got = memory.run(3, lambda link: talk.run([x], talk.init([x]), link))
    assert all(torch.equal(mean[0], got[0][0][0]) for mean, _ in got)
    with pytest.raises(ClashError, match="omega of"):
        two_phase(error_feedback(qsgd(1))).init([x])
