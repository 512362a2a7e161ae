"""What every compressor promises, checked for every name in ``compress.__all__`` and for nestings of them."""

import copy
import itertools
import json
import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic import compress
from laconic.compress import (
    Compressor,
    autoencoder,
    block_topk,
    chain,
    chunked_topk,
    count_sketch,
    damped,
    dct,
    dct_topk,
    e3m0,
    econtrol,
    ef21,
    ef21_sgdm,
    error_feedback,
    half,
    identity,
    int8,
    low_rank,
    momentum_correction,
    random_k,
    threshold,
    topk,
    warm_up,
)
from laconic.errors import NotANumber
from laconic.packet import CODES, Packet, check_shape, from_bytes, message_nbytes, to_bytes
from laconic.state import freeze, like, thaw
from tests.fuzz.harness import feed, target
from tests.fuzz.mutate import mutated

PUBLIC = {name: getattr(compress, name) for name in compress.__all__ if name != "Compressor"}
NESTED = {
    "topk(0.3)": lambda: topk(0.3),
    "topk(1.0)": lambda: topk(1.0),
    "random_k(0.3, scaled)": lambda: random_k(0.3, scaled=True),
    "half('fp16')": lambda: half("fp16"),
    "int8(nearest, 7)": lambda: int8(7, stochastic=False),
    "e3m0(2)": lambda: e3m0(2),
    "chain(topk(0.3), half())": lambda: chain(topk(0.3), half()),
    "chain(random_k(0.5), e3m0(4))": lambda: chain(random_k(0.5), e3m0(4)),
    "chain(topk(0.5), topk(0.2), int8())": lambda: chain(topk(0.5), topk(0.2), int8()),
    "chain(identity(), topk(0.05))": lambda: chain(identity(), topk(0.05)),
    "chain(identity(), random_k(0.05))": lambda: chain(identity(), random_k(0.05)),
    "error_feedback(identity())": lambda: error_feedback(identity()),
    "error_feedback(half())": lambda: error_feedback(half()),
    "error_feedback(chain(topk(0.1), int8()))": lambda: error_feedback(chain(topk(0.1), int8())),
    "error_feedback(warm_up(random_k))": lambda: error_feedback(warm_up(random_k, 0.1, 0.5, 8)),
    "momentum_correction(identity(), no masking)": lambda: momentum_correction(identity(), masking=False),
    "momentum_correction(nesterov)": lambda: momentum_correction(topk(0.2), nesterov=True),
    "ef21(random_k(0.3))": lambda: ef21(random_k(0.3)),
    "ef21(identity(), dense)": lambda: ef21(identity(), start="dense"),
    "ef21(damped(random_k(0.3, scaled)))": lambda: ef21(damped(random_k(0.3, scaled=True))),
    "ef21_sgdm(chain(topk(0.2), int8()))": lambda: ef21_sgdm(chain(topk(0.2), int8())),
    "econtrol(warm_up(random_k), dense)": lambda: econtrol(warm_up(random_k, 0.1, 0.5, 8), start="dense"),
    "econtrol(half())": lambda: econtrol(half()),
    "random_k(0.3, run=1)": lambda: random_k(0.3, run=1),
    "error_feedback(random_k(0.3))": lambda: error_feedback(random_k(0.3)),
    "threshold(1.0)": lambda: threshold(1.0),
    "error_feedback(threshold(0.1))": lambda: error_feedback(threshold(0.1)),
    "chunked_topk(0.3, 8)": lambda: chunked_topk(0.3, 8),
    "chunked_topk(1.0, 16)": lambda: chunked_topk(1.0, 16),
    "error_feedback(chain(chunked_topk(0.2, 16), int8()))": lambda: error_feedback(
        chain(chunked_topk(0.2, 16), int8())
    ),
    "block_topk(0.3, 5)": lambda: block_topk(0.3, 5),
    "error_feedback(block_topk(0.2, 7))": lambda: error_feedback(block_topk(0.2, 7)),
    "dct(0.4, 0)": lambda: dct(0.4, 0),
    "dct(0.4, 300)": lambda: dct(0.4, 300),
    "dct(1.0, 8)": lambda: dct(1.0, 8),
    "error_feedback(dct(0.3, 8, rotate=True))": lambda: error_feedback(dct(0.3, 8, rotate=True)),
    "chain(dct(), half())": lambda: chain(dct(), half()),
    "dct_topk(0.2, 4)": lambda: dct_topk(0.2, 4),
    "error_feedback(chain(dct_topk(0.1, 8), half()))": lambda: error_feedback(chain(dct_topk(0.1, 8), half())),
    "count_sketch(0.1, 3, 40)": lambda: count_sketch(0.1, 3, 40),
    "low_rank(1, unbiased)": lambda: low_rank(1, unbiased=True),
    "low_rank(2, cold, 2 iterations)": lambda: low_rank(2, iterations=2, warm_start=False),
    "error_feedback(low_rank(1))": lambda: error_feedback(low_rank(1)),
    "autoencoder(2, every=2)": lambda: autoencoder(2, every=2),
}
EVERY = PUBLIC | NESTED
# These look only at what they send: the rest goes nowhere. With feedback it would stay, and all is looked at.
LOOKS_AT_WHAT_IT_SENDS = [
    "random_k",
    "random_k(0.3, run=1)",
    "random_k(0.3, scaled)",
    "damped",
    "chain(random_k(0.5), e3m0(4))",
    "chain(identity(), random_k(0.05))",
]
# What is read from a sum of tables is not the sum of what is read from each: only the tables add up.
READ_AFTER_THE_SUM = ["count_sketch", "count_sketch(0.1, 3, 40)"]
LOSSY = {name: build for name, build in EVERY.items() if name not in ("identity", *LOOKS_AT_WHAT_IT_SENDS)}

every = pytest.mark.parametrize("build", EVERY.values(), ids=EVERY.keys())
lossy = pytest.mark.parametrize("build", LOSSY.values(), ids=LOSSY.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
two_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def crossed(packet):
    """The packet as the receiver has it: read from bytes."""
    (back,) = from_bytes(to_bytes([packet]))
    return back


def same(a, b):
    """Equal to the bit all the way down, for tensors, packets and states."""
    left, right = (freeze(v.tensors | {"header": repr(v.header)} if isinstance(v, Packet) else v) for v in (a, b))
    return (
        left[0] == right[0]
        and left[1].keys() == right[1].keys()
        and all(t.dtype == right[1][n].dtype and torch.equal(t, right[1][n]) for n, t in left[1].items())
    )


def test_every_public_name_but_the_type_is_a_compressor_with_working_defaults():
    assert len(PUBLIC) >= 10
    for name, build in PUBLIC.items():
        assert isinstance(build(), Compressor), name


@every
@dtypes
def test_the_bytes_alone_decompress_to_the_shape_and_dtype_that_went_in(build, dtype):
    compressor = build()
    for shape in [(), (0,), (1,), (5,), (3, 0), (13, 11), (2, 3, 4), (300, 5)]:
        x = draw(*shape, dtype=dtype)
        packet, _ = compressor.compress(x, compressor.init(x))
        back = build().decompress(crossed(packet))  # another object: nothing but the bytes is shared
        assert back.shape == x.shape
        assert back.dtype == x.dtype
        assert torch.equal(back, compressor.decompress(packet))
        check_shape(packet, x)


@every
def test_nbytes_is_what_crosses(build):
    compressor = build()
    for shape in [(), (0,), (7,), (40, 30)]:
        x = draw(*shape)
        packet, _ = compressor.compress(x, compressor.init(x))
        layout = [[name, CODES[t.dtype], list(t.shape)] for name, t in packet.tensors.items()]
        parts = [4 + len(json.dumps([packet.header, layout], separators=(",", ":")))]
        parts += [t.numel() * t.element_size() for t in packet.tensors.values()]
        wanted = 24 + sum(-(-part // 8) * 8 for part in parts)  # by hand: a frame, and each part filled up to eights
        assert to_bytes([packet]).numel() == message_nbytes([packet]) == wanted


@every
@two_dtypes
def test_meta_tensors_cost_the_same_as_real_ones_at_every_step(build, dtype):
    compressor = build()
    for shape in [(), (0,), (7,), (300, 130)]:
        x = draw(*shape, dtype=dtype)
        on_meta = torch.empty(shape, dtype=dtype, device="meta")
        state, meta_state = compressor.init(x), compressor.init(on_meta)
        for _ in range(3):
            packet, state = compressor.compress(x, state)
            meta_packet, meta_state = compressor.compress(on_meta, meta_state)
            varies = 0.35 if "threshold" in compressor.name else 0.02  # how many pass a threshold, the values decide
            slack = 0 if compressor.sized else 8 + varies * packet.nbytes
            assert abs(meta_packet.nbytes - packet.nbytes) <= slack
            assert compressor.decompress(meta_packet).shape == x.shape


@every
@two_dtypes
def test_compress_is_pure_and_the_same_twice(build, dtype):
    compressor = build()
    state = compressor.init(draw(9, 6, dtype=dtype))
    for step in range(4):  # later steps have a state that is not zero
        x = draw(9, 6, seed=step, dtype=dtype)
        x_before, state_before = x.clone(), copy.deepcopy(state)
        packet, after = compressor.compress(x, state)
        kept, after_kept = crossed(packet), copy.deepcopy(after)
        again, after_again = compressor.compress(x, state)
        assert torch.equal(x, x_before)
        assert same(state, state_before)
        assert same(again, kept)
        assert same(after_again, after_kept)
        assert same(packet, kept), "the second run changed the first one's packet"
        compressor.decompress(packet)
        assert same(packet, kept), "decompress changed its packet"
        state = after


@every
def test_a_packet_survives_the_next_step(build):
    compressor = build()
    x, state = draw(8, 8), None
    state = compressor.init(x)
    packet, state = compressor.compress(x, state)
    kept = crossed(packet)
    for seed in (1, 2):
        _, state = compressor.compress(draw(8, 8, seed=seed), state)
    assert same(packet, kept)


@every
def test_tensors_that_are_not_contiguous_or_need_a_gradient_compress_like_their_copies(build):
    compressor = build()
    whole = draw(12, 20)
    for view in (whole.T, whole[::2, 1::3], whole[:1].expand(5, 20), whole.flip(1)):
        copied = view.clone(memory_format=torch.contiguous_format)
        plain, _ = compressor.compress(copied, compressor.init(copied))
        packet, state = compressor.compress(view, compressor.init(view))
        assert same(crossed(packet), crossed(plain))
        compressor.compress(view, state)
    leaf = torch.nn.Parameter(whole.clone())
    packet, _ = compressor.compress(leaf.detach(), compressor.init(leaf))
    assert not any(t.requires_grad for t in packet.tensors.values())


@every
@dtypes
def test_zeros_decode_to_exact_zeros(build, dtype):
    compressor = build()
    x = torch.zeros(17, 9, dtype=dtype)
    state = compressor.init(x)
    for _ in range(3):
        packet, state = compressor.compress(x, state)
        back = compressor.decompress(crossed(packet))
        assert torch.equal(back, x)
        assert not torch.signbit(back).any()


@lossy
@two_dtypes
def test_a_value_that_is_not_finite_is_refused_and_enters_no_residual(build, dtype):
    compressor = build()
    x = draw(31, 9, dtype=dtype)
    state = compressor.init(x)
    _, state = compressor.compress(x, state)
    before = copy.deepcopy(state)
    for bad, place in itertools.product((math.nan, math.inf, -math.inf), (0, 100, x.numel() - 1)):
        poisoned = x.clone()
        poisoned.view(-1)[place] = bad
        with pytest.raises(NotANumber):
            compressor.compress(poisoned, state)
        assert same(state, before)


@pytest.mark.parametrize("name", LOOKS_AT_WHAT_IT_SENDS)
@two_dtypes
def test_a_value_that_is_not_finite_is_refused_where_it_would_be_sent_and_goes_nowhere_where_not(name, dtype):
    compressor = EVERY[name]()
    x = draw(31, 9, dtype=dtype)
    state = compressor.init(x)
    sent = compressor.decompress(compressor.compress(torch.ones_like(x), state)[0]).reshape(-1) != 0
    for place in range(0, x.numel(), 3):
        poisoned = x.clone()
        poisoned.view(-1)[place] = math.nan
        if sent[place]:
            with pytest.raises(NotANumber):
                compressor.compress(poisoned, state)
        else:
            packet, after = compressor.compress(poisoned, state)
            assert same(packet, compressor.compress(x, state)[0])
            assert not any(t.isnan().any() for t in freeze(after)[1].values())


def test_identity_passes_what_is_not_finite_through_unchanged():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    packet, _ = identity().compress(x, ())
    assert torch.equal(identity().decompress(crossed(packet)).nan_to_num(5, 6, 7), x.nan_to_num(5, 6, 7))


@every
def test_the_state_can_be_checkpointed(build):
    compressor = build()
    x = draw(9, 6)
    _, state = compressor.compress(x, compressor.init(x))
    skeleton, tensors = freeze(state)
    read = thaw(skeleton, {n: t.clone() for n, t in tensors.items()})
    like(compressor.init(x), read)
    one, two = compressor.compress(x, state), compressor.compress(x, read)
    assert same(one[0], two[0])
    assert same(one[1], two[1])


@pytest.mark.parametrize("name", [name for name, build in EVERY.items() if build().summable])
def test_summable_packets_add_up_to_the_packet_of_the_sum(name):
    compressor = EVERY[name]()
    a, b = (draw(20, 7, seed=s, dtype=torch.float64) for s in (1, 2))
    (pa, _), (pb, _) = (compressor.compress(x, compressor.init(x)) for x in (a, b))
    assert pa.header == pb.header
    summed = Packet({n: t + pb.tensors[n] for n, t in pa.tensors.items()}, pa.header)
    together = compressor.decompress(pa) + compressor.decompress(pb)
    if name in READ_AFTER_THE_SUM:
        together = compressor.decompress(compressor.compress(a + b, compressor.init(a))[0])
    exact = all(t.dtype == torch.float64 for t in pa.tensors.values())
    torch.testing.assert_close(
        compressor.decompress(summed), together, rtol=1e-12 if exact else 1e-2, atol=1e-2 * (not exact)
    )


@pytest.mark.parametrize("name", EVERY)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_a_hostile_packet_is_refused_or_decodes_to_the_shape_that_it_promises(name, rng):
    """The same mutations and checks as the fuzzer's (tests/fuzz), here drawn by hypothesis, which shrinks them."""
    each = cached_target(name)
    feed(each.compressor, mutated(rng, each.seeds))


@cache
def cached_target(name):
    return target(name, EVERY[name])


@pytest.mark.parametrize("build", [int8, e3m0], ids=["int8", "e3m0"])
def test_a_huge_block_in_a_header_asks_for_no_more_memory_than_the_tensor(build):
    packet, _ = build(4).compress(draw(3), build(4).init(draw(3)))
    huge = Packet(packet.tensors, packet.header | {"block": 1 << 31})
    assert torch.equal(build().decompress(huge), build().decompress(packet))  # 8 GiB if it padded to a whole block


def test_only_floating_point_tensors_are_compressed():
    for build in (half, int8, e3m0):
        with pytest.raises((ValueError, TypeError), match=r"floating|type"):
            build().compress(torch.arange(5), build().init(torch.arange(5)))
