"""A run's progress in the terminal: one line that says what a user would ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from laconic.bench import units
from laconic.bench.compare import IDEAL_MOST
from laconic.launch import Watch
from laconic.recipe import Recipe

SMOOTHING = 0.9
LONGEST = 72  # columns that a name and what is told can take, so that a line of 80 is not cut


@contextmanager
def following(recipe: Recipe, quiet: bool = False) -> Iterator[Callable[[str], Watch]]:
    """Give ``watch(name)``, which follows one run: loss, tokens and bytes a second, share of the time waiting.

    Without a terminal it prints one line when a run has ended, and ``quiet`` nothing at all.
    """
    console = Console(stderr=True)
    spare = console.width - LONGEST
    columns = [
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=max(4, min(18, spare))),
        TextColumn("{task.fields[told]}"),
        *([TimeElapsedColumn()] if spare > 18 else []),
    ]
    progress = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
    plain = not quiet and not console.is_terminal
    followed: list[Follower] = []

    def watch(name: str) -> Watch:
        if plain and followed:
            console.print(followed[-1].line(), highlight=False, soft_wrap=True)
        follower = Follower(recipe, name, progress)
        followed.append(follower)
        return follower

    with progress:
        yield watch
    if plain and followed:
        console.print(followed[-1].line(), highlight=False, soft_wrap=True)


class Follower:
    """Turns lines of metrics into one line of progress."""

    def __init__(self, recipe: Recipe, name: str, progress: Progress) -> None:
        self._recipe, self._name, self._progress = recipe, name, progress
        self._task = progress.add_task(name, total=1.0, told="starting")
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
        self._progress.update(self._task, completed=min(1.0, self._done(line)), told=self._told)

    def line(self) -> str:
        """The last thing to say, with the run's name."""
        return f"{self._name:<17} {self._told}"

    def _done(self, line: dict[str, Any]) -> float:
        recipe = self._recipe
        if self._name == "ideal":
            return float(line["seconds"]) / IDEAL_MOST
        if recipe.steps:
            return float(line["step"]) / recipe.steps
        if recipe.tokens:
            return float(line["tokens"]) / recipe.tokens
        return float(line["seconds"]) / (recipe.seconds or 1.0)
