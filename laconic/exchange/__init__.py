"""To whom: one exchange a file. A name in ``__all__`` is public and has a spelling in recipes."""

from laconic.exchange.accordion import accordion
from laconic.exchange.adaptive import adaptive
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone, ring
from laconic.exchange.graph import graph
from laconic.exchange.neighbours import neighbours
from laconic.exchange.pairs import pairs
from laconic.exchange.planned import planned
from laconic.exchange.powersgd import powersgd
from laconic.exchange.push_sum import push_sum
from laconic.exchange.two_phase import two_phase
from laconic.exchange.with_momentum import with_momentum

__all__ = [
    "Exchange",
    "accordion",
    "adaptive",
    "everyone",
    "graph",
    "neighbours",
    "pairs",
    "planned",
    "powersgd",
    "push_sum",
    "ring",
    "two_phase",
    "with_momentum",
]
