"""A comparison that runs only some of its ways: the next is the one that those before it make most promising."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from laconic.bench.ways import Way
from laconic.plan.proposer import Choice, Proxy, Space, Trial, propose

EXPLORED = 4  # one in so many is drawn

Losses = Mapping[
    str, float | None
]  # the final held-out loss of the ways that were run, by name; None of one that failed


class Promise(NamedTuple):
    """A way that was not run, and the loss that is expected of it."""

    way: Way
    loss: float


def following(ways: Sequence[Way], losses: Losses, seed: int) -> Way:
    """The way to run next, of those without a loss: a function of these alone, so that a resumed comparison goes on."""
    space, places = _space(ways)
    trials = [Trial(places[name], None if loss is None else 1 / loss) for name, loss in losses.items()]
    explore = 1 if len(trials) % EXPLORED == EXPLORED - 1 else 0
    (chosen,) = propose(space, trials, 1, explore, seed)
    return next(way for way in ways if places[way.name] == chosen)


def promising(ways: Sequence[Way], losses: Losses) -> Promise | None:
    """Of the ways that were not run the one of the lowest expected loss; None where all were, or none has a loss."""
    left = [way for way in ways if way.name not in losses]
    if not left or all(loss is None for loss in losses.values()):
        return None
    space, places = _space(ways)
    trials = [Trial(places[name], None if loss is None else 1 / loss) for name, loss in losses.items()]
    expected = Proxy(space, trials).expected([places[way.name] for way in left])
    best = max(range(len(left)), key=expected.__getitem__)
    return Promise(left[best], math.exp(-expected[best]))


def _space(ways: Sequence[Way]) -> tuple[Space, dict[str, Choice]]:
    """The methods and the swept settings as knobs, and each way's place among them."""
    keys = ["method", *dict.fromkeys(key for way in ways for key in way.swept)]
    named = {way.name: [way.method, *(repr(way.swept.get(key, ...)) for key in keys[1:])] for way in ways}
    knobs = {key: list(dict.fromkeys(values[i] for values in named.values())) for i, key in enumerate(keys)}
    places = {name: tuple(knobs[key].index(values[i]) for i, key in enumerate(keys)) for name, values in named.items()}
    return Space(knobs, choices=list(places.values())), places
