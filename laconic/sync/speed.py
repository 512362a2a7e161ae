"""How fast each worker is: measured by its link's clock, told to all, and work dealt in proportion.

Pure functions. All workers that heard the same numbers deal alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from laconic.errors import PacketError
from laconic.exchange.adaptive import SESSION
from laconic.links.base import Link
from laconic.packet import Message, Packet
from laconic.state import checkpointed

SMOOTHING = 0.3  # the newest measurement's share
GROWTH = 2.0  # a measurement counts as at most so many times what was known: one bad round is not a slow worker
LEAST_SECONDS = 1e-9
OVER = 0.1  # of an own step: how much later than the slowest a worker may end, or noise would cost it a whole step
EXACT = 1e-9  # what rounding may take from a part that fits exactly


@checkpointed
class Speed(NamedTuple):
    """``seconds`` that one unit of this worker's work takes, smoothed; 0 before the first measurement.

    Since the last measurement ``pieces`` of work took ``total`` seconds a unit, and the slowest ``longest``. The
    one under way began at ``began`` on the clock of process ``session``.
    """

    seconds: float = 0.0
    pieces: int = 0
    total: float = 0.0
    longest: float = 0.0
    session: int = 0
    began: float = 0.0


def begun(speed: Speed, now: float) -> Speed:
    """Work begins now."""
    return speed._replace(session=SESSION, began=now)


def ended(speed: Speed, now: float, units: float = 1.0) -> Speed:
    """A piece of so many units has ended, and the next one begins.

    One whose beginning nobody timed (the first, or the first of a process that resumes) is not counted.
    """
    if speed.session != SESSION:
        return begun(speed, now)
    took = max(0.0, now - speed.began) / units
    pieces, longest = speed.pieces + 1, max(speed.longest, took)
    return speed._replace(pieces=pieces, total=speed.total + took, longest=longest, began=now)


def measured(speed: Speed) -> Speed:
    """The pieces since the last measurement make a new one: their mean, without the slowest if there are several."""
    if not speed.pieces:
        return speed
    several = speed.pieces > 1
    new = (speed.total - speed.longest) / (speed.pieces - 1) if several else speed.total
    new = max(new, LEAST_SECONDS)
    if speed.seconds:
        new = speed.seconds + SMOOTHING * (min(new, GROWTH * speed.seconds) - speed.seconds)
    return speed._replace(seconds=new, pieces=0, total=0.0, longest=0.0)


def told(seconds: float, link: Link) -> list[float]:
    """Everyone's seconds of a unit, in rank order; of one who has not measured any the mean of those who have.

    Wire:   one small message to every peer.
    Raises: PacketError for a peer that says anything else.
    """
    heard = [_seconds(message) for message in link.all_gather([Packet({}, {"speed": seconds})])]
    known = [s for s in heard if s > 0]
    typical = sum(known) / len(known) if known else 1.0
    return [s if s > 0 else typical for s in heard]


def _seconds(message: Message) -> float:
    said = message[0].header.get("speed") if len(message) == 1 else None
    if not isinstance(said, int | float) or isinstance(said, bool) or not 0 <= said < math.inf:
        raise PacketError(f"speed: wanted a peer's seconds of a step, got {str(said)[:60]}; do all run one method?")
    return float(said)


def steps_together(seconds: Sequence[float], every: int, least: int = 1, most: int | None = None) -> list[int]:
    """How many steps each worker takes in a round so that all end it together, and their mean is about ``every``.

    The slowest takes a whole number of steps, and the others as many as fit into its time.

    Law:    who is not held by ``most`` ends less than one step of its own before the slowest, and at most a tenth of
            one after. Equal workers take exactly ``every``.
    """
    slowest = max(seconds)
    even = len(seconds) * every / sum(1 / s for s in seconds)  # seconds in which all together take n x every steps
    turns = max(least, round(even / slowest))
    dealt = [max(least, int(turns * slowest / s + OVER)) for s in seconds]
    return dealt if most is None else [min(steps, most) for steps in dealt]


def parts_together(seconds: Sequence[float], parts: int) -> list[int]:
    """How many of ``parts`` parts a worker on average each takes, so that the last one ends as early as can be.

    Law:    they add up to ``parts`` for each worker, and each takes at least one. Moving a part from the last to
            another would not end it earlier. Equal workers take exactly ``parts``.
    """
    whole = len(seconds) * parts
    rate = sum(1 / s for s in seconds)
    dealt = [max(1, int(whole / s / rate * (1 - EXACT))) for s in seconds]
    while sum(dealt) > whole:  # the least of one part each were more than there are: the last to end gives one back
        last = max((i for i, d in enumerate(dealt) if d > 1), key=lambda i: dealt[i] * seconds[i])
        dealt[last] -= 1
    while sum(dealt) < whole:
        first = min(range(len(dealt)), key=lambda i: ((dealt[i] + 1) * seconds[i], i))
        dealt[first] += 1
    return dealt
