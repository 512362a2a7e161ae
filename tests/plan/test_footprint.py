"""Memory: the published table, its laws, and what autograd really keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laconic.errors import ConfigError
from laconic.plan.footprint import (
    Correction,
    Memory,
    fit_correction,
    layer_activations,
    least_memory,
    stage_memory,
    state_bytes,
)
from laconic.plan.transformer import Shape, Training, Transformer, stage_parameters

GPT3 = Transformer(96, 12288, 96, 2048, 51200)
PLAIN = Training(64, recompute="none", flash=False, sequence_parallel=False, sharded_optimizer=False)
GIB = 2**30
ways = st.sampled_from([1, 2, 4, 8])


def table(model, b, t):
    """The paper's rows, at 16 bits and without flash attention, in bytes."""
    s, h, a = model.sequence, model.hidden, model.heads
    whole = s * b * h
    return {
        ("none", False): whole * (10 + 24 / t + 5 * a * s / (h * t)),
        ("none", True): whole / t * (34 + 5 * a * s / h),
        ("selective", False): whole * (10 + 24 / t),
        ("selective", True): 34 * whole / t,
        ("full", False): 2 * whole,
        ("full", True): 2 * whole / t,
    }


@given(b=st.integers(1, 8), t=ways, heads=st.sampled_from([8, 16, 96]), s=st.sampled_from([128, 1000, 2048]))
def test_activations_are_the_papers_table(b, t, heads, s):
    model = Transformer(4, 1536, heads, s, 1000)
    for (recompute, cut), wanted in table(model, b, t).items():
        training = Training(64, recompute=recompute, flash=False, sequence_parallel=cut)
        assert layer_activations(model, training, b, t) == pytest.approx(wanted)
    with_flash = Training(64, recompute="none", flash=True, sequence_parallel=True)
    statistics = 4 * heads * b * s / t  # of each token and head
    assert layer_activations(model, with_flash, b, t) == pytest.approx(34 * s * b * 1536 / t + statistics)


def test_a_layer_of_gpt_3_keeps_what_is_published():
    assert layer_activations(GPT3, PLAIN, 1) == 2.671875 * GIB
    core = layer_activations(GPT3, PLAIN, 1) - layer_activations(GPT3, PLAIN, 1, recompute="selective")
    assert core / (2048 * 12288) == 80


def test_an_inner_width_of_its_own_takes_the_place_of_4h():
    model = Transformer(1, 1024, 16, 128, 100, feed_forward=2816)
    assert layer_activations(model, Training(8), 1) == pytest.approx(128 * 1024 * (18 + 4 * 2816 / 1024) + 4 * 16 * 128)


class Layer(nn.Module):
    """One layer as the formula has it: normalisation, attention with its dropout, a GELU MLP, and two dropouts."""

    def __init__(self, h, heads):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(h), nn.LayerNorm(h)])
        self.qkv, self.out = nn.Linear(h, 3 * h), nn.Linear(h, h)
        self.up, self.down = nn.Linear(h, 4 * h), nn.Linear(4 * h, h)
        self.heads = heads

    def drop(self, x):
        return torch.native_dropout(x, 0.1, True)[0]  # keeps its mask as bytes, as a GPU does

    def forward(self, x):
        b, s, h = x.shape
        q, k, v = (y.reshape(b, s, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norms[0](x)).chunk(3, -1))
        scores = self.drop((q @ k.transpose(-1, -2) / (h // self.heads) ** 0.5).softmax(-1))
        x = x + self.drop(self.out((scores @ v).transpose(1, 2).reshape(b, s, h)))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norms[1](x)))))


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_four_layers_keep_as_much_for_the_backward_pass_as_the_formula_says(dtype, width):
    b, s, h, heads = 2, 48, 64, 4
    layers = nn.Sequential(*(Layer(h, heads) for _ in range(4))).to(dtype)
    weights = {p.data_ptr() for p in layers.parameters()}
    kept: dict[tuple, torch.Tensor] = {}

    def pack(x):
        if x.data_ptr() not in weights:
            kept[x.data_ptr(), x.numel()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = layers(torch.randn(b, s, h, dtype=dtype))
    measured = sum(x.numel() * x.element_size() for x in kept.values())
    training = Training(8, recompute="none", flash=False, sequence_parallel=False, value_bytes=width)
    wanted = 4 * layer_activations(Transformer(4, h, heads, s, 10), training, b)
    assert measured == pytest.approx(wanted, rel=0.15)
    out.sum().backward()  # and all of it was for that


def test_a_parameter_takes_18_bytes_and_less_with_the_optimizer_cut():
    assert state_bytes(PLAIN, 8) == 18
    assert state_bytes(Training(64), 8) == 6 + 12 / 8
    assert state_bytes(Training(64, value_bytes=4, sharded_optimizer=False), 8) == 16


def test_the_first_stage_holds_all_layers_worth_of_one_micro_batch():
    even = [96 // 8] * 8
    memory = stage_memory(GPT3, PLAIN, Shape(8, 1, 1, 1), even, 0)
    beside = 8 * (8 * 2048 + 2048 * 12288)  # tokens, and the mask behind the embedding, of eight in flight
    assert memory.activations == pytest.approx(96 * layer_activations(GPT3, PLAIN, 1) + beside)
    assert memory.states == 18 * stage_parameters(GPT3, 12, True, False)
    last = stage_memory(GPT3, PLAIN, Shape(8, 1, 1, 1), even, 7)
    assert last.activations == pytest.approx(12 * layer_activations(GPT3, PLAIN, 1))
    assert last.momentary == 2048 * (4 * 12288 + 4 * 51200)


def test_computing_all_again_needs_one_whole_layer_for_a_moment():
    training = Training(64, recompute="full", flash=False, sequence_parallel=False)
    memory = stage_memory(GPT3, training, Shape(8, 1, 1, 1), [12] * 8, 3)
    assert memory.momentary == layer_activations(GPT3, PLAIN, 1)
    assert memory.activations == 5 * 12 * 2 * 2048 * 12288


@given(
    p=st.sampled_from([1, 2, 4]),
    t=ways,
    b=st.sampled_from([1, 2]),
    recompute=st.sampled_from(["none", "selective", "full"]),
)
def test_states_and_one_micro_batch_are_never_more_than_the_whole(p, t, b, recompute):
    training, shape, layers = Training(64, recompute=recompute), Shape(p, t, 2, b), [96 // p] * p
    for stage in range(p):
        least = least_memory(GPT3, training, shape, layers, stage)
        assert 0 < least <= stage_memory(GPT3, training, shape, layers, stage).total


TRUE = Correction(1.05, 1.4, 2e9)


def measured(number):
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(number, 2, generator=generator, dtype=torch.float64)
    formula = [Memory(float(1e9 + 40e9 * a), float(1e9 + 40e9 * b), 0.0) for a, b in draws]
    return formula, [TRUE.apply(memory) for memory in formula]


def test_exact_measurements_correct_nothing_and_many_find_what_is_wrong():
    formula, _ = measured(5)
    found = fit_correction(formula, [memory.total for memory in formula])
    assert found == pytest.approx(Correction(), abs=1e-3)
    formula, seen = measured(2000)
    assert fit_correction(formula, seen) == pytest.approx(TRUE, rel=0.02)


def test_few_measurements_move_the_estimate_part_of_the_way():
    formula, seen = measured(3)
    found = fit_correction(formula, seen)
    for memory, real in zip(formula, seen, strict=True):
        assert memory.total < found.apply(memory)
        assert abs(found.apply(memory) - real) < abs(memory.total - real)


def test_a_correction_wants_measurements():
    with pytest.raises(ConfigError, match="one positive measurement"):
        fit_correction([], [])
    with pytest.raises(ConfigError, match="one positive measurement"):
        fit_correction([Memory(1.0, 1.0, 0.0)], [0.0])
