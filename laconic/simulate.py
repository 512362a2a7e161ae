"""A whole run in one process, on links that are simulated: the process that trains all workers of a recipe."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from laconic.fault import ending
from laconic.launch import die_with_parent
from laconic.links import simulated
from laconic.links.simulated import SimulatedLink
from laconic.pace import Pace, paces
from laconic.recipe import Recipe, read_recipe
from laconic.train import Worker, note_error
from laconic.workloads import load


class Agreement:
    """The last step of all workers, who see one another's."""

    def __init__(self, recipe: Recipe) -> None:
        self.by_clock = recipe.seconds is not None
        self.begun = [0] * recipe.workers
        self.last: int | None = None
        self.behind = 0.0
        self.reason: str | None = None
        self.interrupted = False

    def end(self, reason: str) -> None:
        """End after the furthest step that anybody is in."""
        if self.last is None:
            self.last, self.reason = max(self.begun), reason
            self.behind = self.last / max(1, min(self.begun)) - 1


class CommonEnding(ending.Ending):
    """One worker's end of an agreement that takes no messages.

    Whether a step is begun before the end is asked for is decided by the virtual clock, so that it does not depend on
    how far a worker's thread has come.
    """

    def __init__(self, agreement: Agreement, link: SimulatedLink) -> None:
        self._agreement, self._link = agreement, link

    @property
    def reason(self) -> str | None:  # type: ignore[override]
        """Why the run ends, once it does."""
        return self._agreement.reason

    @property
    def behind(self) -> float:  # type: ignore[override]
        """Rounds that the slowest still had to take, for each that it had taken."""
        return self._agreement.behind

    def ask(self, reason: str) -> None:
        """Ask for the end."""
        if self._agreement.by_clock:
            self._link.after_all()
        self._agreement.end(reason)

    def may_begin(self, step: int) -> bool:
        """Whether to take step number ``step`` (from 1)."""
        agreement = self._agreement
        if agreement.interrupted:
            agreement.end("interrupted")
        if agreement.by_clock and agreement.last is None:
            self._link.after_all(0)  # whose clock ends the run
        if agreement.last is not None and step > agreement.last:
            return False
        agreement.begun[self._link.rank] = step
        return True


def run(folder: Path, recipe: Recipe) -> None:
    """Train all workers of a recipe into its folder; an interruption ends them after the same step."""
    torch.set_num_threads(recipe.threads or 1)
    works = paces(recipe, load(recipe.workload, recipe.options))
    agreement = Agreement(recipe)

    def interrupt(*_: Any) -> None:
        agreement.interrupted = True

    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), interrupt)
    ready = folder / "worker-0.pid"  # from now on an interruption ends the run in good order
    ready.write_text(str(os.getpid()))

    def work(link: SimulatedLink) -> None:
        try:
            Worker(folder, recipe, link, CommonEnding(agreement, link), Pace(link, works[link.rank])).run()
        except BaseException as error:
            note_error(folder, link.rank, error)
            raise

    simulated.run(recipe.network(), work, timeout=recipe.timeout, seed=recipe.seed)
    ready.unlink(missing_ok=True)


def main(folder: str) -> int:
    """Run the simulation in ``folder`` (its ``recipe.toml``); the exit status."""
    die_with_parent()
    try:
        run(Path(folder), read_recipe(Path(folder) / "recipe.toml"))
        return 0
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        if not any(Path(folder).glob("error-*.json")):
            note_error(Path(folder), 0, error)
        return 2


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # threads of workers that were left behind end with it
