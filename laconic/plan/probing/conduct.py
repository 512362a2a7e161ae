"""Worker 0's part: it orders the experiments one after the other, and gathers what all have found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from laconic.bench import units
from laconic.errors import ConfigError
from laconic.links.base import Link
from laconic.plan.measured import Fan, LinkMeasured, MachineMeasured, Measured, Spread, spread
from laconic.plan.measured_tables import read_measured
from laconic.plan.probing import talk
from laconic.plan.probing.curve import Curve, steady, total
from laconic.plan.probing.schedule import (
    ALONE,
    INTO,
    LATENCY,
    LEAST_SECONDS,
    OUT,
    TOGETHER,
    Experiment,
    Limits,
    Pair,
    beside,
    fits,
    flow_bytes,
    length,
    told,
)

Look = Callable[[talk.Order], talk.Answer]
PING_SHARE = 0.5  # of an experiment's part of the time, for pings; the rest is left for their flows
LATE = 1.1  # times its seconds from which on a probe says that it took longer
SHARED = 1.05  # alone over together: from here on something between the pairs is shared


@dataclass
class Notes:
    """What has been found so far, by ranks."""

    there: dict[Pair, list[float]] = field(default_factory=lambda: defaultdict(list))
    halves: dict[Pair, list[float]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[str, dict[Pair, list[float]]] = field(
        default_factory=lambda: {TOGETHER: defaultdict(list), ALONE: defaultdict(list)}
    )
    fans: dict[str, dict[Pair, list[float]]] = field(
        default_factory=lambda: {OUT: defaultdict(list), INTO: defaultdict(list)}
    )
    lost: dict[tuple[str, int, int], float] = field(default_factory=dict)
    ahead: dict[Pair, float] = field(default_factory=dict)  # seconds that the second's clock is before the first's
    bursts: dict[Pair, list[float]] = field(default_factory=lambda: defaultdict(list))
    frames: dict[Pair, float] = field(default_factory=dict)
    wire: float = 0.0
    blind: int = 0


def conduct(
    link: Link,
    names: Sequence[str],
    planned: Sequence[Experiment],
    limits: Limits,
    look: Look,
    looking: talk.Order,
    on: str,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Measured:
    """Measure as planned, within limits, and say what was found; the others :func:`talk.serve`.

    ``look`` measures this machine by the order ``looking``, as all others do at the same time; an order of no workload
    measures none.

    Raises: PeerTimeout, PeerLost: who does not answer; ConfigError if a link showed no rate.
    """
    talk.ready(link)
    machines = {}
    if looking.get("workload"):
        tell("each machine by itself: a training step, memory, compressors")
        machines = _looked(link, names, look, looking)
    link.timeout = limits.seconds + talk.GRACE  # from here on nobody is busy with itself
    begun, notes, left_out, aside = link.now(), Notes(), [], 0.0
    for place, experiment in enumerate(planned):
        delay = max((_around(notes, flow) for flow in experiment.flows), default=0.0)
        spent = link.now() - begun
        if not experiment.essential and not fits(experiment, limits, spent, notes.wire + aside, delay):
            left_out.append(experiment)
            continue
        aside += beside(experiment)
        still = sum(other.essential for other in planned[place:])
        share = (limits.seconds - spent) / max(1, still)
        if experiment.kind == LATENCY:
            _pinged(link, experiment, PING_SHARE * share, notes, looking["clocks"])
        else:
            longest = max(LEAST_SECONDS, share - 2 * delay)
            _flowed(link, experiment, flow_bytes(experiment, limits), min(longest, length(limits, delay)), notes)
    for peer in link.peers():
        talk.say(link, peer, {"do": "end"})
    seconds = link.now() - begun
    sentences = [*told(left_out), *remarks(notes, names)]
    if seconds > LATE * limits.seconds:
        sentences.append(
            f"links took {units.duration(seconds)} where {units.duration(limits.seconds)} were meant: each is measured "
            "once in any case"
        )
    links = _links(notes, names)
    for a, b in {flow for experiment in planned if experiment.kind == TOGETHER for flow in experiment.flows}:
        if not notes.rates[TOGETHER][a, b] and not notes.rates[ALONE][a, b]:
            raise ConfigError(f"probe: no flow from {names[a]} to {names[b]} showed a rate; raise --bytes or --seconds")
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    for name, machine in _fanned(notes, names).items():
        machines[name] = machines.get(name, MachineMeasured()).and_then(machine)
    return Measured(links, machines, on, when, seconds, notes.wire, tuple(sentences))


def _looked(link: Link, names: Sequence[str], look: Look, order: talk.Order) -> dict[str, MachineMeasured]:
    clocks: Sequence[str] = order["clocks"]
    answers: dict[int, talk.Answer] = {}
    for rank in reversed(range(link.size)):
        mine = {"do": "look", **order, "sharing": clocks.count(clocks[rank]), "rank": rank, "workers": link.size}
        if rank == 0:
            answers[0] = look(mine)
        else:
            talk.say(link, rank, mine)
    for rank in link.peers():
        answers[rank] = talk.heard(link, rank)
    raw = {"machines": [{"name": names[rank]} | answers[rank] for rank in range(link.size)]}
    return read_measured(raw, names).machines


def _pinged(link: Link, experiment: Experiment, seconds: float, notes: Notes, clocks: Sequence[str]) -> None:
    orders: dict[int, talk.Order] = {}
    for a, b in experiment.flows:
        for rank, peer in ((a, b), (b, a)):
            orders[rank] = {"do": "ping", "peer": peer, "leads": rank == a, "seconds": seconds}
    answers = _ordered(link, orders)
    for a, b in experiment.flows:
        found = answers[a]
        notes.halves[a, b] += [seconds / 2 for seconds in found["around"]]
        notes.halves[b, a] += [seconds / 2 for seconds in found["around"]]
        differences = [(there - back) / 2 for there, back in zip(found["there"], found["back"], strict=True)]
        ahead = 0.0 if clocks[a] == clocks[b] else Spread(tuple(differences)).median
        notes.ahead |= {(a, b): ahead, (b, a): -ahead}
        if clocks[a] == clocks[b]:
            notes.there[a, b] += found["there"]
            notes.there[b, a] += found["back"]


def _flowed(link: Link, experiment: Experiment, nbytes: int, seconds: float, notes: Notes) -> None:
    taking_part = sorted({worker for flow in experiment.flows for worker in flow})
    orders: dict[int, talk.Order] = {}
    for rank in taking_part:
        to, sources = talk.partners(experiment.flows, rank)
        orders[rank] = {"do": "flow", "send": to, "hear": sources, "nbytes": nbytes, "seconds": seconds}
    answers = _ordered(link, orders)
    curves = {(a, b): answers[b]["came"][str(a)] for a, b in experiment.flows}
    sent = {(a, b): answers[a]["sent"][str(b)] for a, b in experiment.flows}
    for flow, said in sent.items():
        notes.frames[flow] = said["frames"]
        notes.wire += (said["nbytes"] + said["again"]) * said["frames"]
    if experiment.kind in (TOGETHER, ALONE):
        for flow, curve in curves.items():
            rate = steady(curve)
            if rate is None:
                notes.blind += 1
                continue
            notes.rates[experiment.kind][flow].append(rate.bandwidth)
            notes.bursts[flow].append(rate.burst)
        return
    whole = total([_on_one_clock(notes, experiment.kind, flow, curve) for flow, curve in curves.items()])
    at = experiment.flows[0][0 if experiment.kind == OUT else 1], len(experiment.flows)
    if whole is None:
        notes.blind += 1
        return
    notes.fans[experiment.kind][at].append(whole)
    whole_bytes = sum(said["nbytes"] for said in sent.values())
    notes.lost[(experiment.kind, *at)] = sum(said["again"] for said in sent.values()) / max(1, whole_bytes)


def _on_one_clock(notes: Notes, kind: str, flow: Pair, curve: Curve) -> Curve:
    """What came of a fan's flow by the clock of the worker in its middle.

    Clocks apart are set by the pings, as if there and back took the same; where there were none, by the first byte.
    """
    if kind == INTO or not curve:
        return curve
    ahead = notes.ahead.get(flow, curve[0][0])
    return [(t - ahead, c) for t, c in curve]


def _ordered(link: Link, orders: Mapping[int, talk.Order]) -> dict[int, talk.Answer]:
    """Give each its order, do mine, and wait for all answers."""
    for rank in sorted(orders, reverse=True):
        if rank:
            talk.say(link, rank, {**orders[rank], "patience": link.timeout})
    answers = {0: talk.obey(link, orders[0], _nothing)} if 0 in orders else {}
    return answers | {rank: talk.heard(link, rank) for rank in orders if rank}


def _nothing(order: talk.Order) -> talk.Answer:
    raise ConfigError("probe: a machine is looked at before the links are measured, not among them")


def _around(notes: Notes, flow: Pair) -> float:
    halves = notes.halves.get(flow)
    return 2 * min(halves) if halves else 0.0


# -- what was found -------------------------------------------------------------------------------------------------


def _links(notes: Notes, names: Sequence[str]) -> dict[tuple[str, str], LinkMeasured]:
    rates = notes.rates
    found = {}
    for a, b in sorted({*notes.halves, *rates[TOGETHER], *rates[ALONE]}):
        one_way = (a, b) in notes.there
        latency = [max(0.0, s) for s in (notes.there if one_way else notes.halves).get((a, b), [])]
        found[names[a], names[b]] = LinkMeasured(
            alone=spread(rates[ALONE].get((a, b), [])),
            together=spread(rates[TOGETHER].get((a, b), [])),
            latency=spread(latency),
            one_way=one_way,
            burst=Spread(tuple(notes.bursts[a, b])).median if notes.bursts.get((a, b)) else 0.0,
            frames=notes.frames.get((a, b), 1.0),
        )
    return found


def _fanned(notes: Notes, names: Sequence[str]) -> dict[str, MachineMeasured]:
    found: dict[str, dict[str, dict[int, Fan]]] = defaultdict(lambda: {OUT: {}, INTO: {}})
    for way, fans in notes.fans.items():
        for (rank, peers), values in fans.items():
            found[names[rank]][way][peers] = Fan(peers, Spread(tuple(values)), notes.lost[way, rank, peers])
    return {name: MachineMeasured(out=ways[OUT], into=ways[INTO]) for name, ways in found.items()}


def remarks(notes: Notes, names: Sequence[str]) -> list[str]:
    """What the file's numbers cannot say, in sentences."""
    found = []
    both = {flow: Spread(tuple(values)).median for flow, values in notes.rates[TOGETHER].items()}
    alone = {flow: Spread(tuple(values)).median for flow, values in notes.rates[ALONE].items()}
    ratios = {flow: alone[flow] / both[flow] for flow in both.keys() & alone.keys()}
    shared = {flow: ratio for flow, ratio in ratios.items() if ratio > SHARED}
    if shared:
        (a, b), ratio = max(shared.items(), key=lambda item: item[1])
        found.append(
            f"{len(shared)} of {len(ratios)} links are slower when all pairs are busy, most from {names[a]} to "
            f"{names[b]}, {ratio:.2g} times: something between them is shared, which a cluster file cannot say"
        )
    if notes.blind:
        found.append(f"{notes.blind} flows ended too soon to show a rate, and do not count")
    return found
