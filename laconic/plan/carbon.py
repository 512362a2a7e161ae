"""Where and when to train, by the carbon of the electricity: from a table of grams a kilowatt hour, site by hour.

Powers are watts and energies joules; only intensities are grams of carbon dioxide a *kilowatt hour*, as tables have
them.

Source: arXiv:2409.03029 (GreenWhisk), its two modes: sites on the grid, here, and on their own batteries
(:mod:`laconic.plan.islands`). A reconstruction for training, which moves a state where GreenWhisk routes requests.
"""

from __future__ import annotations

import csv
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from laconic.errors import ConfigError, unknown

HOUR = 3600.0
KILOWATT_HOUR = 3.6e6  # joules
DAY = 24
SLACK = 0.1  # of the quickest way's time, that a greener one may take more
MOST = 3000.0  # grams a kilowatt hour; the dirtiest plants emit about half
DWELL = 2  # hours that a site is kept at least


@dataclass(frozen=True)
class Intensity:
    """Grams a kilowatt hour of each site by hour, from hour 0 on. One day's table holds for every day."""

    sites: Mapping[str, tuple[float, ...]]

    def mean(self, site: str, start: float, seconds: float) -> float:
        """A site's mean from ``start`` seconds after hour 0 on; hours of which a part is used count in part.

        Raises: ConfigError for a site that is not in the table, and for hours beyond its end.
        """
        if site not in self.sites:
            raise unknown("site", site, self.sites)
        hours = self.sites[site]
        end = start + seconds
        if start < 0 or (len(hours) != DAY and end > len(hours) * HOUR * (1 + 1e-12)):
            raise ConfigError(
                f"carbon: the table has {len(hours)} hours of {site}, and hours {start / HOUR:.3g} to {end / HOUR:.3g} "
                "are asked for; give a longer forecast, or one day of 24 hours, which is repeated"
            )
        if not seconds:
            return hours[min(int(start // HOUR) % DAY if len(hours) == DAY else int(start // HOUR), len(hours) - 1)]
        return (_until(hours, end) - _until(hours, start)) / seconds


def _until(hours: Sequence[float], end: float) -> float:
    """The integral over all seconds from 0 to ``end``."""
    rounds, rest = divmod(end, len(hours) * HOUR)
    whole = int(rest // HOUR)
    part = hours[whole] * (rest - whole * HOUR) if whole < len(hours) else 0.0
    return (rounds * sum(hours) + sum(hours[:whole])) * HOUR + part


def read_intensity(path: Path | str) -> Intensity:
    """The table of a CSV file (``hour,oslo,sydney`` and a row for each hour from 0 on) or a TOML file (``[sites]``).

    Raises: ConfigError with the file and what is wrong in it: hours that are missing, and numbers that are none.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    sites = _toml(path, text) if path.suffix == ".toml" else _csv(path, text)
    if not sites or len({len(hours) for hours in sites.values()}) > 1 or not all(sites.values()):
        got = ", ".join(f"{site} {len(hours)}" for site, hours in sites.items()) or "no site"
        raise ConfigError(f"{path}: every site needs the same number of hours, got {got}")
    for site, hours in sites.items():
        for hour, grams in enumerate(hours):
            if not 0 <= grams <= MOST:
                raise ConfigError(
                    f"{path}: {site} at hour {hour} has {grams:g}, and grams of CO2 a kilowatt hour are from "
                    f"0 to {MOST:g}; is it in kilograms, or of a megawatt hour?"
                )
    return Intensity(sites)


def _toml(path: Path, text: str) -> dict[str, tuple[float, ...]]:
    try:
        raw = tomllib.loads(text).get("sites")
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: a table [sites] was expected, with lines such as oslo = [21, 20.5, …]")
        for site, hours in raw.items():
            if not isinstance(hours, list) or any(isinstance(g, bool) or not isinstance(g, int | float) for g in hours):
                raise ConfigError(f"{path}: {site} needs a list of numbers, such as [21, 20.5, …], got {hours!r}")
        return {str(site): tuple(map(float, hours)) for site, hours in raw.items()}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no table of intensities ({error})") from None


def _csv(path: Path, text: str) -> dict[str, tuple[float, ...]]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or len(rows[0]) < 2 or rows[0][0].strip() != "hour":
        raise ConfigError(f"{path}: its first line must be hour and the sites' names, such as hour,oslo,sydney")
    names = [name.strip() for name in rows[0][1:]]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{path}: its first line has {twice[0]} twice; give each site one column")
    for number, row in enumerate(rows[1:]):
        if len(row) != len(rows[0]) or row[0].strip() != str(number):
            raise ConfigError(
                f"{path}, row {number + 1}: hour {number} and {len(names)} numbers were expected, got {row}"
            )
    try:
        return {name: tuple(float(row[i]) for row in rows[1:]) for i, name in enumerate(names, 1)}
    except ValueError as error:
        raise ConfigError(f"{path}: no table of intensities ({error})") from None


class Power(NamedTuple):
    """Watts of a machine: ``idle``, and ``slope`` more at full load."""

    idle: float
    slope: float

    def joules(self, load: float, seconds: float) -> float:
        """Its energy at a load from 0 to 1."""
        return (self.idle + self.slope * load) * seconds


@dataclass(frozen=True)
class Offer:
    """A way to do the work: seconds that it takes, and joules at each site, drawn evenly meanwhile.

    What it takes to bring a state there belongs to both: seconds and joules.
    """

    name: str
    seconds: float
    joules: Mapping[str, float]

    def grams(self, table: Intensity, start: float = 0.0) -> float:
        """Of carbon dioxide, if it starts ``start`` seconds after the table's hour 0."""
        return sum(
            energy / KILOWATT_HOUR * table.mean(site, start, self.seconds) for site, energy in self.joules.items()
        )


def cheapest(offers: Sequence[Offer], table: Intensity, start: float = 0.0, price: float = 0.0) -> Offer:
    """The offer of least seconds and ``price`` seconds a gram: of price 0, the quickest."""
    return min(offers, key=lambda one: (one.seconds + (price * one.grams(table, start) if price else 0.0), one.seconds))


def greenest(offers: Sequence[Offer], table: Intensity, start: float = 0.0, slack: float = SLACK) -> Offer:
    """The offer of least grams among those that take at most ``1 + slack`` times the quickest's seconds.

    Law: where all intensities are equal, it is that of least energy.
    """
    limit = (1 + slack) * min(one.seconds for one in offers)
    return min((one for one in offers if one.seconds <= limit), key=lambda one: (one.grams(table, start), one.seconds))


def best_start(offer: Offer, table: Intensity, earliest: float, deadline: float) -> float:
    """When to start, from ``earliest`` on, to be done by ``deadline`` with least grams; of equal ones the first.

    Grams are piecewise linear in the start, and bend only where the start or the end meets an hour: those are tried.

    Raises: ConfigError if there is not time enough.
    """
    last = deadline - offer.seconds
    if last < earliest:
        raise ConfigError(
            f"carbon: {offer.name} takes {offer.seconds / HOUR:.3g} hours, and until the deadline there are "
            f"{(deadline - earliest) / HOUR:.3g}"
        )
    hours = [hour * HOUR for hour in range(math.ceil(earliest / HOUR), math.floor(deadline / HOUR) + 1)]
    starts = {earliest, last, *hours, *(hour - offer.seconds for hour in hours)}
    return min(sorted(one for one in starts if earliest <= one <= last), key=lambda one: offer.grams(table, one))


def itinerary(table: Intensity, watts: Mapping[str, float], start: int, hours: int, moving: float = 0.0,
              dwell: int = DWELL) -> tuple[list[str], float]:  # fmt: skip
    """At which site to train in each hour, and the grams of that: the best by the table, found by dynamic programming.

    ``watts`` are what the work draws at each site, and ``moving`` the joules that bring it to another one, drawn there:
    its state's bytes and the time that the machines wait for them. A site that work moves to is kept for ``dwell``
    hours at least before it moves on, so that it does not flap between two that are about equal. Where it begins it may
    leave at once, and the last stay may end with the hours.

    Raises: ConfigError for a site that is not in the table, and hours that are not.
    """
    if hours < 1 or dwell < 1:
        raise ConfigError(f"carbon: hours and dwell must be at least 1, got {hours} and {dwell}")
    # By site and hours spent there (at most dwell): the least grams until now, and the way that led there.
    best: dict[tuple[str, int], tuple[float, list[str]]] = {}
    for hour in range(hours):
        now = {site: table.mean(site, (start + hour) * HOUR, HOUR) / KILOWATT_HOUR for site in watts}
        after: dict[tuple[str, int], tuple[float, list[str]]] = {}
        for site, power in watts.items():
            here = power * HOUR * now[site]
            ways = [((site, min(stayed + 1, dwell)), (grams + here, [*way, site]))
                    for (at, stayed), (grams, way) in best.items() if at == site]  # fmt: skip
            ways += [((site, 1), (grams + here + moving * now[site], [*way, site]))
                     for (at, stayed), (grams, way) in best.items() if at != site and stayed == dwell]  # fmt: skip
            if not hour:
                ways = [((site, dwell), (here, [site]))]  # nothing ties it to where it begins
            for state, found in ways:
                if state not in after or found[0] < after[state][0]:
                    after[state] = found
        best = after
    grams, way = min(best.values(), key=lambda found: found[0])
    return way, grams
