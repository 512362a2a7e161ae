"""What a probe does, in which order, and how much of it the budget allows. Pure: nothing is sent here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

from laconic.bench import units
from laconic.errors import ConfigError
from laconic.links.network import FRAMES

PINGS = 11  # at most
WARM_UPS = 2  # of them
PING_BYTES = 2 * (PINGS + 1) * 256  # messages of a few numbers, and their acknowledgements
ORDER_BYTES = 1 << 14  # of an experiment's orders and answers, for each who takes part
CURVE_BYTES = 1 << 10  # of what came when, for each flow of many
WANTED_BYTES = 16 << 20  # of one flow: past any shaper's burst, and long enough on links of 1 Gbit/s
LEAST_BYTES = 1 << 18  # under which a shaper's burst may be all that is seen
WANTED_SECONDS = 1.0
LEAST_SECONDS = 0.2
AROUND_SECONDS = 0.05  # of an experiment, beside its flows and two round trips: orders, answers, what drains
LONGEST_STRETCH = 6.0  # times the usual length, for a flow on a link of long delay
REPEATS = 3
LATENCY, TOGETHER, ALONE, OUT, INTO = "latency", "together", "alone", "out", "into"

Pair = tuple[int, int]


class Experiment(NamedTuple):
    """What is done at once: ``flows`` from a sender to a receiver each, or for ``latency`` pairs there and back.

    ``essential`` ones measure each link once; the budget must have room for these.
    """

    kind: str
    flows: tuple[Pair, ...]
    essential: bool = False


class Limits(NamedTuple):
    """Of a whole probe, seconds and bytes on the wire; and of one flow, seconds and bytes of messages."""

    seconds: float
    nbytes: float
    flow_seconds: float
    flow_bytes: int


def rounds(workers: int) -> list[list[Pair]]:
    """All pairs in rounds of disjoint pairs, by the circle method: one stays, the others go round.

    Law:    each pair of workers meets once; there are ``workers - 1`` rounds, of an odd number ``workers`` with one
            resting in each.
    """
    seats: list[int | None] = [*range(workers), *([None] if workers % 2 else [])]
    half = len(seats) // 2
    found = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[:half], reversed(seats[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found if workers > 1 else []


def fans(workers: int) -> list[int]:
    """With how many peers at once a worker is measured: all first, for the caps, then 2, 4, 8, … for the incast."""
    most = workers - 1
    return [most, *(k for k in (2, 4, 8, 16, 32, 64) if k < most)] if most > 1 else []


def experiments(
    workers: int, settled: Collection[Pair] = (), repeats: int = REPEATS, fanned: Collection[int] = ()
) -> list[Experiment]:
    """What is to be measured, the most needed first; directions in ``settled`` and fans at ``fanned`` are left out.

    First each pair's latency, then each link in rounds of disjoint pairs, both ways at once; then each alone; each
    worker with all peers at once, out and in; then the links again, for their spread; last, workers with fewer peers.
    """
    wanted = {pair for pair in permutations(range(workers), 2) if pair not in set(settled)}
    found: list[Experiment] = []
    met = rounds(workers)
    for turn in met:
        pairs = tuple(pair for pair in turn if pair in wanted or pair[::-1] in wanted)
        if pairs:
            found.append(Experiment(LATENCY, pairs, essential=True))
    wide, narrow = fans(workers)[:1], fans(workers)[1:]
    for repeat in range(repeats):
        found += _links(met, wanted, first=repeat == 0)
        found += _fanned(workers, wide if repeat == 0 else [], fanned)
    for repeat in range(repeats):
        found += _fanned(workers, narrow if repeat == 0 else [*wide, *narrow], fanned)
    return found


def _links(met: Sequence[Sequence[Pair]], wanted: Collection[Pair], first: bool) -> Iterator[Experiment]:
    for turn in met:
        both = [way for pair in turn for way in (pair, pair[::-1]) if way in wanted]
        if both:
            yield Experiment(TOGETHER, tuple(both), essential=first)
    for turn in met:
        for pair in turn:
            yield from (Experiment(ALONE, (way,)) for way in (pair, pair[::-1]) if way in wanted)


def _fanned(workers: int, ks: Sequence[int], fanned: Collection[int]) -> Iterator[Experiment]:
    for k in ks:
        for worker in range(workers):
            if worker in fanned:
                continue
            peers = [(worker + hop) % workers for hop in range(1, k + 1)]
            yield Experiment(OUT, tuple((worker, peer) for peer in peers))
            yield Experiment(INTO, tuple((peer, worker) for peer in peers))


def limits(planned: Sequence[Experiment], seconds: float, nbytes: float) -> Limits:
    """How long and how large a flow may be, so that each link is measured once at least.

    Raises: ConfigError if the budget has no room for that, with the room it takes.
    """
    needed = [experiment for experiment in planned if experiment.essential]
    flows = sum(len(experiment.flows) for experiment in needed if experiment.kind != LATENCY)
    turns = sum(experiment.kind != LATENCY for experiment in needed)
    others = sum(beside(experiment) for experiment in needed)
    if not flows:
        return Limits(seconds, nbytes, WANTED_SECONDS, WANTED_BYTES)
    room = int((nbytes - others) / FRAMES / flows)
    if room < LEAST_BYTES:
        least = units.size(flows * LEAST_BYTES * FRAMES + others)
        raise ConfigError(
            f"probe: {flows} links measured once take at least {least}, and the limit is {units.size(nbytes)}; "
            "raise --bytes, or probe fewer machines at a time"
        )
    around = AROUND_SECONDS * len(needed)
    longest = (seconds - around) / turns
    if longest < LEAST_SECONDS:
        least = units.duration(turns * LEAST_SECONDS + around)
        raise ConfigError(
            f"probe: {flows} links measured once take at least {least}, and the links' share of the limit is "
            f"{units.duration(max(0.0, seconds))}; raise --seconds, or probe fewer machines at a time"
        )
    return Limits(seconds, nbytes, min(WANTED_SECONDS, longest), min(WANTED_BYTES, room))


def flow_bytes(experiment: Experiment, limits: Limits) -> int:
    """Bytes of messages in each of an experiment's flows at most; a fan's share one flow's, as they share a link."""
    if experiment.kind in (OUT, INTO):
        return max(LEAST_BYTES, limits.flow_bytes // len(experiment.flows))
    return limits.flow_bytes


def cost(experiment: Experiment, limits: Limits) -> float:
    """Bytes on the wire that an experiment takes at most, what is lost and sent again left aside."""
    if experiment.kind == LATENCY:
        return beside(experiment)
    return len(experiment.flows) * flow_bytes(experiment, limits) * FRAMES + beside(experiment)


def most(planned: Sequence[Experiment], limits: Limits) -> float:
    """Bytes on the wire that all of it takes at most."""
    return min(limits.nbytes, sum(cost(experiment, limits) for experiment in planned))


def length(limits: Limits, delay: float) -> float:
    """Seconds of a flow between workers with a message ``delay`` seconds on its way there and back.

    TCP finds a link's rate in round trips, so a flow takes at least twenty of them.
    """
    return min(max(limits.flow_seconds, 20 * delay), LONGEST_STRETCH * limits.flow_seconds)


def fits(experiment: Experiment, limits: Limits, spent_seconds: float, spent_bytes: float, delay: float = 0.0) -> bool:
    """Whether there is time and are bytes left for an experiment, by the most that it may take."""
    takes = AROUND_SECONDS + 2 * delay + (0.0 if experiment.kind == LATENCY else length(limits, delay))
    return spent_seconds + takes <= limits.seconds and spent_bytes + cost(experiment, limits) <= limits.nbytes


def told(left_out: Sequence[Experiment]) -> list[str]:
    """What the budget did not reach, in sentences."""
    counts = {kind: sum(e.kind == kind for e in left_out) for kind in (LATENCY, TOGETHER, ALONE, OUT, INTO)}
    words = {
        LATENCY: "{n} rounds of latency",
        TOGETHER: "{n} rounds of all pairs at once",
        ALONE: "{n} flows alone",
        OUT: "{n} times one to many",
        INTO: "{n} times many to one",
    }
    found = [words[kind].format(n=n) for kind, n in counts.items() if n]
    return [f"left out, for the limits: {', '.join(found)}"] if found else []


def beside(experiment: Experiment) -> float:
    """Bytes on the wire of an experiment's orders, answers and small messages, at most."""
    taking_part = len({worker for flow in experiment.flows for worker in flow})
    pings = len(experiment.flows) * PING_BYTES if experiment.kind == LATENCY else 0
    return taking_part * ORDER_BYTES + len(experiment.flows) * CURVE_BYTES + pings
