"""Which way to train: every way that goes on these links, priced by running it, in order of what it comes to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from laconic.bench import units
from laconic.errors import ConfigError, unknown
from laconic.methods import METHODS, build
from laconic.plan.carbon import SLACK
from laconic.plan.charging import pace_of
from laconic.plan.groups import Group
from laconic.plan.job import Job, threads_of
from laconic.plan.ledger import Learnt
from laconic.plan.price import RESERVE, Price, price
from laconic.plan.prior import UNRANKED, Prior, Progress, progress
from laconic.plan.running import TAIL, UNKNOWN
from laconic.plan.site import Site
from laconic.plan.sites import sites
from laconic.sync.timetable import deal

OBJECTIVES = ("time", "bytes", "cost", "carbon")
FEWEST = 5  # synchronisations of a run: a period that makes fewer is not offered
WARM = {"warmup_steps": 1}  # a price is of the steps after a warm-up, so the method is not run through a long one
ALONE = "one machine"
IDLE = 0.3  # of a machine's power while it waits, beside computing
JOULES = 3.6e6  # of a kilowatt hour
TENTH = 0.9
TENSORS = 800  # sent from worker to worker, one by one; of a larger model neighbouring blocks are merged
FEWEST_TENSORS = 8
PLANNED = 24  # workers up to which sums by a plan are offered: among more it takes minutes to find one
FEW = 4  # workers, up to which more than one step is priced of a method without a period

Told = Callable[[str], None]


class Way(NamedTuple):
    """One way to train: a name, a method and its settings."""

    name: str
    method: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """What is wanted: the progress that ddp makes with ``tokens``, by least ``objective``.

    Of ways that take longer than ``1 + slack`` times the quickest none comes before one that does not: or else one
    machine would be least in nearly everything but time.

    ``hour`` is the price of a machine's hour and ``gigabyte`` of what leaves a machine; ``watts`` a machine's power
    while computing, and ``intensity`` the grams of carbon dioxide of a kilowatt hour.
    """

    tokens: float
    objective: str = "time"
    hour: float = 1.0
    gigabyte: float = 0.09
    watts: float = 300.0
    intensity: float = 400.0
    slack: float = SLACK

    def checked(self) -> Goal:
        """This goal, if it is one.

        Raises: ConfigError.
        """
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if not 1 <= self.tokens < math.inf:
            raise ConfigError(f"--tokens must be at least 1, got {self.tokens:g}")
        for name in ("hour", "gigabyte", "watts", "intensity", "slack"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--{name} must be a number from 0 on, got {getattr(self, name):g}")
        return self


@dataclass(frozen=True)
class Ranked:
    """A way with its price and what it comes to, in all: seconds, bytes out of all workers, money, grams of carbon."""

    way: Way
    price: Price
    progress: Progress
    tokens: float
    seconds: float
    nbytes: float
    cost: float
    carbon: float

    def score(self, objective: str) -> float:
        """What counts."""
        return {"time": self.seconds, "bytes": self.nbytes, "cost": self.cost, "carbon": self.carbon}[objective]


class Refused(NamedTuple):
    """A way that is not offered, why, and what would make it fit where that is known."""

    way: Way
    why: str


@dataclass(frozen=True)
class Ranking:
    """The ways in order of the objective, those refused, and one machine alone."""

    job: Job
    site: Site
    goal: Goal
    ranked: list[Ranked]
    refused: list[Refused]
    alone: Ranked
    paces: dict[str, float] = field(default_factory=dict)
    learnt: Learnt = field(default_factory=Learnt)

    @property
    def first(self) -> Ranked:
        """The way to take."""
        return self.ranked[0]


def ways_for(job: Job, site: Site, steps: float) -> list[Way]:
    """The ways that make sense for a run of about so many steps: periods that come round, and fragments there are."""
    uneven = max(s.seconds for s in site.steps) > 1.05 * min(s.seconds for s in site.steps)
    made: list[tuple[str, dict[str, Any]]] = [
        ("ddp", {}),
        ("ddp-half", {}),
        ("ddp", {"compress": "int8"}),
        ("ddp", {"compress": "int4"}),
        ("powersgd", {}),
        ("signsgd", {"feedback": True}),
        ("topk", {}),
        ("dgc", {}),
        ("ef21", {}),
        ("econtrol", {}),
        ("adaptive", {}),
        ("uneven-ddp", {}) if uneven else ("", {}),
    ]
    planned = {"plan": "auto"} if _in_sites(site) else {}
    made += [("ddp", planned), ("ddp-half", planned)] if planned else []
    periods = [n for n in (10, 50, 250) if n * FEWEST <= steps]
    for n in periods:
        made += [("diloco", {"every": n}), ("streaming-diloco", _fragments(job, {"every": n, "overlap": 1}))]
        made += [("local-sgd", {"every": n}), ("noloco", {"every": n})] if n <= 50 else []
        made += [("streaming-diloco", _fragments(job, {"every": n, "overlap": 5}))] if n >= 50 else []
        made += [("diloco", {"every": n, **planned})] if planned else []
        made += [("slowmo", {"every": n}), ("co2", {"every": n})] if n == 50 else []
        made += [("uneven-diloco", {"every": n})] if uneven else []
    if site.workers > 2:
        made += [("d-psgd", {}), ("sgp", {})]
    return [Way(_named(method, settings), method, settings) for method, settings in made if method]


def rank(
    job: Job,
    site: Site,
    goal: Goal,
    ways: Sequence[Way] | None = None,
    *,
    learnt: Learnt | None = None,
    priors: Mapping[str, Prior] | None = None,
    paces: Mapping[str, float] | None = None,
    tell: Told = lambda sentence: None,
) -> Ranking:
    """Price every way, and put those that fit in order. ``paces`` are seconds of a byte compressed, by ways' names.

    ``priors`` take the place of what is taken for granted of a way, by its name.

    Raises: ConfigError for a goal that is none.
    """
    goal.checked()
    steps = goal.tokens / (job.tokens * site.workers)
    known = dict(paces or {})
    ranked, refused = [], []
    chosen = ways if ways is not None else ways_for(job, site, steps)
    for way in chosen:
        tell(way.name)
        try:
            if way.name not in known:
                talk, size = build(way.method, way.settings).exchange, site.workers
                known[way.name] = pace_of(talk, job, threads_of(size), size)
            found = priced(job, site, way, known[way.name], learnt)
        except UNKNOWN as error:
            refused.append(Refused(way, str(error)))
            continue
        over = too_large(found, site)
        if over is not None:
            refused.append(Refused(way, over))
            continue
        made = _reckoned(job, site, goal, way, found, steps, (priors or {}).get(way.name))
        if made is None:
            refused.append(Refused(way, f"nothing says how many tokens it needs: {UNRANKED.get(way.method, '')}"))
        else:
            ranked.append(made)
    lone = Way(ALONE, "alone", {})
    single = site.alone()
    alone = _reckoned(job, single, goal, lone, price(job, single.network, single.steps, "alone"), steps, None)
    assert alone is not None
    over = too_large(alone.price, single)
    if over is None:
        ranked.append(alone)
    else:
        refused.append(Refused(lone, over))
    late = (1 + goal.slack) * min((one.seconds for one in ranked), default=0.0)
    ranked.sort(key=lambda one: (one.seconds > late, one.score(goal.objective), one.seconds, one.way.name))
    return Ranking(job, site, goal, ranked, refused, alone, known, learnt or Learnt())


def priced(job: Job, site: Site, way: Way, pace: float, learnt: Learnt | None = None) -> Price:
    """A way's price here, with what earlier runs have shown of it.

    Raises: as :func:`laconic.plan.price.price`.
    """
    warm = {k: v for k, v in WARM.items() if k in METHODS[way.method].defaults and k not in way.settings}
    # What a low rank saves hangs on each matrix's own shape; fragments are of blocks, and leave seldom.
    seldom = build(way.method, way.settings).after_step is not None
    most = max(FEWEST_TENSORS, TENSORS // site.workers ** (1 if seldom else 2))
    rough = job if way.method == "powersgd" else _merged(job, most, way)
    paces = tuple(pace * slower for slower in site.compressing) or pace
    tail = TAIL if site.workers <= FEW else 1
    found = price(rough, site.network, site.steps, way.method, way.settings | warm, compressing=paces, tail=tail)
    merged = f"{len(job.shapes)} tensors priced as {len(rough.shapes)}, neighbouring blocks' together"
    found = replace(found, settings=way.settings, notes=(*found.notes, *([merged] if rough is not job else [])))
    exposed = 1 - found.computing / found.step_seconds
    factor = 1.0 if learnt is None else learnt.factor(way.method, site.network, way.settings, exposed)
    if factor == 1.0:
        return found
    return replace(found, learnt=(factor - 1) * found.step_seconds, tokens_per_second=found.tokens_per_second / factor)


def too_large(found: Price, site: Site) -> str | None:
    """By how much a way does not fit into the memory of the machine that has least, and what would make it fit.

    Law:    of as much less as is said, it fits.
    """
    limit, memory = min(site.memory), found.memory
    if memory.total <= limit:
        return None
    spare = limit / (1 + RESERVE)
    batch, state = memory.activations, memory.sync
    fixed = memory.total - memory.reserve - batch
    over = f"needs {units.size(memory.total)}, {units.size(memory.total - limit)} more than {units.size(limit)}"
    if fixed < TENTH * spare and batch:
        return f"{over}; a batch of {_part((spare - fixed) / batch)} of this one would fit"
    if state and fixed - state + batch < TENTH * spare:
        most = units.size(_down(spare - batch - (fixed - state), 3))
        return f"{over}; a way that keeps at most {most} beside the model and not {units.size(state)} would fit"
    less, room = "", spare - batch
    if batch >= TENTH * spare:  # the model's parts and a batch are given half of the room each
        less, room = f"with a batch of {_part(spare / 2 / batch)} of this one and ", spare / 2
    parts = math.ceil(fixed / room)
    return f"{over}; {less}sharded over {parts} machines (fully_shard) its weights, gradients and states would fit"


def _part(share: float) -> str:
    return f"{100 * _down(share, 2):.2g}%"


def _down(value: float, digits: int) -> float:
    """So many digits of a number, never rounded up: what is said to fit does."""
    place = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    return math.floor(value / place * (1 + 1e-12)) * place


def _reckoned(
    job: Job, site: Site, goal: Goal, way: Way, found: Price, steps: float, prior: Prior | None
) -> Ranked | None:
    needs = progress(way.method, way.settings, steps, prior)
    if needs is None or not found.tokens_per_second:
        return None
    tokens = goal.tokens * needs.factor
    seconds = tokens / found.tokens_per_second
    taken = tokens / (job.tokens * site.workers)
    nbytes = found.bytes_out * taken * site.workers
    hours = seconds / 3600 * site.workers
    cost = hours * goal.hour + nbytes / 1e9 * goal.gigabyte
    power = goal.watts * (1 - (1 - IDLE) * found.waiting_share)
    carbon = seconds * site.workers * power / JOULES * goal.intensity
    return Ranked(way, found, needs, tokens, seconds, nbytes, cost, carbon)


def _in_sites(site: Site) -> bool:
    """Whether links are fast inside groups of workers and slow between, so that sums had best go about by a plan."""
    if not 2 < site.workers <= PLANNED:
        return False
    return any(isinstance(member, Group) for member in sites(site.network).members)


def _fragments(job: Job, settings: dict[str, Any]) -> dict[str, Any]:
    """Fewer fragments where the model has not so many blocks."""
    usual = METHODS["streaming-diloco"].defaults["fragments"]
    for fewer in range(usual, 0, -1):
        if _dealt(job, fewer):
            return settings | ({"fragments": fewer} if fewer < usual else {})
    return settings


def _merged(job: Job, most: int, way: Way) -> Job:
    """About so many tensors, neighbouring blocks' together, but blocks enough for a way's fragments."""
    fragments = (METHODS[way.method].defaults | way.settings).get("fragments", 1)
    while (rough := job.merged(most)) is not job and not _dealt(rough, fragments):
        most += 1
    return rough


def _dealt(job: Job, fragments: int) -> bool:
    """Whether a model has blocks enough for so many fragments."""
    with contextlib.suppress(ConfigError):
        deal([name for name, _ in job.shapes], fragments, "strided")
        return True
    return False


def _named(method: str, settings: Mapping[str, Any]) -> str:
    return " ".join([method, *(f"{key}={value}" for key, value in settings.items())])
