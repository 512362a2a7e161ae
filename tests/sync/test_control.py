"""The controllers of uneven devices: their published properties, and a search of everything as oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.sync.control import (
    Choice,
    Device,
    Flex,
    Terms,
    affine,
    bound,
    choose,
    cost,
    densities,
    energy,
    flex_count,
    plan,
    progress,
    seconds,
    spent,
)

positive = st.floats(0.01, 10.0)
devices = st.builds(
    Device,
    step=positive,
    rate=st.floats(1e3, 1e7),
    latency=st.floats(0.0, 0.5),
    share=st.floats(0.1, 1.0),
    joules=st.floats(0.0, 2.0),
    power=st.floats(0.0, 5.0),
    allowance=st.just(math.inf),
    queue=st.floats(0.0, 5.0),
)
terms = st.builds(
    Terms,
    nbytes=st.floats(1e3, 1e7),
    progress=st.just(1.0),
    least_steps=st.just(1),
    most_density=st.just(1.0),
    drift=st.floats(0.0, 0.2),
    variance=st.floats(0.0, 0.5),
    tradeoff=st.floats(0.1, 10.0),
    most_steps=st.integers(1, 30),
    least_density=st.floats(0.005, 0.5),
)


@given(device=devices, terms=terms, deadline=st.floats(0.1, 60.0))
def test_no_choice_that_keeps_the_deadline_costs_less(device, terms, deadline):
    every = [
        Choice(steps, density)
        for density in densities(terms)
        for steps in range(1, terms.most_steps + 1)
        if seconds(device, Choice(steps, density), terms) <= deadline
    ]
    found = choose(device, deadline, terms)
    assert (found is None) <= (not every)
    if found is not None and every:
        assert cost(device, found, terms) <= min(cost(device, c, terms) for c in every) + 1e-9


@given(devices=st.lists(devices, min_size=1, max_size=4), terms=terms)
def test_every_round_keeps_the_deadline_and_the_last_devices_slack_is_less_than_a_step(devices, terms):
    deadline, choices = plan(devices, terms)
    took = [seconds(d, c, terms) for d, c in zip(devices, choices, strict=True) if c is not None]
    assert max(took) <= deadline
    slowest = max(
        range(len(devices)), key=lambda i: 0 if choices[i] is None else seconds(devices[i], choices[i], terms)
    )
    assert deadline - seconds(devices[slowest], choices[slowest], terms) < devices[slowest].step


@given(devices=st.lists(devices, min_size=2, max_size=4), terms=terms)
def test_who_is_waited_for_is_never_left_out(devices, terms):
    assert None not in plan(devices, terms, wait=True)[1]


@given(device=devices, terms=terms, count=st.integers(2, 4))
def test_equal_devices_choose_alike(device, terms, count):
    assert len(set(plan([device] * count, terms)[1])) == 1


@given(device=devices, terms=terms, deadline=st.floats(0.1, 60.0), times=st.floats(1.01, 10.0))
def test_a_faster_link_or_faster_steps_never_cost_more(device, terms, deadline, times):
    before = choose(device, deadline, terms)
    for better in (device._replace(rate=device.rate * times), device._replace(step=device.step / times)):
        after = choose(better, deadline, terms)
        if before is not None:
            assert after is not None
            assert cost(better, after, terms) <= cost(device, before, terms) + 1e-9


@given(device=devices, terms=terms, deadline=st.floats(0.1, 60.0), more=st.floats(0.01, 50.0))
def test_a_longer_queue_never_spends_more_energy(device, terms, deadline, more):
    before, after = (choose(device._replace(queue=q), deadline, terms) for q in (device.queue, device.queue + more))
    if before is not None:
        assert energy(device, after, terms) <= energy(device, before, terms) + 1e-9


@pytest.mark.parametrize(("tradeoff", "excess"), [(0.1, 0.01), (1.0, 0.05), (10.0, 0.5)])
def test_in_the_long_run_a_device_spends_its_allowance_and_little_more(tradeoff, excess):
    """By at most the largest queue over the rounds, which grows with V."""
    limits = Terms(nbytes=1e5, drift=0.02, variance=0.05, tradeoff=tradeoff, most_steps=20)
    device = Device(step=0.1, rate=1e6, joules=1.0, power=2.0, allowance=5.0)
    used, rounds = 0.0, 2000
    for _ in range(rounds):
        choice = choose(device, 3.0, limits)
        used += energy(device, choice, limits)
        device = device._replace(queue=spent(device, energy(device, choice, limits)))
    assert used / rounds <= 5.0 + excess
    assert used / rounds <= 5.0 + device.queue / rounds + 1e-9
    free = choose(device._replace(queue=0.0), 3.0, limits)
    assert energy(device, free, limits) > 1.5 * 5.0, "without a queue it would spend more"


def test_without_an_allowance_there_is_no_queue():
    assert spent(Device(1.0, 1.0, queue=3.0), 100.0) == 0.0


def test_a_device_that_cannot_take_one_step_in_time_is_left_out():
    limits = Terms(nbytes=1e6, least_density=0.1)
    slow = Device(step=1.0, rate=1e5)
    assert choose(slow, 1.9, limits) is None
    assert choose(slow, 2.0, limits) == Choice(1, 0.1)


def test_uneven_devices_all_work_to_within_a_step_of_the_deadline():
    limits = Terms(nbytes=1e6, drift=0.0, variance=0.01)
    uneven = [Device(0.1, 1e6), Device(0.35, 1e6), Device(0.8, 5e5)]
    deadline, choices = plan(uneven, limits)
    for device, choice in zip(uneven, choices, strict=True):
        slack = deadline - seconds(device, choice, limits)
        assert 0 <= slack < device.step or choice.steps == limits.most_steps
    assert choices[0].steps > choices[1].steps > choices[2].steps


def test_a_slower_link_is_given_a_lower_density():
    limits = Terms(nbytes=1e6, drift=0.01, variance=0.02)
    fast, slow = plan([Device(0.1, 1e7), Device(0.1, 1e5)], limits)[1]
    assert slow.density < fast.density


@pytest.mark.parametrize("drift", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("variance", [0.0, 0.05])
def test_hardly_any_deadline_of_a_fine_grid_makes_more_progress_a_second(drift, variance):
    limits = Terms(nbytes=1e6, drift=drift, variance=variance)
    uneven = [Device(0.1, 1e6), Device(0.35, 1e6, 0.1), Device(0.8, 2e5)]
    deadline, choices = plan(uneven, limits)
    value = sum(d.share * bound(c, limits) for d, c in zip(uneven, choices, strict=True) if c is not None) / deadline
    others = [progress(uneven, 0.1 * 1.02**i, limits) for i in range(400)]
    assert value <= 0.95 * min(others) < 0


# -- FlexFL ------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 1000), queue=st.floats(0.01, 50.0), message=st.floats(0.0, 0.01), entry=st.floats(1e-6, 1e-2)
)
def test_flexfl_sends_the_number_of_entries_that_a_search_of_all_finds_best(seed, queue, message, entry):
    x = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    flex = Flex(queue=queue, message=message, entry=entry)
    squares = x.square().sort(descending=True).values

    def value(count):
        price = message + entry * count if count else 0.0
        return flex.tradeoff * float(squares[count:].sum()) + queue * (price - flex.wanted)

    count, after = flex_count(x, flex)
    assert value(count) == pytest.approx(min(value(i) for i in range(41)), abs=1e-12)
    price = message + entry * count if count else 0.0
    assert after.queue == max(1e-3, queue + price - flex.wanted)


@pytest.mark.parametrize("wanted", [0.01, 0.03])
@pytest.mark.parametrize("message", [0.0, 0.005])
def test_flexfls_mean_cost_comes_to_what_is_wanted(wanted, message):
    flex = Flex(tradeoff=1e-4, wanted=wanted, message=message, entry=1e-3)
    residual = torch.zeros(100, dtype=torch.float64)
    generator, used, rounds = torch.Generator().manual_seed(0), 0.0, 5000
    for _ in range(rounds):
        x = residual + torch.randn(100, dtype=torch.float64, generator=generator)
        count, flex = flex_count(x, flex)
        residual = x.clone()
        if count:
            residual[x.abs().topk(count).indices] = 0
            used += message + 1e-3 * count
    assert used / rounds <= wanted + flex.queue / rounds
    assert wanted * 0.8 < used / rounds <= wanted * 1.1
    assert math.isfinite(float(residual.norm()))


def test_flexfl_of_nothing_sends_nothing():
    count, after = flex_count(torch.zeros(5), Flex())
    assert count == 0
    assert after.queue == pytest.approx(0.99)
    assert flex_count(torch.zeros(0), Flex())[0] == 0


def test_latency_is_told_from_rate_by_two_messages():
    latency, rate = affine((100, 0.05 + 100 / 1e6), (100_000, 0.05 + 0.1))
    assert latency == pytest.approx(0.05)
    assert rate == pytest.approx(1e6)
    assert affine((100, 0.1), (1000, 0.1))[1] > 1e9
