"""HCEF: uneven workers each take as many local steps, and send as much of them, as fits the round."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.aggregate.mean import weighted_mean
from laconic.compress.base import Compressor, share
from laconic.compress.topk import topk
from laconic.errors import ClashError, ConfigError, PacketError, unknown
from laconic.exchange.adaptive import SESSION, levels
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.base import Link
from laconic.packet import Message, Packet
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, drift, master, named, positive
from laconic.sync.control import LEAST_QUEUE, Choice, Device, Flex, Terms, affine, energy, flex_count, plan, spent

SMOOTHING = 0.3  # the newest measurement's share
PROBE = 1 << 16  # bytes of the larger of two messages that a link's rate is measured by
FIELDS = ("step", "rate", "latency", "share", "joules", "power", "allowance", "queue")
CONTROLS = ("plan", "flexfl")
FLEX_WEIGHT = 100.0  # of dropped energy against a budget of 1: less, and a queue of few rounds swings
ENDLESS = 1e300  # an allowance without end, where JSON has no infinity


@checkpointed
class HcefState(NamedTuple):
    """``round`` counts rounds, ``step`` this worker's steps in this one; ``steps`` and ``density`` are its choice.

    ``mean_steps`` is the mean of all workers' choices, by their shares of the data. ``seconds`` of a local step,
    ``rate`` and ``latency`` of this worker's link are smoothed, 0 where not measured yet. ``queue`` is of energy,
    with flexfl of seconds spent sending.
    Since ``began`` on the clock of process ``session``, all steps but the first ``counted`` of the round were taken.
    ``taken`` is the mean number of steps that workers took in the rounds that have ended, ``even`` that of this one.
    """

    round: int
    step: int
    steps: int
    density: float
    mean_steps: float
    seconds: float
    rate: float
    latency: float
    queue: float
    deadline: float
    session: int
    began: float
    counted: int
    taken: float
    even: float
    anchor: list[Tensor]
    exchange: Any


def hcef(
    kind: Callable[[float], Compressor] = topk,
    least_steps: int = 1,
    most_steps: int = 50,
    least_density: float = 0.01,
    most_density: float = 1.0,
    weight: float = 1.0,
    drift_cost: float = 0.01,
    variance_cost: float = 0.05,
    joules: float = 0.0,
    power: float = 0.0,
    allowance: float | None = None,
    tradeoff: float = 1.0,
    control: str = "plan",
    budget: float = 1.0,
) -> Sync:
    """In each round take tau steps alone, send their sum at density theta, and move to the mean of all workers.

    Each worker has a tau and a theta of its own, chosen anew each round from what all have measured
    (:mod:`laconic.sync.control`), so that all are ready at about the same time. A worker's change is multiplied by
    ``mean tau / tau`` before it is compressed: otherwise the fast would pull the mean their way. ``weight`` is this
    worker's share of the data, and ``drift_cost`` and ``variance_cost`` are what tau squared and ``1/theta - 1`` cost
    in steps of progress. With an ``allowance`` of joules a round, at ``joules`` a step and ``power`` watts while
    sending, a worker that has spent more is given less to do. In each round one worker in turn measures its link, by
    two messages to the next.

    With ``control`` flexfl steps are dealt by speed alone, ``most_steps`` to the fastest, and each worker decides by
    itself, when it sends, how many entries: FlexFL's controller. A message costs its seconds on the measured link, at
    most ``budget`` of them a round on average. Energies are taken as shares of the whole, so ``tradeoff`` has no unit.

    Workers take unequal numbers of steps: end a loop by ``sync.rounds``, which all count alike.

    Wire:   the compressor's at theta, once a round; two messages and their answers to one peer in turn, of 64 kB
            together; a few numbers to every peer.
    Law:    with equal tau and theta 1 it is :func:`local_steps`, which is federated averaging.
    Raises: ConfigError for settings out of range.
    Source: the two controls of HCEF, arXiv:2409.04022, as this project reconstructs them from its abstract: its
            formulas are not the paper's. The normalisation: Wang et al. 2020, arXiv:2007.07481 (FedNova). The other
            control: FlexFL, arXiv:2212.08496.
    """
    flexible = control == "flexfl"
    limits = Terms(0.0, 1.0, drift_cost, variance_cost, tradeoff, least_steps, most_steps, least_density, most_density)
    check_settings(limits, joules, power, allowance)
    check_control(control, budget, energetic=allowance is not None or joules > 0 or power > 0)
    fixed = least_steps == most_steps and least_density == most_density
    rule = weighted_mean(weight)
    if not fixed:
        levels(kind, sorted({least_density, most_density, 1.0}), "hcef")

    def talk(density: float) -> Exchange:
        return everyone(levels(kind, [density], "hcef")[0], rule)

    def init(params: Any) -> HcefState:
        anchor = [master(p) for p in named(params).values()]
        state = talk(most_density).init(anchor)
        nothing = (0.0, 0.0, 0.0, float(flexible), 0.0, 0, 0.0, 0)
        steps = float(least_steps)
        return HcefState(0, 0, least_steps, float(most_density), steps, *nothing, 0.0, steps, anchor, state)

    def after_step(params: Params, state: HcefState, link: Link) -> tuple[Updates, HcefState]:
        step = state.step + 1
        if not fixed and state.session != SESSION:  # the first step here, which nobody has timed
            state = state._replace(session=SESSION, began=link.now(), counted=step)
        if step < state.steps:
            return {}, state._replace(step=step)
        took = (link.now() - state.began) / (step - state.counted) if not fixed and step > state.counted else 0.0
        moved = [d.mul_(state.mean_steps / state.steps) for d in drift(state.anchor, params)]
        if flexible and not fixed and state.rate:
            state = flexed(state, moved, limits._replace(nbytes=message_nbytes(kind(1.0), moved)), budget)
        mean, exchanged = link.start(talk(state.density).run, moved, state.exchange, link).result()
        anchor = [a - m for a, m in zip(state.anchor, mean, strict=True)]
        after = state._replace(
            round=state.round + 1, step=0, taken=state.taken + state.even, anchor=anchor, exchange=exchanged
        )
        if not fixed:
            after = link.start(decided, after, took, link).result()._replace(began=link.now(), counted=0)
        return dict(enumerate(anchor)), after

    def decided(state: HcefState, took: float, link: Link) -> HcefState:
        """Measure, tell, hear, and choose: the same plan on every worker."""
        state = measured(state, took, link)
        own = Device(state.seconds, state.rate, state.latency, weight, joules, power, allowance or ENDLESS, state.queue)
        devices = [_device(m) for m in link.all_gather([Packet({}, {"device": list(own)})])]
        if any(d.step <= 0 or d.rate <= 0 for d in devices):  # not all are measured yet
            return state
        terms = limits._replace(nbytes=message_nbytes(kind(1.0), state.anchor))
        if flexible:
            return by_speed(state, devices, terms, link.rank)
        if allowance is not None:
            used = energy(own, Choice(state.steps, state.density), terms)
            state = state._replace(queue=spent(own, used))
        deadline, choices = plan(devices, terms, wait=True)
        taken = [c for c in choices if c is not None]
        assert len(taken) == link.size, "no worker is left out of a plan that waits for all"
        whole = sum(d.share for d in devices)
        mean_steps = sum(d.share * c.steps for d, c in zip(devices, taken, strict=True)) / whole
        mine, even = taken[link.rank], sum(c.steps for c in taken) / link.size
        now = state._replace(steps=mine.steps, density=mine.density, mean_steps=mean_steps, deadline=deadline)
        return now._replace(even=even)

    def model(params: Params, state: HcefState) -> list[Tensor]:
        return state.anchor

    name = f"hcef({talk(most_density).name}, steps={least_steps} to {most_steps}, "
    return Sync(
        init,
        None,
        after_step,
        model,
        name=name + f"densities={least_density:g} to {most_density:g}, {control})",
        exchange=talk(most_density),
        rounds=None if fixed else lambda state: state.round,
        taken=None if fixed else lambda state: state.taken + state.even * state.step / state.steps,
    )


def check_settings(limits: Terms, joules: float, power: float, allowance: float | None) -> None:
    """Check what :func:`hcef` is given.

    Raises: ConfigError.
    """
    positive("hcef", "least_steps", limits.least_steps)
    positive("hcef", "most_steps", limits.most_steps)
    share("hcef", limits.least_density, "least_density")
    share("hcef", limits.most_density, "most_density")
    if limits.least_steps > limits.most_steps or limits.least_density > limits.most_density:
        raise ConfigError(
            f"hcef: needs least <= most, got steps {limits.least_steps} to {limits.most_steps}, densities "
            f"{limits.least_density:g} to {limits.most_density:g}"
        )
    costs = {"drift_cost": limits.drift, "variance_cost": limits.variance, "joules": joules, "power": power}
    for setting, value in costs.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"hcef: {setting} must be at least 0, got {value}")
    if (allowance is not None and not 0 < allowance < math.inf) or not limits.tradeoff > 0:
        raise ConfigError(f"hcef: allowance and tradeoff must be positive, got {allowance} and {limits.tradeoff}")


def check_control(control: str, budget: float, energetic: bool) -> None:
    """Check which controller is to decide.

    Raises: ConfigError, ClashError.
    """
    if control not in CONTROLS:
        raise unknown("hcef control", control, CONTROLS)
    if not 0 < budget < math.inf:
        raise ConfigError(f"hcef: budget must be positive, got {budget}; it is seconds of sending in a round")
    if control == "flexfl" and energetic:
        raise ClashError("hcef: only the plan knows of energy; leave joules, power and allowance out with flexfl")


def by_speed(state: HcefState, devices: list[Device], terms: Terms, rank: int) -> HcefState:
    """Steps in proportion to speed, the most for the fastest."""
    quickest = min(d.step for d in devices)
    taken = [max(terms.least_steps, round(terms.most_steps * quickest / d.step)) for d in devices]
    whole = sum(d.share for d in devices)
    mean_steps = sum(d.share * steps for d, steps in zip(devices, taken, strict=True)) / whole
    deadline = max(d.step * steps for d, steps in zip(devices, taken, strict=True))
    now = state._replace(steps=taken[rank], mean_steps=mean_steps, deadline=deadline)
    return now._replace(even=sum(taken) / len(taken))


def flexed(state: HcefState, moved: list[Tensor], terms: Terms, budget: float) -> HcefState:
    """The density at which a change is sent now by FlexFL's controller, and the queue after it.

    Law:    the mean cost comes to at most ``budget`` seconds a round, or to what the least density costs.
    """
    held = [getattr(inner, "residual", None) for inner in state.exchange.inner]
    parts = [m if r is None else m + r for m, r in zip(moved, held, strict=True)]
    whole = torch.cat([part.reshape(-1) for part in parts]).double()
    norm = float(whole.norm())
    price = terms.nbytes / state.rate / budget  # of everything
    flex = Flex(state.queue, FLEX_WEIGHT * terms.tradeoff, 1.0, state.latency / budget, price / whole.numel())
    count, _ = flex_count(whole / norm if norm else whole, flex)
    density = min(max(count / whole.numel(), terms.least_density), terms.most_density)
    cost = flex.message + density * price  # a round is never left out, so the least is always paid
    return state._replace(density=density, queue=max(LEAST_QUEUE, state.queue + cost - 1.0))


def measured(state: HcefState, took: float, link: Link) -> HcefState:
    """The state with this round's measurements in it: of a step, and of the link if it is this worker's turn."""
    if took > 0:
        state = state._replace(seconds=took if not state.seconds else smooth(state.seconds, took))
    if link.size == 1:
        return state._replace(rate=ENDLESS)
    turn = state.round % link.size
    if turn == link.rank:
        latency, rate = probe(link)
        if state.rate:
            latency = smooth(state.latency, latency)
            rate = 1 / smooth(1 / state.rate, 1 / rate)  # of seconds a byte, which is what adds up
        return state._replace(latency=latency, rate=rate)
    if turn == (link.rank - 1) % link.size:
        answer(link)
    return state


def smooth(old: float, new: float) -> float:
    """The exponential mean of measurements."""
    return old + SMOOTHING * (new - old)


def probe(link: Link) -> tuple[float, float]:
    """This worker's latency and rate, by the time until the next worker has answered a small and a large message."""
    to, found = (link.rank + 1) % link.size, []
    for count in (1, PROBE):
        message = [Packet({"x": torch.zeros(count, dtype=torch.uint8)})]
        start, before = link.now(), link.meter.bytes_out
        link.send(message, to)
        link.recv(to)
        found.append((link.meter.bytes_out - before, link.now() - start))
    return affine(found[0], found[1])


def answer(link: Link) -> None:
    """The other end of :func:`probe`."""
    source = (link.rank - 1) % link.size
    for _ in range(2):
        link.recv(source)
        link.send([Packet({})], source)


def message_nbytes(compressor: Compressor, tensors: list[Tensor]) -> float:
    """Bytes of one worker's message at density 1, a place for each entry included; found without data."""
    likes = [torch.empty_like(t, device="meta") for t in tensors]
    return float(sum(compressor.compress(like, compressor.init(like))[0].nbytes for like in likes))


def _device(message: Message) -> Device:
    numbers = message[0].header.get("device") if len(message) == 1 else None
    if not isinstance(numbers, list) or len(numbers) != len(FIELDS):
        raise PacketError(f"hcef: wanted a peer's {len(FIELDS)} measurements, got {str(numbers)[:60]}")
    if not all(type(n) in (int, float) and 0 <= n < math.inf for n in numbers):
        raise PacketError(f"hcef: a peer's measurements are {str(numbers)[:60]}, wanted numbers from 0 on")
    return Device(*(float(n) for n in numbers))
