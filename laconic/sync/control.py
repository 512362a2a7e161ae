"""Controllers of uneven devices: how many local steps each takes, and how much of its change it sends.

Pure functions: measurements in, decisions out. All workers that are given the same measurements decide the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

POINTS = 48  # densities that are tried, and deadlines before they are refined
REFINED = 24  # steps of the golden section
GOLDEN = (math.sqrt(5) - 1) / 2
NARROW = 1e-9  # of a deadline: what rounding may take from a step that fits exactly
LEAST_QUEUE = 1e-3


class Device(NamedTuple):
    """What one device can do, measured.

    ``step``: seconds of a local step (c); a message of n bytes takes ``latency + n / rate`` seconds (R is ``rate``).
    ``share`` is its data's (p), and ``queue`` (U) what it has spent above its ``allowance`` of energy a round.
    ``joules``: of a local step (epsilon); ``power``: of its radio, in watts (P).
    """

    step: float
    rate: float
    latency: float = 0.0
    share: float = 1.0
    joules: float = 0.0
    power: float = 0.0
    allowance: float = math.inf
    queue: float = 0.0


class Terms(NamedTuple):
    """The bound of a round's progress: ``J(tau, theta) = -progress tau + drift tau^2 + variance tau (1/theta - 1)``.

    ``tradeoff`` (V) weighs it against energy; ``nbytes`` is a message at density 1; the rest are the limits.
    """

    nbytes: float
    progress: float = 1.0
    drift: float = 0.01
    variance: float = 0.05
    tradeoff: float = 1.0
    least_steps: int = 1
    most_steps: int = 50
    least_density: float = 0.01
    most_density: float = 1.0


class Choice(NamedTuple):
    """Local steps (tau) and density (theta) of one device in one round."""

    steps: int
    density: float


def seconds(device: Device, choice: Choice, terms: Terms) -> float:
    """How long the device's round takes: its steps, then its message."""
    return choice.steps * device.step + device.latency + choice.density * terms.nbytes / device.rate


def energy(device: Device, choice: Choice, terms: Terms) -> float:
    """Joules of the device's round."""
    return choice.steps * device.joules + device.power * choice.density * terms.nbytes / device.rate


def bound(choice: Choice, terms: Terms) -> float:
    """J: less is better, below zero is progress."""
    dropped = 1 / choice.density - 1
    return choice.steps * (terms.drift * choice.steps + terms.variance * dropped - terms.progress)


def cost(device: Device, choice: Choice, terms: Terms) -> float:
    """``V J + U E``: what a device's choice makes least."""
    return terms.tradeoff * bound(choice, terms) + device.queue * energy(device, choice, terms)


def densities(terms: Terms) -> list[float]:
    """The densities that are tried, evenly apart in their logarithm."""
    low, high = terms.least_density, terms.most_density
    if low == high:
        return [high]
    return [low * (high / low) ** (i / (POINTS - 1)) for i in range(POINTS - 1)] + [high]


def choose(device: Device, deadline: float, terms: Terms) -> Choice | None:
    """The choice of least cost that keeps the deadline; None for a device that cannot take the fewest steps in it.

    Law:    every round kept, of all densities tried and all numbers of steps none costs less. So a faster link or
            faster steps never cost more, and a longer queue never spends more energy.
    Source: the control of HCEF as this project reconstructs it from the abstract (arXiv:2409.04022).
    """
    tried = np.array(densities(terms))
    sending = device.latency + tried * terms.nbytes / device.rate
    left = np.maximum(0.0, deadline * (1 + NARROW) - sending)
    most = np.minimum(terms.most_steps, np.floor(left / device.step))
    least = max(1, terms.least_steps)
    # At each density the cost is a parabola in the steps: its lowest point in reach is next to the real one's.
    dropped = 1 / tried - 1
    falls = terms.tradeoff * (terms.progress - terms.variance * dropped) - device.queue * device.joules
    rises = terms.tradeoff * terms.drift
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        top = np.where(rises > 0, falls / (2 * rises), np.where(falls > 0, np.inf, -np.inf))
    best: tuple[float, Choice] | None = None
    for rounded in (np.floor(top), np.ceil(top)):
        steps = np.minimum(np.maximum(rounded, least), most)
        costs = steps * (rises * steps - falls) + device.queue * device.power * tried * terms.nbytes / device.rate
        costs = np.where(most >= least, costs, np.inf)
        i = int(costs.argmin())
        if costs[i] < np.inf and (best is None or costs[i] < best[0]):
            best = float(costs[i]), Choice(int(steps[i]), float(tried[i]))
    return None if best is None else best[1]


def progress(devices: Sequence[Device], deadline: float, terms: Terms) -> float:
    """The bound of the whole round a second (S / T), all devices choosing best; less is better."""
    chosen = [choose(device, deadline, terms) for device in devices]
    return sum(d.share * bound(c, terms) for d, c in zip(devices, chosen, strict=True) if c is not None) / deadline


def plan(devices: Sequence[Device], terms: Terms, wait: bool = False) -> tuple[float, list[Choice | None]]:
    """The deadline of most progress a second, and each device's choice: None for one that is left out this round.

    With ``wait`` no deadline is tried at which a device would be left out. The deadline returned is when the last is
    ready.

    Law:    no choice takes longer than the deadline, and the last device's ends at it. Equal devices choose alike.
    """
    fewest = Choice(max(1, terms.least_steps), terms.least_density)
    soonest = [seconds(device, fewest, terms) for device in devices]
    latest = max(seconds(device, Choice(terms.most_steps, terms.most_density), terms) for device in devices)
    low, high = max(soonest) if wait else min(soonest), max(latest, *soonest)
    tried = [low * (high / low) ** (i / (POINTS - 1)) for i in range(POINTS)]
    best = min(range(POINTS), key=lambda i: (progress(devices, tried[i], terms), tried[i]))
    a, b = tried[max(0, best - 1)], tried[min(POINTS - 1, best + 1)]
    found = [tried[best]]
    for _ in range(REFINED):
        inner = [b - GOLDEN * (b - a), a + GOLDEN * (b - a)]
        left, right = (progress(devices, t, terms) for t in inner)
        found += inner
        a, b = (a, inner[1]) if left <= right else (inner[0], b)
    deadline = min(found, key=lambda t: (progress(devices, t, terms), t))
    choices = [choose(device, deadline, terms) for device in devices]
    last = max(seconds(d, c, terms) for d, c in zip(devices, choices, strict=True) if c is not None)
    return last, choices


def spent(device: Device, joules: float) -> float:
    """The queue after a round that took so much energy: ``max(0, U + E - allowance)``."""
    return max(0.0, device.queue + joules - device.allowance) if math.isfinite(device.allowance) else 0.0


class Flex(NamedTuple):
    """FlexFL's controller of how many entries to send: ``queue`` (Q), ``tradeoff`` (V), costs and their mean."""

    queue: float = 1.0
    tradeoff: float = 0.02
    wanted: float = 0.01
    message: float = 0.0
    entry: float = 1e-6


def flex_count(x: Tensor, flex: Flex) -> tuple[int, Flex]:
    """How many of the largest entries of ``x`` to send, and the controller after it.

    A message of i > 0 entries costs ``message + entry i``, none costs nothing. What is least is
    ``V (energy of what is dropped) + Q (cost - wanted)``: every entry of which ``V x^2 > Q entry`` is worth its own
    cost, and all of them together must be worth the message's.

    Law:    the mean cost over many rounds comes to at most ``wanted``, for tensors of bounded energy.
    Source: FlexFL, arXiv:2212.08496.
    """
    squares = x.detach().double().reshape(-1).square()
    count = int((flex.tradeoff * squares > flex.queue * flex.entry).sum())
    gain = flex.tradeoff * float(squares.topk(count).values.sum()) if count else 0.0
    price = flex.message + flex.entry * count if count else 0.0
    if gain <= flex.queue * price:
        count, price = 0, 0.0
    return count, flex._replace(queue=max(LEAST_QUEUE, flex.queue + price - flex.wanted))


def affine(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Latency and rate from the bytes and seconds of two messages, as ``seconds = latency + bytes / rate``.

    From one message alone the latency would be taken for slowness, and a small message would make any link look slow.
    """
    (few, quick), (many, slow) = small, large
    rate = (many - few) / max(slow - quick, 1e-9)
    return max(0.0, quick - few / rate), rate
