"""Learning-rate schedules of a run whose number of steps is known: each a factor on the optimizer's own rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from laconic.errors import ConfigError, unknown

CONSTANT = "constant"
FALLING: dict[str, Callable[[float], float]] = {  # of the share of the steps after the warm-up that have been taken
    CONSTANT: lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
}


def check(schedule: str, warmup: int, steps: int | None) -> None:
    """Whether a run of so many steps can follow a schedule.

    Raises: ConfigError for an unknown one, for a warm-up as long as the run, and where the steps are not known: the
            workers of a run that ends by seconds or tokens would each follow their own count, and their weights part.
    """
    if schedule not in FALLING:
        raise unknown("schedule", schedule, FALLING)
    if warmup < 0:
        raise ConfigError(f"warmup must be at least 0 steps, got {warmup}")
    if schedule != CONSTANT and steps is None:
        raise ConfigError(f"schedule={schedule} falls over the steps of the run: say how many with steps")
    if steps is not None and warmup >= steps:
        raise ConfigError(f"warmup={warmup} steps leave nothing of a run of {steps}")


def factor(schedule: str, warmup: int, taken: float, steps: int | None) -> float:
    """What the rate is multiplied by in the step after ``taken`` steps: in (0, 1].

    It rises in equal parts over the first ``warmup`` steps, and falls over the others: ``linear`` and ``cosine``
    towards 0, which they would reach in the step after the last; ``constant`` not at all.

    Source: cosine: Loshchilov & Hutter 2017, arXiv:1608.03983, one period without restarts.
    """
    if taken < warmup:
        return (taken + 1) / (warmup + 1)
    if steps is None:
        return 1.0
    share = (taken - warmup) / (steps - warmup)
    return FALLING[schedule](min(share, 1.0))
