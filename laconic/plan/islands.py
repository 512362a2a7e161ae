"""Sites that live on their own: a battery, what the sun brings, and a reserve that training may not touch.

Source: arXiv:2409.03029 (GreenWhisk), the grid-isolated mode, reconstructed for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from laconic.errors import ConfigError
from laconic.plan.carbon import HOUR

RESERVE = 0.2  # of a battery's capacity
PATIENCE = 2  # hours in a row in which a site must do, before work comes back to it


@dataclass(frozen=True)
class Island:
    """A site's battery: joules that it can hold and holds, and watts that come in by hour, day after day.

    Raises: ConfigError for a battery that holds more than it can, and for no hours.
    """

    capacity: float
    stored: float
    incoming: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.stored <= self.capacity or not self.incoming or min(self.incoming) < 0:
            raise ConfigError(
                f"island: a battery of {self.capacity:g} J cannot hold {self.stored:g} J, or its incoming watts are "
                "none; stored is from 0 to capacity, and incoming has a number from 0 on for each hour"
            )

    def after(self, watts: float, hour: int) -> Island:
        """After an hour in which so many watts are drawn; what the full battery cannot take is lost.

        Law: nothing below 0 is stored; who draws more than there is, stands still.
        """
        left = self.stored + (self.incoming[hour % len(self.incoming)] - watts) * HOUR
        return replace(self, stored=min(max(left, 0.0), self.capacity))

    def surplus(self, watts: float, hour: int, horizon: int, reserve: float = RESERVE) -> float:
        """Joules over the reserve when least is stored, in ``horizon`` hours of drawing ``watts``; below 0, lacking."""
        at, least = self, self.stored
        for ahead in range(horizon):
            # Not from after(): it would call an empty battery 0 however much is lacking.
            left = at.stored + (self.incoming[(hour + ahead) % len(self.incoming)] - watts) * HOUR
            least = min(least, left)
            at = at.after(watts, hour + ahead)
        return least - reserve * self.capacity


def shares(islands: Mapping[str, Island], watts: float, hour: int, horizon: int,
           reserve: float = RESERVE) -> dict[str, float]:  # fmt: skip
    """Which share of new work each site gets: by its surplus, and none where drawing ``watts`` would touch the reserve.

    Law: shares add up to 1, or all are 0 where no site will do.
    """
    spare = {name: max(0.0, one.surplus(watts, hour, horizon, reserve)) for name, one in islands.items()}
    total = sum(spare.values())
    return {name: one / total if total else 0.0 for name, one in spare.items()}


class Duty(NamedTuple):
    """Whether a site works, and for how many hours in a row it would have done."""

    working: bool
    waited: int = 0


def next_duty(duty: Duty, fits: bool, patience: int = PATIENCE) -> Duty:
    """Leave at once where the reserve would be touched; come back only after ``patience`` hours that would have done.

    So a site that is at its limit does not take up and leave the work in turns.
    """
    if not fits:
        return Duty(False)
    waited = duty.waited + 1
    return Duty(duty.working or waited > patience, waited)


def day(island: Island, watts: float, hours: int, start: int = 0, reserve: float = RESERVE,
        leaving: int = 1) -> list[tuple[bool, float]]:  # fmt: skip
    """A site hour by hour under :func:`next_duty`: whether it worked, and what was stored at the end of the hour.

    ``leaving`` hours are looked ahead, in which work that is to go must write its checkpoint and leave.
    """
    duty, found = Duty(True), []
    for hour in range(start, start + hours):
        duty = next_duty(duty, island.surplus(watts, hour, leaving, reserve) >= 0)
        island = island.after(watts if duty.working else 0.0, hour)
        found.append((duty.working, island.stored))
    return found
