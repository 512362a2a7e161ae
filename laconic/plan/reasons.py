"""A ranking in words: why the first way is first, why the plain one is not, and what a change to the cluster brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from laconic.bench import units
from laconic.links.network import Connection, Network
from laconic.plan.ledger import Learnt
from laconic.plan.price import Price
from laconic.plan.prior import Prior
from laconic.plan.ranking import ALONE, Goal, Ranked, Ranking, Way, priced, rank
from laconic.plan.site import ALIKE, Site

TRIED = 3  # ways that are priced again on a changed cluster
PLAIN = Way("ddp", "ddp", {})
LITTLE = 0.005
USUAL = (0.9, 1.1)  # factors by which a plan is taken to be out where no earlier runs say: what is wanted of it


class Change(NamedTuple):
    """One change to the cluster, and what the best way then comes to."""

    what: str
    way: str
    before: float
    after: float


def terms(price: Price) -> list[tuple[str, float]]:
    """Where a step's seconds go, the largest first; their sum is the step."""
    found = [("computing", price.computing), ("compressing", price.compressing), ("waiting", price.waiting)]
    if price.learnt:
        found.append(("learnt from earlier runs", price.learnt))
    return sorted(found, key=lambda term: -term[1])


def why(ranking: Ranking) -> list[str]:
    """Three sentences about the first way: where its time goes, what ddp's goes into, and what it is taken to need."""
    first, rest = ranking.first, ranking.ranked[1:]
    return [_spent(ranking, first), _plainly(ranking), _needed(ranking, first, rest)]


def lonely(ranking: Ranking) -> str:
    """How one machine alone compares: whether several are slower than one, and why."""
    alone, site = ranking.alone, ranking.site
    ddp = next((one for one in ranking.ranked if one.way == PLAIN), None)
    makes = "makes" if _refused(ranking, alone.way) is None else "does not fit; if it did it would make"
    speed = f"One machine alone {makes} {units.rate(alone.price.tokens_per_second, 'tokens')}"
    if site.workers == 1:
        return f"{speed}; there is only one."
    if ddp is None:
        return f"{speed}."
    both = f"{site.workers} with ddp make {units.rate(ddp.price.tokens_per_second, 'tokens')}"
    if ddp.price.tokens_per_second >= alone.price.tokens_per_second:
        return f"{speed}, {both}."
    behind = waited_for_machines(ranking, ddp)
    waited = f"{units.duration(ddp.price.waiting - behind)} for {units.size(ddp.price.bytes_out)} to leave each machine"
    if behind:
        waited += f" and {units.duration(behind)} for {_slowest(site)}"
    return (
        f"{speed}, {both}: they are slower together than one, because each step waits {waited}, and computes for only "
        f"{units.duration(ddp.price.computing)}."
    )


def waited_for_machines(ranking: Ranking, one: Ranked) -> float:
    """Seconds of a step that a way waits for slower machines: what it would wait with links without limits."""
    site = ranking.site
    even = max(step.seconds for step in site.steps) <= ALIKE * min(step.seconds for step in site.steps)
    if even or one.price.workers == 1 or not one.price.waiting:
        return 0.0
    free = replace(site, network=Network((Connection(),) * site.workers))
    return min(one.price.waiting, priced(ranking.job, free, one.way, ranking.paces.get(one.way.name, 0.0)).waiting)


def _slowest(site: Site) -> str:
    seconds = [step.seconds for step in site.steps]
    slow = seconds.index(max(seconds))
    return f"worker {slow}, whose step takes {units.factor(seconds[slow] / min(seconds))} the quickest's"


def changes(
    ranking: Ranking,
    learnt: Learnt | None = None,
    priors: Mapping[str, Prior] | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Change]:
    """What one change would bring: the best few ways priced again on the changed cluster, what brings most first.

    What earlier runs have shown of the links as they are is taken to hold for changed ones too, whatever their class.
    """
    site, goal = ranking.site, ranking.goal
    best = [one.way for one in ranking.ranked if one.way.name != ALONE][:TRIED]
    asked = [*(one.way for one in ranking.ranked), *(one.way for one in ranking.refused)]
    if PLAIN in asked and PLAIN not in best:
        best.append(PLAIN)
    learnt = None if learnt is None else learnt.like(site.network)
    before = ranking.first.score(goal.objective)
    found = []
    for what, changed in _changed(site):
        tell(what)
        again = rank(ranking.job, changed, goal, best, learnt=learnt, priors=priors, paces=ranking.paces)
        found.append(Change(what, again.first.way.name, before, again.first.score(goal.objective)))
    return sorted(found, key=lambda change: change.after)


def told(change: Change, goal: Goal, first: Ranked) -> str:
    """A change in words."""
    gain = 1 - change.after / change.before if change.before else 0.0
    other = "" if change.way == first.way.name else f", then by {change.way}"
    if abs(gain) < LITTLE:
        return f"{change.what}: nothing to speak of"
    return f"{change.what}: {amount(change.after, goal)}, {abs(gain):.0%} {'less' if gain > 0 else 'more'}{other}"


def amount(value: float, goal: Goal) -> str:
    """A score with its unit."""
    if goal.objective == "time":
        return units.duration(value)
    if goal.objective == "bytes":
        return units.size(value)
    return f"{value:,.2f}" if goal.objective == "cost" else f"{value:,.1f} g CO2"


def _changed(site: Site) -> list[tuple[str, Site]]:
    made = [("machines twice as quick", site.quicker_machines()), ("one more machine", site.one_more())]
    if site.workers > 1:
        made += [("the slowest links twice as fast", site.quicker_links())]
        slow = site.slowest()
        if slow is not None and slow[2].latency:
            made += [("half the latency", site.nearer())]
    return made


def _spent(ranking: Ranking, first: Ranked) -> str:
    price, behind = first.price, waited_for_machines(ranking, first)
    told = [term for term in terms(price) if term[0] != "waiting" or not behind]
    if behind:
        told += [("waiting for slower machines", behind), ("waiting for the network", price.waiting - behind)]
    told.sort(key=lambda term: -term[1])
    parts = [f"{units.duration(seconds)} {name}" for name, seconds in told if seconds]
    hidden = ""
    if price.bytes_out and price.waiting - behind < LITTLE * price.step_seconds:
        hidden = f": the {units.size(price.bytes_out)} that leave a machine in a step are hidden behind it"
    elif price.bytes_out:
        hidden = f", for {units.size(price.bytes_out)} that leave a machine in it"
    return (
        f"{first.way.name} makes {units.rate(price.tokens_per_second, 'tokens')}: a step takes "
        f"{units.duration(price.step_seconds)}, {' and '.join(parts)}{hidden}."
    )


def _plainly(ranking: Ranking) -> str:
    first = ranking.first
    ddp = next((one for one in ranking.ranked if one.way == PLAIN), None)
    slow = ranking.site.slowest()
    if slow is None:
        return "There is no network to speak of."
    if ddp is None:
        why = _refused(ranking, PLAIN)
        return "ddp was not among the ways." if why is None else f"ddp itself is refused here: {why}."
    sent, behind = units.size(ddp.price.bytes_out), waited_for_machines(ranking, ddp)
    if first.way == PLAIN:
        little = ddp.price.waiting - behind < 0.1 * ddp.price.step_seconds
        shortest = "hides behind computing" if little else "costs less than any other way loses"
        return f"ddp sends {sent} a step, which {shortest} on links of {units.bandwidth(slow[2].up)}."
    share = units.share(behind / ddp.price.step_seconds)
    slower = f", {share} for {_slowest(ranking.site)}" if behind else ""
    return (
        f"ddp would wait {units.share(ddp.price.waiting_share)} of its time{slower}: it sends {sent} a step, over "
        f"links of {units.bandwidth(slow[2].up)} at the slowest, and its step takes "
        f"{units.duration(ddp.price.step_seconds)}."
    )


def _refused(ranking: Ranking, way: Way) -> str | None:
    return next((one.why for one in ranking.refused if one.way == way), None)


def _needed(ranking: Ranking, first: Ranked, rest: list[Ranked]) -> str:
    goal, score = ranking.goal, ranking.goal.objective
    known = "measured" if first.progress.measured else "taken"
    needs = f"It is {known} to need {units.factor(first.progress.factor)} ddp's tokens ({first.progress.source})"
    comes = f"so that it comes to {amount(first.score(score), goal)}"
    if not rest:
        return f"{needs}, {comes}."
    off = max(band[1] - 1 for one in (first, rest[0]) if (band := band_of(ranking, one) or USUAL))
    near = abs(rest[0].score(score) - first.score(score)) <= off * first.score(score)
    close = f", too near to tell which is better: plans like these are taken to be out by {off:.0%}" if near else ""
    return f"{needs}, {comes}; next is {rest[0].way.name} with {amount(rest[0].score(score), goal)}{close}."


def band_of(ranking: Ranking, one: Ranked) -> tuple[float, float] | None:
    """Between which factors of its seconds two thirds of earlier runs like it came; None for fewer than two of them."""
    exposed = 1 - one.price.computing / (one.price.step_seconds - one.price.learnt)
    return ranking.learnt.band(one.way.method, ranking.site.network, one.way.settings, exposed)


def as_json(ranking: Ranking, found: list[Change]) -> dict[str, Any]:
    """The whole ranking, for programs; bytes and seconds."""

    def entry(one: Ranked) -> dict[str, Any]:
        price, band = one.price, band_of(ranking, one)
        return {
            "name": one.way.name,
            "method": one.way.method,
            "settings": one.way.settings,
            "step_seconds": price.step_seconds,
            "step_seconds_between": None if band is None else [factor * price.step_seconds for factor in band],
            "terms": dict(terms(price)),
            "tokens_per_second": price.tokens_per_second,
            "bytes_per_step": price.bytes_out,
            "messages_per_step": price.messages,
            "waiting_share": price.waiting_share,
            "memory": {**price.memory._asdict(), "total": price.memory.total},
            "tokens_factor": one.progress.factor,
            "tokens_factor_from": one.progress.source,
            "tokens_factor_measured": one.progress.measured,
            "tokens": one.tokens,
            "seconds": one.seconds,
            "bytes": one.nbytes,
            "cost": one.cost,
            "carbon_grams": one.carbon,
            "notes": list(price.notes),
        }

    goal, site = ranking.goal, ranking.site
    return {
        "laconic_plan": 1,
        "job": {"name": ranking.job.name, "parameters": ranking.job.parameters, "batch_tokens": ranking.job.tokens},
        "workers": site.workers,
        "link": site.where,
        "objective": goal.objective,
        "tokens": goal.tokens,
        "ways": [entry(one) for one in ranking.ranked],
        "one_machine": entry(ranking.alone),
        "one_machine_fits": _refused(ranking, ranking.alone.way) is None,
        "refused": [{"name": one.way.name, "why": one.why} for one in ranking.refused],
        "why": [*why(ranking), lonely(ranking)] if ranking.ranked else [],
        "changes": [change._asdict() for change in found],
    }
