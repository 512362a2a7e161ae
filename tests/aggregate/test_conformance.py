"""What every rule promises, checked for every name in ``aggregate.__all__``."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic import aggregate
from laconic.aggregate import Rule, mean
from laconic.compress import int8
from laconic.errors import ConfigError, PacketError
from laconic.exchange import everyone
from laconic.links import memory
from laconic.packet import Packet
from tests.tiny import equal

PUBLIC = {name: getattr(aggregate, name) for name in aggregate.__all__ if name != "Rule"}
SIGNS = ["majority"]  # their answer is a sign, whatever the sizes
GOOD = 2.5  # a weight that is one
SHAPES = [(), (0,), (1,), (7,), (3, 0), (5, 4), (2, 3, 4)]

every = pytest.mark.parametrize("name", PUBLIC)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


def draw(number, shape=(5, 4), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(number)]


def heeded(name, given):
    """The weights as they reach a rule: those of one that heeds none are all 1."""
    return given if PUBLIC[name]().weighted else [1.0] * len(given)


@every
def test_it_is_a_rule_with_working_defaults_and_its_own_name(name):
    rule = PUBLIC[name]()
    assert isinstance(rule, Rule)
    assert rule.name == name
    assert rule.weight == 1.0


@every
@dtypes
@shapes
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_answer_has_the_shape_and_dtype_of_the_tensors_and_is_finite(name, dtype, shape, workers):
    got = PUBLIC[name]().combine(draw(workers, shape, dtype), [1.0] * workers)
    assert got.shape == torch.Size(shape)
    assert got.dtype == dtype
    assert bool(torch.isfinite(got).all())


@every
@dtypes
@given(given=weights, seed=st.integers(0, 99))
def test_it_leaves_its_tensors_alone_and_says_the_same_twice(name, dtype, given, seed):
    tensors, rule = draw(len(given), dtype=dtype, seed=seed), PUBLIC[name]()
    kept, said = [t.clone() for t in tensors], heeded(name, given)
    one, two = rule.combine(tensors, tuple(said)), PUBLIC[name]().combine(tensors, said)
    assert torch.equal(one, two)
    assert equal(tensors, kept)
    assert all(one.data_ptr() != t.data_ptr() for t in tensors), "who changes the answer would change a tensor"


@every
@dtypes
def test_of_one_worker_and_of_many_that_agree_it_gives_back_what_they_have(name, dtype):
    (tensor,) = draw(1, dtype=dtype)
    wanted = tensor.sign() if name in SIGNS else tensor
    for workers in (1, 2, 4):  # powers of two: no rounding at all
        assert torch.equal(PUBLIC[name]().combine([tensor] * workers, [1.0] * workers), wanted)
    three = PUBLIC[name]().combine([tensor] * 3, heeded(name, [0.1, 1.0, 7.0]))
    torch.testing.assert_close(three, wanted)


@every
@given(given=weights, seed=st.integers(0, 99))
def test_the_order_of_the_workers_changes_nothing_but_rounding(name, given, seed):
    tensors, rule = draw(len(given), seed=seed), PUBLIC[name]()
    said = heeded(name, given)
    first = rule.combine(tensors, said)
    for order in itertools.islice(itertools.permutations(range(len(given))), 1, 12):
        got = rule.combine([tensors[i] for i in order], [said[i] for i in order])
        torch.testing.assert_close(got, first, rtol=1e-12, atol=1e-12)


@every
@given(seed=st.integers(0, 99))
def test_each_place_is_decided_by_what_the_workers_have_there(name, seed):
    tensors, rule = draw(3, seed=seed), PUBLIC[name]()
    whole = rule.combine(tensors, [1.0] * 3)
    rows = [rule.combine([t[i] for t in tensors], [1.0] * 3) for i in range(len(whole))]
    assert torch.equal(torch.stack(rows), whole)


@every
def test_tensors_without_data_are_combined_to_one_without_data(name):
    on_meta = [torch.empty(5, 4, device="meta", dtype=torch.bfloat16) for _ in range(3)]
    got = PUBLIC[name]().combine(on_meta, [1.0] * 3)
    assert (got.device.type, got.shape, got.dtype) == ("meta", (5, 4), torch.bfloat16)


@every
def test_a_linear_rule_is_the_weighted_sum_over_the_sum_of_weights(name):
    rule, said = PUBLIC[name](), heeded(name, [0.5, 2.0, 3.0])
    tensors = draw(3)
    wanted = sum(w * t for w, t in zip(said, tensors, strict=True)) / sum(said)
    got = rule.combine(tensors, said)
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12) == rule.linear


@every
def test_as_many_weights_are_wanted_as_tensors(name):
    for said in ([0.5], [0.5] * 3):
        with pytest.raises(ValueError, match="zip"):
            PUBLIC[name]().combine(draw(2), said)


def weighing():
    return [name for name, build in PUBLIC.items() if build().weighted]


@pytest.mark.parametrize("name", weighing())
@pytest.mark.parametrize("weight", [0, 0.0, -1.0, math.inf, -math.inf, math.nan])
def test_a_weight_that_is_no_positive_number_is_refused_where_it_is_given(name, weight):
    with pytest.raises(ConfigError, match=f"{name}: weight must be positive and finite, got"):
        PUBLIC[name](weight)


@pytest.mark.parametrize("name", weighing())
@pytest.mark.parametrize("weight", [None, "3", 0, -1.0, 10**400, [1.0], GOOD], ids=lambda weight: str(weight)[:9])
def test_a_weight_that_is_no_positive_number_is_refused_where_a_peer_says_it(name, weight):
    talk, mine = everyone(int8(), PUBLIC[name](2.0)), torch.ones(3, 2)

    def work(link):
        if link.rank == 1:
            packet, _ = int8().compress(mine, int8().init(mine))
            link.all_gather([Packet({}, {} if weight is None else {"weight": weight}), packet])
            return True
        with nullcontext() if weight == GOOD else pytest.raises(PacketError):
            talk.run([mine], talk.init([mine]), link)
        return True

    assert memory.run(2, work) == [True, True]


def test_there_are_rules_of_both_kinds_or_half_of_this_would_prove_nothing():
    assert weighing()
    assert set(PUBLIC) - set(weighing())
    assert mean().linear
