"""The ladder of reductions: at the end of its settings each sync is a simpler one."""

import pytest
import torch

from laconic import attach, sync
from laconic.compress import e3m0, econtrol, ef21, error_feedback, identity, int8, momentum_correction, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone, pairs
from laconic.links import memory
from laconic.sync import Sync, diloco, every_step, local_steps, noloco, streaming
from tests.tiny import close, digest, equal, model, sgd, step, together, weights

EXACT = lambda: everyone(identity())  # noqa: E731


def every_weight(sync_, net):
    return weights(net)


def test_every_public_name_is_a_sync_with_working_defaults():
    for name in sync.__all__:
        if name != "Sync":
            assert isinstance(getattr(sync, name)(), Sync), name


def test_diloco_every_1_with_a_plain_outer_step_is_data_parallel_sgd():
    a = together(3, diloco(EXACT(), every=1, lr=1.0, momentum=0.0), each=every_weight)
    b = together(3, every_step(EXACT()), each=every_weight)
    for one, other in zip(a[0], b[0], strict=True):
        close(one, other)


def test_diloco_with_a_plain_outer_step_is_the_mean_of_the_workers_weights():
    alone = together(3, "alone", steps=5)
    got = together(3, diloco(EXACT(), every=5, lr=1.0, momentum=0.0), steps=5)
    close(got[0], [sum(ps) / 3 for ps in zip(*alone, strict=True)], 1e-14)


def test_local_steps_is_diloco_with_a_plain_outer_step():
    assert equal(together(2, local_steps(EXACT(), 3))[0], together(2, diloco(EXACT(), 3, 1.0, 0.0))[0])


def test_with_one_worker_a_plain_outer_step_leaves_the_inner_optimizer_alone():
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=0.01)  # noqa: E731
    close(together(1, local_steps(every=3), optimizer=adam)[0], together(1, "alone", optimizer=adam)[0], 1e-14)


def test_the_same_data_everywhere_gives_the_same_result_for_any_number_of_workers():
    def go(workers):
        def work(link):
            net = model()
            sync_ = attach(net, sgd(net), diloco(every=2), link)
            for number in range(6):
                step(net, sync_, 0, number)  # worker 0's batches, whoever asks
            return weights(net)

        return memory.run(workers, work)[0]

    close(go(1), go(4))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_streaming_with_one_fragment_no_overlap_and_no_mixing_is_diloco_at_every_step(momentum):
    a = together(3, streaming(EXACT(), 3, 1, 0, 0.0, 0.7, momentum), steps=9, each=every_weight)
    b = together(3, diloco(EXACT(), 3, 0.7, momentum), steps=9, each=every_weight)
    for one, other in zip(a, b, strict=True):
        assert all(equal(x, y) for x, y in zip(one, other, strict=True))


def test_streaming_that_mixes_nothing_in_is_training_alone():
    a = together(2, streaming(every=4, fragments=2, overlap=1, mixing=1.0), steps=9)
    b = together(2, "alone", steps=9)
    for one, other in zip(a, b, strict=True):
        close(one, other)


def test_noloco_with_one_group_of_everyone_is_heavy_ball_diloco():
    for mixing in (None, 0.3):
        a = together(3, noloco(EXACT(), 2, 0.6, 0.4, mixing), steps=8)
        b = together(3, diloco(EXACT(), 2, 0.6, 0.4, "heavy-ball"), steps=8)
        for one, other in zip(a, b, strict=True):
            close(one, other)


def test_noloco_of_one_worker_is_heavy_ball_diloco():
    close(together(1, noloco(every=2), steps=8)[0], together(1, diloco(None, 2, 0.7, 0.5, "heavy-ball"), steps=8)[0])


def test_error_feedback_of_topk_at_density_1_is_no_compression():
    a = together(2, every_step(everyone(error_feedback(topk(1.0)))))
    close(a[0], together(2, every_step())[0])


@pytest.mark.parametrize(
    "build",
    [
        lambda talk: diloco(talk, every=2),
        lambda talk: local_steps(talk, every=2),
        lambda talk: streaming(talk, every=4, fragments=2, overlap=1),
        lambda talk: streaming(talk, every=3, fragments=3, overlap=0, mixing=0.0),
    ],
    ids=["diloco", "local_steps", "streaming overlapped", "streaming"],
)
@pytest.mark.parametrize(
    "compressor",
    [e3m0, int8, lambda: error_feedback(topk(0.2)), lambda: ef21(topk(0.2)), lambda: econtrol(topk(0.2))],
    ids=["e3m0", "int8", "topk", "ef21", "econtrol"],
)
def test_three_workers_shared_weights_have_the_same_hash_after_every_step_with_quantisation(build, compressor):
    def shared(s, net):
        held = s._state.fragments if hasattr(s._state, "fragments") else [s._state]
        return digest(t for part in held for t in part.anchor), digest(t for part in held for t in part.velocity)

    hashes = together(3, build(everyone(compressor())), steps=9, each=shared)
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) > 2


@pytest.mark.parametrize("wrap", [ef21, econtrol])
@pytest.mark.parametrize(
    "build",
    [
        every_step,
        lambda talk: diloco(talk, every=2),
        lambda talk: local_steps(talk, 2),
        lambda talk: streaming(talk, 6),
    ],
    ids=["every_step", "diloco", "local_steps", "streaming"],
)
def test_changes_of_topk_at_density_1_are_no_compression_whatever_the_sync(build, wrap):
    """Also of the vectors, with the same states kept from round to round."""
    ours = together(2, build(everyone(wrap(topk(1.0)), small=wrap(topk(1.0)))), steps=9)
    for one, other in zip(ours, together(2, build(EXACT()), steps=9), strict=True):
        close(one, other)


def test_every_step_ends_each_step_with_the_same_bits_whatever_the_compression():
    for compressor in (identity(), int8(), error_feedback(topk(0.1)), e3m0()):
        runs = together(3, every_step(everyone(compressor)), each=lambda s, net: digest(weights(net)))
        assert runs[0] == runs[1] == runs[2]


def test_local_clipping_bounds_each_workers_gradient_at_clip_times_the_root_of_the_workers():
    gradient = [torch.full((4, 4), 3.0), torch.full((9,), 4.0)]

    def work(link):
        s = every_step(clip=0.5)
        return s.after_backward(gradient, s.init(gradient), link)[0]

    for got in memory.run(4, work):
        norm = torch.cat([g.reshape(-1) for g in got]).norm()
        assert float(norm) == pytest.approx(0.5 * 2)
        torch.testing.assert_close(got[1].mean() / got[0].mean(), torch.tensor(4 / 3))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: every_step(pairs()), "every_step: needs the same result on every worker, and pairs"),
        (lambda: diloco(pairs()), "use noloco"),
        (lambda: streaming(pairs()), "use noloco"),
        (lambda: local_steps(pairs()), "use noloco"),
        (lambda: diloco(everyone(momentum_correction())), "adds momentum, which is for gradients; use error_feedback"),
        (lambda: streaming(everyone(momentum_correction())), "adds momentum"),
        (lambda: noloco(pairs(momentum_correction())), "adds momentum"),
        (lambda: noloco(pairs(topk())), "sends whole weights, and .* would leave most of them out; use int8 or half"),
    ],
)
def test_parts_that_clash_are_refused_with_what_would_work(build, says):
    with pytest.raises(ClashError, match=says):
        build()


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: every_step(clip=0), "clip must be positive"),
        (lambda: every_step(clip=-1.0), "clip must be positive"),
        (lambda: diloco(every=0), "every must be a whole number of at least 1"),
        (lambda: diloco(every=2.5), "every must be a whole number"),
        (lambda: diloco(every=True), "every must be a whole number"),
        (lambda: diloco(lr=0), "lr must be positive"),
        (lambda: diloco(lr=float("nan")), "lr must be positive"),
        (lambda: diloco(momentum=1.0), "momentum must be in"),
        (lambda: diloco(form="nesterof"), "did you mean 'nesterov'"),
        (lambda: streaming(every=2, fragments=3), "3 fragments cannot each be sent once in every=2"),
        (lambda: streaming(every=100, fragments=4, overlap=101), "overlap must be at most every = 100 steps"),
        (lambda: streaming(overlap=-1), "overlap"),
        (lambda: streaming(mixing=1.5), "mixing must be in"),
        (lambda: streaming(pattern="stride"), "did you mean 'strided'"),
        (lambda: noloco(mixing=1.5), r"mixing must be in \(0, 1\.5\) at momentum 0\.5"),
        (lambda: noloco(mixing=0), "mixing must be in"),
        (lambda: noloco(lr=1.0, momentum=0.9), r"mixing must be in \(0, 0\.38\)"),
        (lambda: noloco(momentum=1.0), "momentum"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(build, says):
    with pytest.raises(ConfigError, match=says):
        build()


def test_streaming_more_fragments_than_blocks_is_refused_when_the_model_is_known():
    with pytest.raises(ConfigError, match="4 fragments, but the model has 3 blocks"):
        together(1, streaming(every=8, fragments=4))
