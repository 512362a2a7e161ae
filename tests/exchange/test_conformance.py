"""What every exchange promises: the same bits everywhere, nothing touched, nothing half done."""

import copy
import warnings

import pytest
import torch

from laconic import compress, exchange
from laconic.aggregate import weighted_mean
from laconic.compress import chain, e3m0, error_feedback, half, identity, int8, momentum_correction, topk, warm_up
from laconic.errors import NotANumber, PeerLost
from laconic.exchange import Exchange, accordion, everyone, neighbours, pairs, powersgd, ring, two_phase
from laconic.links import memory
from laconic.packet import message_nbytes
from laconic.state import freeze
from tests.tiny import digest, equal

NAMES = [name for name in compress.__all__ if name != "Compressor"]
EVERY = {name: getattr(exchange, name) for name in exchange.__all__ if name != "Exchange"}
EVERY |= {f"everyone({name})": lambda n=name: everyone(getattr(compress, n)()) for name in NAMES}
EVERY |= {f"pairs({name})": lambda n=name: pairs(getattr(compress, n)()) for name in ("half", "int8", "e3m0")}
EVERY |= {
    "everyone(error_feedback(chain))": lambda: everyone(error_feedback(chain(topk(0.2), int8()))),
    "everyone(momentum_correction, small)": lambda: everyone(
        momentum_correction(warm_up(topk, 0.1, 0.5, 4)), small=momentum_correction(identity(), masking=False)
    ),
    "everyone(half, weighted)": lambda: everyone(half(), weighted_mean(3)),
    "everyone(topk, weighted)": lambda: everyone(topk(0.3), weighted_mean(3)),
    "two_phase(int8)": lambda: two_phase(int8()),
    "two_phase(error_feedback(e3m0))": lambda: two_phase(error_feedback(e3m0())),
    "two_phase(half, weighted)": lambda: two_phase(half(), weighted_mean(3)),
    "ring(half)": lambda: ring(half()),
    "neighbours(half, 1)": lambda: neighbours(half(), 1.0),
    "powersgd(1)": lambda: powersgd(1),
    "accordion(powersgd)": lambda: accordion(powersgd(2), powersgd(1), every=1, eta=1e9),
    "powersgd(2, cold)": lambda: powersgd(2, warm_start=False, min_rate=1.0),
}
UNSIZED = [name for name in NAMES if not getattr(compress, name)().sized]
every = pytest.mark.parametrize("build", EVERY.values(), ids=EVERY.keys())
SHAPES = [(12, 10), (), (5,), (1,), (0,), (3, 0), (1, 7), (4, 3, 2, 5), (33, 65)]


def tensors(rank, step=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES]


def parts(state):
    """A state's skeleton and a hash of its tensors."""
    skeleton, held = freeze(state)
    return repr(skeleton), digest(held.values())


def rounds(build, workers, steps=3, dtype=torch.float32, inputs=tensors):
    def work(link):
        talk = build()
        state = talk.init(inputs(link.rank, 0, dtype))
        out = []
        for step in range(steps):
            mean, state = talk.run(inputs(link.rank, step, dtype), state, link)
            out.append(mean)
        return out

    return memory.run(workers, work)


def test_every_public_name_is_an_exchange_with_working_defaults():
    for name in exchange.__all__:
        if name != "Exchange":
            assert isinstance(getattr(exchange, name)(), Exchange), name


@every
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_have_the_tensors_shapes_and_dtypes_and_the_same_bits_where_it_says_equal(build, workers):
    got = rounds(build, workers)
    for step in range(3):
        for worker in got:
            assert [t.shape for t in worker[step]] == [torch.Size(s) for s in SHAPES]
            assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in worker[step])
        if build().equal:
            assert all(equal(worker[step], got[0][step]) for worker in got)
    assert not equal(got[0][0], got[0][1]), "three different rounds"


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_float_dtypes_pass(build, dtype):
    got = rounds(build, 3, 2, dtype)
    assert all(t.dtype == dtype for worker in got for step in worker for t in step)
    if build().equal:
        assert all(equal(worker[1], got[0][1]) for worker in got)


@every
def test_tensors_of_several_dtypes_may_be_mixed(build):
    def mixed(rank, step, _):
        dtypes = [torch.float32, torch.float64, torch.bfloat16]
        return [t.to(dtypes[i % 3]) for i, t in enumerate(tensors(rank, step))]

    for worker in rounds(build, 2, 2, inputs=mixed):
        assert [t.dtype for t in worker[-1]] == [t.dtype for t in mixed(0, 0, None)]


@every
def test_it_touches_neither_its_tensors_nor_its_state(build):
    def work(link):
        talk = build()
        state = talk.init(tensors(link.rank))
        for step in range(3):
            given = tensors(link.rank, step)
            kept, before = [t.clone() for t in given], parts(state)
            _, after = talk.run(given, state, link)
            assert equal(given, kept)
            assert parts(state) == before
            state = after
        return True

    assert all(memory.run(3, work))


@every
def test_run_again_from_the_old_state_gives_the_same_answer(build):
    def work(link):
        talk = build()
        _, state = talk.run(tensors(link.rank), talk.init(tensors(link.rank)), link)
        before = copy.deepcopy(state)
        one = talk.run(tensors(link.rank, 1), state, link)
        two = talk.run(tensors(link.rank, 1), before, link)
        return equal(one[0], two[0]) and parts(one[1]) == parts(two[1])

    assert all(memory.run(3, work))


@every
def test_what_is_kept_of_a_round_that_fails_gives_elsewhere_what_it_would_have_given_here(build):
    """Worker 1 leaves after the first round."""

    def work(link):
        talk = build()
        _, state = talk.run(tensors(link.rank), talk.init(tensors(link.rank)), link)
        if link.rank == 1:
            return state
        before, given = parts(state), tensors(0, 1)
        if talk.name.startswith("pairs") or build is neighbours:
            # They go on: pairs without whoever is missing, and neighbours hear from somebody in one round of five.
            talk.run(given, state, link)
        else:
            with pytest.raises(PeerLost) as failed:
                talk.run(given, state, link)
            assert failed.value.peer == 1
        assert parts(state) == before
        assert equal(given, tensors(0, 1))
        return state

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*worker 1 is gone")
        kept = memory.run(2, work)
    again = memory.run(2, lambda link: build().run(tensors(link.rank, 1), kept[link.rank], link)[0])
    for one, other in zip(again, rounds(build, 2, 2), strict=True):
        assert equal(one, other[1])


@every
def test_a_nan_is_refused_before_it_enters_a_state_that_lasts(build):
    if not freeze(build().init(tensors(0)))[1]:
        pytest.skip("it keeps no tensors")

    def work(link):
        talk = build()
        bad = tensors(0)
        for tensor in bad:
            if tensor.dim() > 1 and tensor.numel():
                tensor.view(-1)[-1] = float("nan")
        with pytest.raises(NotANumber):
            talk.run(bad, talk.init(bad), link)
        return True

    assert memory.run(1, work) == [True]


@every
def test_no_tensors_at_all_are_exchanged_without_complaint(build):
    def work(link):
        talk = build()
        return talk.run([], talk.init([]), link)[0]

    assert memory.run(2, work) == [[], []]


@every
def test_meta_tensors_cost_what_real_ones_cost(build):
    def work(device):
        def on(link):
            talk = build()
            given = [t.to(device) for t in tensors(link.rank)]
            state = talk.init(given)
            for _ in range(2):
                _, state = talk.run(given, state, link)
            return link.meter.bytes_out, link.meter.messages_out

        return on

    on_meta, real = memory.run(3, work("meta")), memory.run(3, work("cpu"))
    # Places are coded in a number of bytes that depends on where the entries are.
    varies = build is accordion or any(word in build().name for word in UNSIZED)
    for a, b in zip(on_meta, real, strict=True):
        assert abs(a[0] - b[0]) <= (0.02 * b[0] + 16 if varies else 0)
    assert [messages for _, messages in on_meta] == [messages for _, messages in real]


def test_the_meter_counts_the_bytes_of_each_message_once_for_each_peer():
    def work(link):
        talk = everyone(topk(0.5))
        given = [torch.randn(10, 10, generator=torch.Generator().manual_seed(link.rank))]
        talk.run(given, talk.init(given), link)
        packet, _ = topk(0.5).compress(given[0], ())
        return link.meter.bytes_out, link.meter.bytes_in, 2 * message_nbytes([packet])

    for out, came, expected in memory.run(3, work):
        assert out == came == expected
