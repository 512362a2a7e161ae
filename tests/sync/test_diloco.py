"""DiLoCo's outer step: its three forms, its stability, its bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.aggregate import weighted_mean
from laconic.exchange import everyone
from laconic.links import memory
from laconic.sync import diloco
from laconic.sync.diloco import outer_step
from tests.tiny import digest, model, together, train


def drive(step, drifts, momentum):
    anchor = [torch.zeros(5, dtype=torch.float64)]
    velocity = [torch.zeros(5, dtype=torch.float64)] if momentum else []
    trail = []
    for moved in drifts:
        anchor, velocity = step(anchor, velocity, [moved])
        trail.append(anchor[0])
    return trail


def drifts(steps=12):
    return list(torch.randn(steps, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize(("form", "nesterov"), [("nesterov", True), ("heavy-ball", False)])
@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (1.0, 0.3), (0.4, 0.0)])
def test_the_outer_step_is_torchs_sgd_of_the_same_form(form, nesterov, lr, momentum):
    weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    expected = []
    for moved in drifts():
        weight.grad = moved.clone()
        optimizer.step()
        expected.append(weight.detach().clone())
    got = drive(outer_step("test", lr, momentum, form), drifts(), momentum)
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=1e-13, atol=1e-13)


def test_polyaks_form_is_heavy_ball_when_the_rate_is_constant():
    polyak, heavy = (drive(outer_step("test", 0.7, 0.9, form), drifts(), 0.9) for form in ("polyak", "heavy-ball"))
    torch.testing.assert_close(torch.stack(polyak), torch.stack(heavy), rtol=1e-13, atol=1e-13)
    nesterov = drive(outer_step("test", 0.7, 0.9, "nesterov"), drifts(), 0.9)
    assert not torch.allclose(torch.stack(nesterov), torch.stack(heavy))


def test_the_first_nesterov_step_overshoots_the_mean_by_the_published_third():
    moved = torch.ones(5, dtype=torch.float64)
    (first,) = drive(outer_step("test", 0.7, 0.9), [moved], 0.9)
    torch.testing.assert_close(first, -1.33 * moved)


@given(contraction=st.floats(0.2, 1.0), momentum=st.sampled_from([0.0, 0.5, 0.9]), inner=st.sampled_from([1, 4]))
@settings(max_examples=12)
def test_on_a_quadratic_it_converges_just_below_the_derived_rate_and_diverges_just_above(contraction, momentum, inner):
    limit = 2 * (1 + momentum) / (1 + 2 * momentum) / contraction
    keep = (1 - contraction) ** (1 / inner)  # what one inner step leaves of the error

    def work(link):
        ends = []
        for lr in (0.97 * limit, 1.03 * limit):
            x = torch.ones(1, dtype=torch.float64)
            sync = diloco(every=inner, lr=lr, momentum=momentum)
            state = sync.init([x])
            for _ in range(250 * inner):
                x = x * keep
                updates, state = sync.after_step([x], state, link)
                x = updates.get(0, x)
            ends.append(float(x.abs()))
        return ends

    ((below, above),) = memory.run(1, work)
    assert below < 0.1
    assert above > 10


def test_nothing_crosses_between_rounds_and_a_round_costs_twice_the_weights_over_n():
    sizes = together(3, diloco(every=4), steps=8, each=lambda s, net: s.link.meter.bytes_out)[0]
    counts = [b - a for a, b in zip([sizes[0], *sizes], sizes, strict=False)]
    assert counts[:3] == [0, 0, 0]
    assert counts[3] == counts[7] > 0
    assert counts[4:7] == [0, 0, 0]


def test_a_round_of_a_large_tensor_costs_a_rings_bytes():
    def work(link):
        x = torch.zeros(30_000)
        sync = diloco(every=1)
        before = link.meter.bytes_out
        sync.after_step([x], sync.init([x]), link)
        return link.meter.bytes_out - before

    for out in memory.run(3, work):
        assert 0 <= out - 2 * 2 / 3 * 30_000 * 4 < 4 * 100


def test_half_precision_weights_have_a_float32_anchor_so_that_small_steps_add_up():
    x = torch.ones(4, dtype=torch.bfloat16)
    (anchor,) = diloco().init([x]).fragments[0].anchor
    assert anchor.dtype == torch.float32
    assert anchor.data_ptr() != x.data_ptr()
    weights = together(2, diloco(every=2), steps=4, make=lambda: model(torch.bfloat16))
    assert all(w.dtype == torch.bfloat16 for w in weights[0])


def test_the_mean_may_be_weighted_by_what_each_worker_saw():
    weights = [1.0, 5.0, 2.0]

    def work(link):
        x = torch.zeros(3, 3, dtype=torch.float64)
        sync = diloco(everyone(combine=weighted_mean(weights[link.rank])), every=1, lr=1.0, momentum=0.0)
        updates, _ = sync.after_step([x + link.rank], sync.init([x]), link)
        return updates[0]

    wanted = torch.full((3, 3), (0 * 1 + 1 * 5 + 2 * 2) / 8, dtype=torch.float64)
    for got in memory.run(3, work):
        torch.testing.assert_close(got, wanted)


def test_tokens_as_weights_train_by_name_and_end_equal():
    runs = memory.run(3, lambda link: train(link, "diloco", 8, every=2, combine=f"weighted_mean({link.rank + 1})"))
    assert digest(runs[0]) == digest(runs[1]) == digest(runs[2])
    assert digest(runs[0]) != digest(together(3, diloco(every=2), steps=8)[0])


def test_a_frozen_parameter_stays_where_it_is_and_so_does_its_momentum():
    def work(link):
        frozen, moving = torch.ones(3, dtype=torch.bfloat16), torch.zeros(3)
        sync = diloco(every=1)
        state = sync.init([frozen, moving])
        for _ in range(5):
            updates, state = sync.after_step([frozen, moving + link.rank], state, link)
        return updates[0], state.fragments[0].velocity[0]

    for value, velocity in memory.run(2, work):
        assert torch.equal(value, torch.ones(3))
        assert not velocity.any()
