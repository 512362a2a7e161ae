"""A few random others each round: as many as a budget says, that may change along the run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.compress.base import Compressor, accumulate, count
from laconic.compress.identity import identity
from laconic.errors import ConfigError, unknown
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.everyone import EveryoneState, everyone
from laconic.exchange.graph import GraphState, states, swap, whole_values
from laconic.exchange.topology import shape
from laconic.links.base import Link
from laconic.packet import Packet, check_shape

STEEP = 5.0  # how fast an exponential schedule falls: to e^-5 at its other end

# What the budget is, of its base r0 and its peak r1, in a round of so many. Windows begin at whole rounds, so that
# those of one width have one number of rounds.
SCHEDULES: dict[str, Callable[[int, int, float, float, float, float], float]] = {
    "fixed": lambda at, rounds, low, high, start, window: low,
    "truncate": lambda at, rounds, low, high, start, window: low if at < round(start * rounds) else high,
    "truncate_v2": lambda at, rounds, low, high, start, window: (
        high if 0 <= at - round(start * rounds) < round(window * rounds) else low
    ),
    "linear": lambda at, rounds, low, high, start, window: high + (low - high) * at / rounds,
    "cosine": lambda at, rounds, low, high, start, window: (
        low + (high - low) * (1 + math.cos(math.pi * at / rounds)) / 2
    ),
    "exponential": lambda at, rounds, low, high, start, window: low + (high - low) * math.exp(-STEEP * at / rounds),
    "late": lambda at, rounds, low, high, start, window: low + (high - low) * math.exp(-STEEP * (1 - at / rounds)),
}


def neighbours(
    compressor: Compressor | None = None,
    budget: float = 0.2,
    schedule: str = "fixed",
    rounds: int | None = None,
    peak: float | None = None,
    start: float = 0.9,
    window: float = 0.05,
    graph: str = "complete",
    seed: int = 0,
) -> Exchange:
    """Take the mean of my tensors and those of ``budget`` random others: 0.2 is one of them in one round of five.

    Each worker hears from the whole part of ``budget``, and from one more with the rest as probability, drawn anew each
    round among its neighbours in ``graph``. ``schedule`` moves the budget over the ``rounds`` of a run: ``truncate``
    goes from ``budget`` to ``peak`` (by default everyone) at the share ``start``, ``truncate_v2`` is at ``peak`` only
    for the share ``window``, ``linear``, ``cosine`` and ``exponential`` fall from ``peak`` to ``budget``, ``late``
    rises to ``peak``. A round in which everyone is to hear everyone is one all-reduce.

    Wire:   one message of the packets' bytes for each worker that is heard: ``budget`` a round on average.
    Law:    the rows of the matrix sum to 1; its columns do not, so the mean over the workers drifts.
    Raises: ConfigError for settings out of range, a budget larger than the number of others; ClashError for a
            compressor that leaves out parts of the tensors.
    Source: arXiv:2507.06542 ("A Single Merging Suffices"), and its code's schedules.
    """
    count("neighbours", seed, "seed", None)
    inner = compressor if compressor is not None else identity()
    whole_values("neighbours", inner)
    plan = shape(graph, seed)
    if schedule not in SCHEDULES:
        raise unknown("neighbours schedule", schedule, SCHEDULES)
    for name, value in (("budget", budget), ("peak", peak)):
        if value is not None and not 0 <= value < math.inf:
            raise ConfigError(f"neighbours: {name} must be at least 0, got {value}; it is a mean number of others")
    for name, value in (("start", start), ("window", window)):
        if not 0 <= value <= 1:
            raise ConfigError(f"neighbours: {name} must be in [0, 1], got {value}; it is a share of the run")
    if schedule == "fixed":
        rounds = rounds if rounds is not None else 1
    elif rounds is None:
        raise ConfigError(f"neighbours: schedule {schedule!r} moves along the run, so say how many rounds it has")
    total = count("neighbours", rounds, "rounds")
    dense = everyone(inner, small=inner)

    def size_of(size: int, round: int) -> float:
        """The budget of a round: how many others a worker hears from, on average."""
        high = size - 1 if peak is None else peak
        return SCHEDULES[schedule](min(round, total), total, budget, high, start, window)

    def init(tensors: Tensors) -> GraphState:
        return GraphState(0, states("neighbours", inner, tensors))

    def run(tensors: Tensors, state: GraphState, link: Link) -> tuple[list[Tensor], GraphState]:
        wanted = size_of(link.size, state.round)
        if wanted >= link.size - 1 and graph == "complete":
            mean, after = dense.run(tensors, EveryoneState(state.inner), link)
            return mean, GraphState(state.round + 1, after.inner)
        here = plan.among(link.size) if link.size > 1 else None
        lists = [sample(here.sources(r, 0), wanted, seed, state.round, r) for r in range(link.size)] if here else [[]]
        sources, targets = lists[link.rank], [r for r in range(link.size) if link.rank in lists[r]]
        with link.meter.compressing():
            # Also where nobody listens: what a compressor remembers goes on alike on all workers.
            sent = [inner.compress(t, s) for t, s in zip(tensors, state.inner, strict=True)]
        heard = swap([packet for packet, _ in sent], targets, sources, link)
        with link.meter.compressing():
            mixed = [_mean(inner, t, [m[i] for m in heard]) for i, t in enumerate(tensors)]
        return mixed, GraphState(state.round + 1, [after for _, after in sent])

    def among(size: int) -> str:
        here = plan.among(size)
        most = min(len(here.sources(rank, 0)) for rank in range(size))
        if len(here.rounds) > 1:
            raise ConfigError(
                f"neighbours: graph {plan.name} changes from round to round, and neighbours do so already"
            )
        highest = max(size_of(size, round) for round in range(total))
        if size > 1 and highest > most:
            raise ConfigError(
                f"neighbours: a worker is to hear from {highest:g} others a round, and in graph {plan.name} of {size} "
                f"workers some have only {most}; use a smaller budget or peak"
            )
        mean = sum(size_of(size, round) for round in range(min(total, 1000))) / min(total, 1000)
        return f"graph {plan.name}: {mean:.3g} random others a round on average, at most {math.ceil(highest)}"

    along = "" if schedule == "fixed" else f", {schedule} over {total}"
    return Exchange(
        init,
        run,
        equal=False,
        name=f"neighbours({inner.name}, {budget:g}{along}, {plan.name})",
        momentum=inner.momentum,
        among=among,
    )


def sample(others: list[int], budget: float, seed: int, round: int, rank: int) -> list[int]:
    """Whom ``rank`` hears from in this round: a function of the arguments alone, so that those who send know it too."""
    draw = random.Random(f"neighbours/{seed}/{round}/{rank}")
    wanted = int(budget) + (draw.random() < budget - int(budget))
    return sorted(draw.sample(others, min(wanted, len(others))))


def _mean(inner: Compressor, mine: Tensor, heard: list[Packet]) -> Tensor:
    """The mean of mine and what was heard, each with the same weight."""
    total = mine.detach().to(torch.promote_types(mine.dtype, torch.float32), copy=True)
    for packet in heard:
        check_shape(packet, mine)
        accumulate(inner, packet.to(mine.device), total)
    return total.div_(1 + len(heard)).to(mine.dtype)
