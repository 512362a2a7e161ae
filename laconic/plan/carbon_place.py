"""Where a planned run had best be, by carbon: at all sites of a table together, or at one of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from laconic.links.network import Network
from laconic.plan.carbon import DAY, HOUR, KILOWATT_HOUR, Intensity, Offer, greenest
from laconic.plan.ranking import ALONE, Ranking, rank
from laconic.plan.site import Site


class Place(NamedTuple):
    """The one site that is greenest: its name and workers, the seconds of the run there, and the share of carbon that
    is saved against all sites; all of them begin at hour 0."""

    site: str
    workers: int
    seconds: float
    saved: float


def greenest_site(ranking: Ranking, table: Intensity, places: Sequence[str]) -> Place | None:
    """The site where the first way emits least, if that is less than at all of them; None where all is best.

    ``places`` says at which site each worker is. Each site's workers are priced by themselves, for the same progress.
    The goal's ``slack`` bounds how much longer than the quickest it may take. None, too, for one site, and for runs
    that go on beyond the table's end.
    """
    first, goal, sites = ranking.first, ranking.goal, list(dict.fromkeys(places))
    ends = min(len(table.sites[site]) for site in sites)
    if len(sites) < 2 or not goal.intensity or first.way.method == ALONE:
        return None
    kilowatt_hours = first.carbon / goal.intensity
    shares = {site: kilowatt_hours * KILOWATT_HOUR * places.count(site) / len(places) for site in sites}
    everywhere = Offer("", first.seconds, shares)
    offers = [everywhere]
    for site in sites:
        here = among(ranking.site, [rank for rank, place in enumerate(places) if place == site])
        ways = [first.way] if here.workers > 1 else []
        found = rank(ranking.job, here, replace(goal, intensity=1.0), ways, learnt=ranking.learnt, paces=ranking.paces)
        by_way = {one.way.name: one for one in found.ranked}
        one = by_way.get(first.way.name if ways else ALONE)
        if one is not None:
            offers.append(Offer(site, one.seconds, {site: one.carbon * KILOWATT_HOUR}))
    if ends != DAY:
        offers = [one for one in offers if one.seconds <= ends * HOUR]
    if everywhere not in offers:
        return None
    best = greenest(offers, table, slack=goal.slack)
    if best is everywhere:
        return None
    saved = 1 - best.grams(table) / everywhere.grams(table)
    return Place(best.name, places.count(best.name), best.seconds, saved) if saved > 0 else None


def among(site: Site, ranks: Sequence[int]) -> Site:
    """Some of the workers, and the links between them."""
    network, at = site.network, {rank: place for place, rank in enumerate(ranks)}
    links = tuple((at[a], at[b], link) for a, b, link in network.links if a in at and b in at)
    smaller: Network = replace(
        network,
        connections=tuple(network.connections[rank] for rank in ranks),
        links=links,
        probed=tuple(network.probed[rank] for rank in ranks) if network.probed else (),
    )
    return replace(
        site,
        network=smaller,
        steps=tuple(site.steps[rank] for rank in ranks),
        memory=tuple(site.memory[rank] for rank in ranks),
        compressing=tuple(site.compressing[rank] for rank in ranks) if site.compressing else (),
    )
