"""Which all-reduce for which network: the plans that may be cheapest, priced, the cheapest first.

Stages (``hcps``) are tried by GenTree. Rings in dimensions (``rings``) are tried in sites, and without sites in as many
dimensions as there can be: all have the same bytes, sums and flows at a port, and more dimensions start less often.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from laconic.errors import ConfigError, unknown
from laconic.plan import groups, rounds
from laconic.plan.collectives import Rates
from laconic.plan.genmodel import Priced, price
from laconic.plan.gentree import gentree
from laconic.plan.groups import Group, Node
from laconic.plan.ports import Ports, even, of_network
from laconic.plan.ring_order import ring_order
from laconic.plan.rounds import Plan
from laconic.plan.sites import sites
from laconic.plan.turns import seconds

if TYPE_CHECKING:
    from laconic.links.network import Network

USUAL = Rates(alpha=1e-3, beta=8e-8, gamma=1e-10, delta=1e-10)
"""What is taken of machines of which nothing is known: a millisecond to wake up for a round, 100 Mbit/s, memory of
10 GB/s."""

NAMES = (
    "auto",
    "ring",
    "rhd",
    "doubling",
    "cps",
    "hcps:4x2",
    "rings:4x2",
    "star",
    "tree",
    "sites",
    "leaders",
    "gentree",
)
MOST_AT_ONCE = 64  # workers up to which plans are considered in which everyone sends to everyone
NEAR = 1.02  # times the least seconds: nearer than a plan's seconds are known
MOST_HUBS = 16  # workers up to which each is tried as the hub of a star


class Option(NamedTuple):
    """A plan, the seconds that it takes, and its price by rounds, for where these go."""

    plan: Plan
    seconds: float
    priced: Priced


def options(
    workers: int, nbytes: float, network: Network | None = None, rates: Rates = USUAL, ahead: float = 0.0
) -> list[Option]:
    """The plans for so many workers, the cheapest first; of equals the one with fewer rounds.

    Beyond ``MOST_AT_ONCE`` workers cps and GenTree are left out, which have a message for every pair.

    Without a ``network`` links are even, with ``rates.beta``; with one its own rates and latencies hold, and
    ``rates.alpha`` is what a round takes besides; ``ahead`` is as in :func:`~laconic.plan.ports.of_network`.
    """
    ports = _ports(workers, network, rates, ahead)
    plans = _plans(workers, nbytes, network, ports)
    made = [Option(plan, seconds(plan, ports, nbytes), price(plan, ports, nbytes)) for plan in plans]
    return sorted(made, key=lambda option: (float(f"{option.seconds:.9g}"), len(option.plan.rounds)))


def choice(found: Sequence[Option]) -> Option:
    """What ``auto`` takes: of those near the cheapest the one in which the fewest send to one worker at once.

    What many send at once a switch may have to drop, which is in no price: measured in ``docs/collectives.md``.
    """
    least = NEAR * min(option.seconds for option in found)
    return min((option for option in found if option.seconds <= least), key=lambda option: option.plan.crowd)


def plan_of(
    text: str,
    workers: int,
    nbytes: float,
    network: Network | None = None,
    rates: Rates = USUAL,
    ahead: float = 0.0,
) -> Plan:
    """The plan that ``text`` names, one of ``NAMES``; ``auto`` is the :func:`choice` for vectors of ``nbytes``.

    Raises: ConfigError for a name that nobody knows, and factors whose product is not the number of workers.
    """
    name, colon, rest = text.partition(":")
    known = {entry.partition(":")[0] for entry in NAMES}
    if name not in known:
        raise unknown("plan", text, NAMES)
    if colon and name not in ("hcps", "rings"):
        raise ConfigError(f"plan {text!r}: {name} takes nothing behind a colon")
    if workers == 1:
        return Plan(name, 1, 1, ())
    if name in ("hcps", "rings"):
        nest = groups.nested(range(workers), _factors(text, rest, workers), "ring" if name == "rings" else "direct")
        return groups.of_groups(nest, text)
    ports = _ports(workers, network, rates, ahead)
    near = _near(workers, network)
    makers: dict[str, Callable[[], Plan]] = {
        "auto": lambda: choice(options(workers, nbytes, network, rates, ahead)).plan,
        "ring": lambda: groups.ring(workers, _order(ports, nbytes) if network is not None else None),
        "rhd": lambda: groups.rhd(workers),
        "doubling": lambda: rounds.doubling(workers),
        "cps": lambda: groups.cps(workers),
        "star": lambda: _star(workers, ports, nbytes),
        "tree": lambda: rounds.tree(workers),
        "sites": lambda: groups.of_groups(_ringed(near), "sites"),
        "leaders": lambda: groups.leaders([groups.workers_of(member) for member in near.members]),
        "gentree": lambda: gentree(near, ports, nbytes, seconds),
    }
    return makers[name]()


def _ports(workers: int, network: Network | None, rates: Rates, ahead: float) -> Ports:
    return of_network(network, rates, ahead=ahead) if network is not None else even(workers, rates)


def _near(workers: int, network: Network | None) -> Group:
    return sites(network) if network is not None else Group(tuple(range(workers)))


def _plans(workers: int, nbytes: float, network: Network | None, ports: Ports) -> Iterator[Plan]:
    if workers == 1:
        yield Plan("alone", 1, 1, ())
        return
    yield groups.ring(workers, _order(ports, nbytes) if network is not None else None)
    yield groups.rhd(workers)
    yield rounds.doubling(workers)
    yield rounds.tree(workers)
    yield _star(workers, ports, nbytes)
    if workers <= MOST_AT_ONCE:
        yield groups.cps(workers)
    near = _near(workers, network)
    if any(isinstance(member, Group) for member in near.members):
        yield groups.of_groups(_ringed(near), "sites")
        yield groups.leaders([groups.workers_of(member) for member in near.members])
    else:
        primes = max(groups.factorisations(workers), key=len)
        if len(primes) > 1 and max(primes) > 2:  # rings of two are halving and doubling
            nest = groups.nested(range(workers), sorted(primes), "ring")
            yield groups.of_groups(nest, "rings:" + "x".join(map(str, sorted(primes))))
    if workers <= MOST_AT_ONCE:
        yield gentree(near, ports, nbytes, seconds)


def _star(workers: int, ports: Ports, nbytes: float) -> Plan:
    """A star around the worker with the best links; of many workers, around the first."""
    hubs = range(workers if workers <= MOST_HUBS else 1)
    return min((rounds.star(workers, hub) for hub in hubs), key=lambda plan: seconds(plan, ports, nbytes))


def _order(ports: Ports, nbytes: float) -> tuple[int, ...]:
    """The ring in which the slowest step is quickest."""
    n = ports.workers
    sources, targets = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    _, betas = ports.route(sources, targets)
    cost = ports.start(sources, targets) + nbytes / n * betas.max(axis=1)
    return ring_order(cost.reshape(n, n))


def _ringed(node: Node) -> Group:
    """The groups, each with a ring among its members."""
    assert isinstance(node, Group), "a group"
    return Group(tuple(m if isinstance(m, int) else _ringed(m) for m in node.members), "ring")


def _factors(text: str, rest: str, workers: int) -> list[int]:
    if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", rest) is None:
        raise ConfigError(f"plan {text!r}: write the sizes of its groups, the innermost first, such as hcps:4x2")
    factors = [int(factor) for factor in rest.split("x")]
    if np.prod(factors) != workers:
        raise ConfigError(f"plan {text!r}: its groups hold {np.prod(factors)} workers, and there are {workers}")
    return factors
