"""A run's progress in the terminal: one line that says what a user would ask, and one for all runs of a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from laconic.bench import units
from laconic.bench.compare import IDEAL_STEPS, ideal_seconds
from laconic.bench.ways import about
from laconic.launch import Watch
from laconic.recipe import SIMULATED, Recipe

SMOOTHING = 0.9
LONGEST = 72  # columns that a name and what is told can take, so that a line of 80 is not cut
NAMES = 16  # columns for a name; a longer one stands on a line of its own when its run has ended
IN_ALL = "in all"


@contextmanager
def following(recipe: Recipe, quiet: bool = False, runs: int = 1) -> Iterator[Callable[[str], Watch]]:
    """Give ``watch(name)``, which follows one run: loss, tokens and bytes a second, share of the time waiting.

    Of several ``runs`` a second line says how many have ended, and about how long the others will take. Without a
    terminal it prints one line when a run has ended, and ``quiet`` nothing at all.
    """
    console = Console(stderr=True)
    spare = console.width - LONGEST
    columns = [
        TextColumn(f"{{task.description:<{NAMES}}}"),
        BarColumn(bar_width=max(4, min(18, spare))),
        TextColumn("{task.fields[told]}"),
        *([TimeElapsedColumn()] if spare > 18 else []),
    ]
    progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
    plain = not quiet and not console.is_terminal
    followed: list[Follower] = []
    whole = Whole(progress, runs) if runs > 1 and not progress.disable else None

    def ended() -> None:
        if not followed:
            return
        if whole is not None:
            followed[-1].hide()
        if plain or whole is not None:
            progress.console.print(followed[-1].line(), highlight=False, soft_wrap=True)

    def watch(name: str) -> Watch:
        ended()
        follower = Follower(recipe, name, progress)
        followed.append(follower)
        if whole is None:
            return follower
        return whole.beginning(follower)

    with progress:
        try:
            yield watch
        finally:
            if whole is not None:
                ended()
    if plain:
        ended()


class Whole:
    """The line for all runs of a comparison."""

    def __init__(self, progress: Progress, runs: int) -> None:
        self._progress, self._runs, self._begun, self._ended = progress, runs, time.monotonic(), -1
        self._task = progress.add_task(IN_ALL, total=float(runs), told="")

    def beginning(self, follower: Follower) -> Watch:
        """Count a run that begins; the watch that moves its line and this one."""
        self._ended += 1
        self._tell(0.0)

        def watch(line: dict[str, Any]) -> None:
            follower(line)
            self._tell(min(1.0, follower.done(line)))

        return watch

    def _tell(self, share: float) -> None:
        done = self._ended + share
        left = (time.monotonic() - self._begun) * (self._runs / done - 1) if done >= 1 else None
        to_go = f", {about(left)} to go" if left is not None else ""
        told = f"{self._ended} of {self._runs} runs{to_go}"
        self._progress.update(self._task, completed=done, told=told)


class Follower:
    """Turns lines of metrics into one line of progress."""

    def __init__(self, recipe: Recipe, name: str, progress: Progress) -> None:
        self._recipe, self._name, self._progress = recipe, name, progress
        shown = name if len(name) <= NAMES else f"{name[: NAMES - 1]}…"
        self._task = progress.add_task(shown, total=1.0, told="starting")
        self._loss: float | None = None
        self._told = "no step was taken"

    def __call__(self, line: dict[str, Any]) -> None:
        """Take in one step."""
        loss, seconds = line["loss"], max(line["seconds"], 1e-9)
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._told = (
            f"loss {units.loss(self._loss)}  {units.rate(line['tokens'] / seconds, 'tokens')}  "
            f"{units.size(line['bytes_out'] / seconds)}/s  waiting {units.share(line['seconds_waiting'] / seconds)}"
        )
        if self._recipe.on == SIMULATED:  # beside it stands how long it has really taken
            self._told = f"virtual {units.duration(seconds)}  {self._told}"
        self._progress.update(self._task, completed=min(1.0, self.done(line)), told=self._told)

    def line(self) -> str:
        """The last thing to say, with the run's name."""
        return f"{self._name:<17} {self._told}"

    def hide(self) -> None:
        """Take the line off the screen, which has no room for all runs of a comparison."""
        self._progress.remove_task(self._task)

    def done(self, line: dict[str, Any]) -> float:
        """How much of the run has gone by."""
        recipe = self._recipe
        if self._name == "ideal":
            whole = recipe.on == SIMULATED
            return float(line["step"]) / IDEAL_STEPS if whole else float(line["seconds"]) / ideal_seconds(recipe)
        if recipe.steps:
            return float(line["step"]) / recipe.steps
        if recipe.tokens:
            return float(line["tokens"]) / recipe.tokens
        return float(line["seconds"]) / (recipe.seconds or 1.0)
