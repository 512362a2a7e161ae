"""Feedback methods on workers whose data differ: which find the optimum, which stop at a floor, which diverge.

Ten workers, f_i(x) = |a_i x - b_i|^2 / 2 in 50 dimensions, a_i = i / sqrt(10) and b_i ~ N(0, (10 / i)^2), Top-k of a
tenth, and the excess of the mean loss over its minimum. A wrong order of updates, or a mean that lags, leaves a floor.
"""

import math
from functools import cache

import pytest
import torch

from laconic.compress import econtrol, ef21, ef21_sgdm, error_feedback, identity, topk
from laconic.compress.base import accumulate

WORKERS, SIZE = 10, 50
WAYS = {
    "sgd": identity,
    "topk alone": lambda: topk(0.1),
    "error feedback": lambda: error_feedback(topk(0.1)),
    "ef21": lambda: ef21(topk(0.1), start="dense"),
    "ef21_sgdm": lambda: ef21_sgdm(topk(0.1), start="dense"),
    "econtrol": lambda: econtrol(topk(0.1), start="dense"),
    "econtrol from zero": lambda: econtrol(topk(0.1)),
    "econtrol, eta 1": lambda: econtrol(topk(0.1), 1.0),
}


@cache
def excess(way, rate, steps, noise=0.0, at_optimum=False, tail=0.1):
    """Mean excess over the last ``tail`` of the steps; infinite if it diverges."""
    generator = torch.Generator().manual_seed(0)
    a = torch.arange(1, WORKERS + 1, dtype=torch.float64) / math.sqrt(WORKERS)
    b = torch.randn(WORKERS, SIZE, generator=generator, dtype=torch.float64)
    b *= (10 / torch.arange(1, WORKERS + 1, dtype=torch.float64))[:, None]
    best = (a[:, None] * b).sum(0) / a.square().sum()
    x = best.clone() if at_optimum else torch.zeros(SIZE, dtype=torch.float64)
    compressor = WAYS[way]()
    states, seen = [compressor.init(x) for _ in range(WORKERS)], []
    for _ in range(steps):
        gradients = a[:, None] * (a[:, None] * x - b)
        gradients += noise / math.sqrt(SIZE) * torch.randn(WORKERS, SIZE, generator=generator, dtype=torch.float64)
        mean = torch.zeros_like(x)
        for i, gradient in enumerate(gradients):
            packet, states[i] = compressor.compress(gradient, states[i])
            accumulate(compressor, packet, mean, 1 / WORKERS)
        if compressor.integrate is not None:  # everyone's is the same: one stands for all
            mean, states[0] = compressor.integrate(mean, states[0])
        x = x - rate * mean
        seen.append(0.5 * float(a.square().mean() * (x - best).square().sum()))
        if not seen[-1] < 1e9:
            return math.inf
    last = seen[-round(tail * steps) :]
    return sum(last) / len(last)


def noisy(way):
    return excess(way, 0.001, 800, noise=10.0, at_optimum=True, tail=0.6)


@pytest.mark.parametrize("way", ["sgd", "ef21", "ef21_sgdm", "econtrol", "econtrol from zero"])
def test_without_noise_these_reach_the_optimum_itself(way):
    assert excess(way, 0.01, 500) < 1e-13


def test_without_noise_topk_alone_and_with_error_feedback_stop_at_a_floor():
    assert 3 < excess("topk alone", 0.01, 400) < 8
    assert 3e-2 < excess("error feedback", 0.01, 500) < 7e-2


def test_the_floor_of_error_feedback_falls_with_the_square_of_the_step():
    at = {rate: excess("error feedback", rate, 300, at_optimum=True) for rate in (0.001, 0.01)}
    assert 50 < at[0.01] / at[0.001] < 200


def test_with_noise_ef21_amplifies_it_and_the_others_do_not():
    sgd = noisy("sgd")
    assert 1e-3 < sgd < 5e-3
    assert noisy("ef21") > 4 * sgd
    for way in ("error feedback", "ef21_sgdm", "econtrol"):
        assert noisy(way) < 2 * sgd, way


@pytest.mark.parametrize("way", ["ef21", "ef21_sgdm", "econtrol"])
def test_a_step_that_plain_sgd_bears_is_too_large_for_them(way):
    assert excess("sgd", 0.1, 200) < 1e-13
    assert excess(way, 0.1, 300) > excess("sgd", 0.0, 10), "further from the optimum than at the start"


def test_eta_1_is_not_error_feedback_and_diverges_under_noise():
    assert excess("econtrol, eta 1", 0.001, 400, noise=10.0, at_optimum=True) == math.inf
