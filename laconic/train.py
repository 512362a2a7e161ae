"""One worker's whole run: from a recipe to a run folder."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from laconic import __version__, merging
from laconic.attached import Attached, nan_check, warm_up
from laconic.bench.units import strict
from laconic.drag import Drag, factors
from laconic.errors import ConfigError, LaconicError, PeerError, WorkloadError
from laconic.fault import checkpoint, points, randomness
from laconic.fault.ending import Ending
from laconic.launch import die_with_parent
from laconic.links.base import Link
from laconic.links.paced import PacedLink
from laconic.links.process_group import process_group
from laconic.links.rendezvous import rendezvous
from laconic.methods import build
from laconic.pace import Pace
from laconic.recipe import Recipe, read_recipe, seeded
from laconic.schedule import CONSTANT, factor
from laconic.sync.base import Sync
from laconic.workloads import Workload, load
from laconic.workloads.recut import Recut

CURVE_SHARE = 4  # the curve is measured on one batch in so many; the final loss on all
CALIBRATION = 16  # batches of each worker from which normalisation is estimated again after a merge
FLUSH_SECONDS = 0.5
EVALUATION_SECONDS = 7 * 24 * 3600.0  # a worker that dies meanwhile is noticed by its closed connection
SLACK = 2.0  # times what the slowest worker should still need, before it counts as silent


def main(folder: str) -> int:
    """Run this worker of the run in ``folder`` (its ``recipe.toml``); the exit status.

    An error is written to ``error-RANK.json``, for whoever started the run to tell.
    """
    run = Path(folder)
    die_with_parent()
    rank = int(os.environ.get("RANK", "0"))
    try:
        Worker(run, read_recipe(run / "recipe.toml")).run()
        return 0
    except KeyboardInterrupt:  # Ctrl-C before training began: nothing is lost, and nothing is wrong
        os._exit(130)
    except BaseException as error:
        note_error(run, rank, error)
        os._exit(2)  # now: peers wait for what this worker will not send, and other threads may never end


def note_error(run: Path, rank: int, error: BaseException) -> None:
    """Write down what ended a worker, for whoever started the run to tell; called where the error is caught.

    Where the disk is full it may be told to nobody, but that is no reason not to end.
    """
    message = str(error) if isinstance(error, LaconicError) else _told(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"worker {rank}: {run}: cannot be written: {error.strerror}; make room, and go on by --resume"
    record = {
        "rank": rank,
        "kind": type(error).__name__,
        "message": message,
        "peer": isinstance(error, PeerError),
        "time": time.time(),
        "trace": traceback.format_exc(),
    }
    with contextlib.suppress(OSError):
        (run / f"error-{rank}.json").write_text(json.dumps(record))
    with contextlib.suppress(OSError):
        sys.stderr.write(str(record["trace"]))
        sys.stderr.flush()


class Worker:
    """One worker of a run: its link, model, data, and the records it keeps.

    A process of its own, unless it is given a ``link``, an ``ending`` and a ``pace``: then a thread among others, whose
    process is told of signals, and which takes the virtual time that its pace charges.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        link: Link | None = None,
        ending: Ending | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.folder, self.recipe, self.pace = run, recipe, pace
        self.process = link is None
        if link is None:
            torch.set_num_threads(recipe.threads or max(1, (os.cpu_count() or 1) // recipe.workers))
        self.link = _link(recipe) if link is None else link
        self.rank, self.size = self.link.rank, self.link.size
        self.workload = load(recipe.workload, recipe.options)
        torch.manual_seed(recipe.seed)  # the same on all workers: attach broadcasts, but initial losses agree too
        self.attached = assemble(recipe, self.workload, self.link, pace)
        if self.process:
            warm_up(self.attached.sync, self.attached.params, self.size)
            self.link.barrier()  # nobody's first step waits for one that still compiles
        randomness.seed(own_seed(recipe.seed, self.rank))
        self.model, self.optimizer = self.attached.model, self.attached.optimizer
        self.rates = [group.get("lr", 0.0) for group in self.optimizer.param_groups]  # what the schedule is a share of
        self.step = self.own = self.tokens = 0  # tokens of this worker, and of all
        self.uneven = self.attached.sync.rounds is not None  # workers take unequal steps: a run ends after a round
        self.rounds = self.saved = 0  # rounds that have ended, where steps are unequal; the last checkpoint's mark
        self.drag = Drag(1.0 if pace else factors(recipe.slow, self.size)[self.rank])
        self.drawn = 0.0  # batches that earlier parts of this run have drawn
        self.seconds = self.spent = 0.0  # of this run in all its parts; of the parts before this one
        self.before: dict[str, float] = {}  # what the meter showed when earlier parts of this run ended
        self.idle: dict[str, float] = {}  # what it shows when training begins: the first weights are not the method's
        self.points: list[dict[str, Any]] = []
        self.measured = -1  # the last step of an earlier part whose held-out loss is known
        self.metrics = run / ("metrics.jsonl" if self.rank == 0 else f"metrics-{self.rank}.jsonl")
        self.trained: dict[str, float] = {}
        self.apart: list[dict[str, Tensor]] = []  # this worker's weights and everyone's mean, where they differ
        self.judged: dict[str, float] = {}
        resumed = checkpoint.newest(run, self.size)
        if resumed is not None:
            self._resume(resumed)
        self.ending = _ending(recipe, self.link) if ending is None else ending

    def run(self) -> None:
        """Train until the recipe's end, then measure what was reached."""
        ready = self.folder / f"worker-{self.rank}.pid"  # from now on an interruption ends this worker in good order
        if self.process:
            for name in ("SIGTERM", "SIGINT"):
                signal.signal(getattr(signal, name), lambda *_: self.ending.ask("interrupted"))
            ready.write_text(str(os.getpid()))
        self._train()
        ended = self._meter()
        patience = self.link.timeout
        # A worker that takes the steps that it is behind is not silent.
        self.link.timeout += SLACK * self.ending.behind * self.seconds
        self.attached.drain()
        # What was under way has left by now; the seconds are those of the steps.
        self.trained = self._meter() | {name: ended[name] for name in ("seconds_waiting", "seconds_compressing")}
        self.link.barrier()
        self.link.timeout = patience
        self._save()  # as it is before the finish, so that more steps may follow
        if self.ending.reason != "interrupted":
            self._look_apart()
            self._finish()
            self._judge()
        final = None if self.ending.reason == "interrupted" else self._evaluate()
        self._summarise(final)
        if self.rank == 0:  # all have saved by now
            checkpoint.tidy(self.folder, self.size)
        self.attached.detach()
        self.link.barrier()  # nobody leaves while another still reads
        self.link.close()
        if self.process:
            ready.unlink(missing_ok=True)

    # -- training --------------------------------------------------------------------------------------------

    def _train(self) -> None:
        sync = self.attached
        batches = self._batches()
        snapshots = self._schedule()
        self.link.barrier()
        with open(self.metrics, "a", buffering=1 << 16) as metrics:
            start, flushed = self.link.now(), time.monotonic()
            self.idle = self.link.meter.reading()
            if self.step and self._done():
                self.ending.ask("done")  # a finished run that is resumed takes no step more
            while self.ending.may_begin(1 + (sync.rounds if self.uneven else self.step)):
                self._set_rates()
                share = sync.share
                batch = batches.take(share)
                sync.zero_grad()
                value = self._learn(batch)
                self.step += 1
                self._count(self.workload.tokens(batch), share)
                self.seconds = self.spent + self.link.now() - start
                self._record(metrics, value)
                if snapshots and self._reached(snapshots[0]):
                    while snapshots and self._reached(snapshots[0]):
                        snapshots.pop(0)
                    self._snapshot()
                if self._done():
                    self.ending.ask("done")
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    metrics.flush()
                    flushed = time.monotonic()
                if self._due():
                    self._save()
        if (self.points[-1]["step"] if self.points else self.measured) != self.step:
            self._snapshot()

    def _set_rates(self) -> None:
        """Give the optimizer the learning rates of the coming step; without a schedule they are as they were."""
        recipe = self.recipe
        if recipe.schedule != CONSTANT or recipe.warmup:
            share = factor(recipe.schedule, recipe.warmup, self.steps, recipe.steps)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * share

    def _finish(self) -> None:
        """What the method does once after the last step; its seconds and bytes are the run's."""
        if self.attached.sync.finish is None:
            return
        before, start = self.link.meter.reading(), self.link.now()
        self.attached.finish()
        if self.attached.sync.recalibrates:
            self._recalibrate()
        self.seconds += self.link.now() - start
        after = self.link.meter.reading()
        self.trained = {name: value + after[name] - before[name] for name, value in self.trained.items()}
        self._snapshot()

    def _look_apart(self) -> None:
        """Keep this worker's weights and the mean of all, where they differ; training knows nothing of it."""
        if self.attached.sync.equal or self.size == 1:
            return
        own = {name: value.clone() for name, value in self.attached.weights().items()}
        mean = merging.merged(self.attached)
        with merging.standing_in(self.model, mean):
            self._recalibrate()
            mean |= {name: value.clone() for name, value in self.model.named_buffers()}
        self.apart = [own, mean]

    def _recalibrate(self) -> None:
        taken = (self.recut.take(1.0) for _ in range(CALIBRATION))
        merging.reestimate(self.model, lambda batch: self.workload.loss(self.model, batch), taken, self.link)

    def _judge(self) -> None:
        """The held-out loss of this worker's own weights, and on worker 0 of the mean of all, where they differ."""
        if not self.apart:
            return
        own, mean = self.apart
        batches = self._curve(list(self.workload.batches("eval", 0, self.size, self.recipe.seed)))
        self.judged["distance"] = merging.distance(own, mean)
        for name, weights in (("local_loss", own), ("merged_loss", mean))[: 2 if self.rank == 0 else 1]:
            with merging.standing_in(self.model, weights):
                self.judged[name] = self._held_out(batches)

    @property
    def steps(self) -> float:
        """Steps of each worker; where they take unequal numbers, the mean: at a round's end the same on all."""
        return self.attached.taken if self.uneven else self.step

    def _count(self, tokens: int, share: float) -> None:
        """Count a batch: what others see in a step, or a share, is taken to be as much as here."""
        self.own += tokens
        if self.uneven:
            self.tokens = round(self.own / self.step * self.steps * self.size)
        else:
            self.tokens += round(tokens / share) * self.size

    def _due(self) -> bool:
        """Whether a checkpoint is due: once in so many steps, and where they are unequal at the end of a round."""
        if not self.uneven:
            return self.step % self.recipe.save_every == 0
        ended = self.attached.rounds > self.rounds
        self.rounds = self.attached.rounds
        return ended and int(self.steps) // self.recipe.save_every > self.saved // self.recipe.save_every

    def _done(self) -> bool:
        recipe = self.recipe
        if recipe.steps is not None:
            return self.steps >= recipe.steps
        if recipe.tokens is not None:
            return self.tokens >= recipe.tokens
        return self.rank == 0 and self.seconds >= (recipe.seconds or 0)

    def _reached(self, share: float) -> bool:
        recipe = self.recipe
        if recipe.seconds is not None:
            return self.seconds >= share * recipe.seconds
        whole = recipe.steps if recipe.steps is not None else (recipe.tokens or 0)
        return (self.steps if recipe.steps is not None else self.tokens) >= share * whole

    def _schedule(self) -> list[float]:
        """Shares of the run at which to keep the weights: close together at first, where the loss falls fast."""
        if self.rank != 0:
            return []
        room = max(2, points.MOST_BYTES // max(1, sum(p.numel() * p.element_size() for p in self.model.parameters())))
        number = min(points.MOST, room)
        shares = [0.01 * 100 ** (i / (number - 1)) for i in range(number)]
        return [share for share in shares if not self._reached(share)]

    def _snapshot(self) -> None:
        if self.rank == 0:
            weights = self.attached.weights() | dict(self.model.named_buffers())
            kept = {name: value.detach().clone() for name, value in weights.items()}
            reading = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
            self.points.append(reading | {"bytes_out": self._meter()["bytes_out"], "weights": kept})

    def _record(self, metrics: TextIO, loss: float) -> None:
        counts = self._meter()
        line = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
            "loss": loss,
            "bytes_out": int(counts["bytes_out"]),
            "messages_out": int(counts["messages_out"]),
            **{name: round(seconds, 6) for name, seconds in self._split(counts).items()},
        }
        metrics.write(json.dumps(line) + "\n")

    def _meter(self) -> dict[str, float]:
        counts = self.link.meter.reading()
        return {name: value - self.idle.get(name, 0) + self.before.get(name, 0) for name, value in counts.items()}

    def _split(self, counts: dict[str, float]) -> dict[str, float]:
        waiting, compressing = counts["seconds_waiting"], counts["seconds_compressing"]
        return {
            "seconds_computing": max(0.0, self.seconds - waiting - compressing),
            "seconds_compressing": compressing,
            "seconds_waiting": waiting,
        }

    # -- the workload's functions, whose errors name themselves ----------------------------------------------

    def _batches(self) -> Recut:
        apart = randomness.Apart(own_seed(self.recipe.seed, self.rank))
        with apart:
            stream = self.workload.batches("train", self.rank, self.size, self.recipe.seed)

        def draw() -> Any:
            with apart:
                return self._next(stream)

        batches = Recut(draw)
        if self.step:  # a resumed run takes up where it was, also where batches are drawn from a generator of all
            batches.skip(self.drawn)
        self.recut = batches
        return batches

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches)
        except StopIteration:
            raise WorkloadError(
                f"worker {self.rank}: batches ended after step {self.step}; the training split must go on for ever"
            ) from None
        except LaconicError:
            raise
        except Exception as error:
            raise self._failed("batches", error) from error

    def _learn(self, batch: Any) -> float:
        """Take a step by a batch; its loss."""
        if self.attached.sync.explore is None:
            value = self._gradients(batch)
            self.attached.step()
            return value
        found = self.attached.step(lambda: self._loss(batch))
        assert found is not None
        nan_check(found, self.rank, self.step + 1, self.model)
        return found

    def _gradients(self, batch: Any) -> float:
        """The loss of a batch, its gradients in the parameters."""
        loss = self._loss(batch)
        value = float(loss.detach())
        nan_check(value, self.rank, self.step + 1, self.model)
        if self.pace is not None:
            self.pace.backward()
        try:
            loss.backward()
        except LaconicError:
            raise
        except Exception as error:
            raise self._failed("backward", error) from error
        if self.pace is not None:
            self.pace.done()
        return value

    def _loss(self, batch: Any) -> Tensor:
        if self.pace is not None:
            self.pace.forward(self.workload.tokens(batch))
        try:
            loss = self.workload.loss(self.model, batch)
        except LaconicError:
            raise
        except Exception as error:
            raise self._failed("loss", error) from error
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise WorkloadError(
                f"worker {self.rank}, step {self.step + 1}: loss must return a single number, got {got}"
            )
        self.drag.pull()
        return loss

    def _failed(self, what: str, error: Exception) -> WorkloadError:
        path = str(self.workload.path) if self.workload.path else None
        return WorkloadError(f"worker {self.rank}, step {self.step + 1}: {what} failed: {_told(error, path)}")

    # -- after training --------------------------------------------------------------------------------------

    def _evaluate(self) -> float | None:
        """The held-out loss of the weights kept along the way, and of the last ones; on rank 0 only."""
        if self.rank != 0:
            return None
        try:
            return self._evaluated()
        except LaconicError:
            raise
        except Exception as error:
            path = str(self.workload.path) if self.workload.path else None
            raise WorkloadError(f"worker 0: the evaluation after training failed: {_told(error, path)}") from error

    def _evaluated(self) -> float:
        batches = list(self.workload.batches("eval", 0, self.size, self.recipe.seed))
        curve = self._curve(batches)
        state = {name: value.clone() for name, value in self.model.state_dict().items()}
        with open(self.folder / "evals.jsonl", "a") as out:
            for point in self.points:
                self._put(point.pop("weights"))
                out.write(json.dumps(point | {"eval_loss": self._held_out(curve)}) + "\n")
                out.flush()
        final = self._held_out(batches)
        if self.step:
            nan_check(final, self.rank, self.step, self.model)  # the last step's own loss was taken before it
        points.forget(self.folder)
        self.model.load_state_dict(state)
        return final

    def _curve(self, batches: list[Any]) -> list[Any]:
        return batches[:: CURVE_SHARE if len(batches) >= 2 * CURVE_SHARE else 1]

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        places = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, value in weights.items():
            places[name].copy_(value)  # a tied parameter has one name here, and two in a state_dict

    @torch.no_grad()
    def _held_out(self, batches: list[Any]) -> float:
        self.model.eval()
        counts = [self.workload.tokens(batch) for batch in batches]
        values = [float(self.workload.loss(self.model, batch)) for batch in batches]
        self.model.train()
        return sum(n * v for n, v in zip(counts, values, strict=True)) / sum(counts)

    def _summarise(self, final: float | None) -> None:
        lines = self.metrics.read_text().splitlines()  # of all parts of this run
        recent = [json.loads(line)["loss"] for line in lines[-max(1, len(lines) // 20) :]]
        counts = self.trained
        mine = {"loss": sum(recent) / len(recent) if recent else math.nan} | self._split(counts)
        mine |= {"bytes_out": int(counts["bytes_out"]), "messages_out": int(counts["messages_out"])}
        mine |= {"steps": self.step, "tokens": self.own}
        mine |= {name: value for name, value in self.judged.items() if name != "merged_loss"}
        mine["bytes_out_in_all"] = self.link.meter.bytes_out  # of this process, from the first weights to the last
        (self.folder / f"worker-{self.rank}.json").write_text(json.dumps(mine))
        # Worker 0 may take longer to evaluate than a peer may be silent in training.
        self.link.timeout = max(self.link.timeout, EVALUATION_SECONDS)
        self.link.barrier()
        if self.rank != 0:
            return
        everyone = [json.loads((self.folder / f"worker-{r}.json").read_text()) for r in range(self.size)]
        mean = {key: sum(w[key] for w in everyone) / self.size for key in mine}
        recipe = self.recipe
        summary = {
            "name": recipe.method,
            "workload": recipe.workload,
            "workers": self.size,
            "link": ", ".join([recipe.link or recipe.cluster or "as it is", *recipe.links]),
            "measured_on": recipe.on,
            "steps": self.steps if not self.uneven else round(mean["steps"], 3),
            "tokens": sum(w["tokens"] for w in everyone),
            "seconds": self.seconds,
            "loss": mean["loss"],
            "eval_loss": final,
            **(self._apartness(mean) if self.judged else {}),
            "bytes_out": round(mean["bytes_out"]),
            "messages_out": round(mean["messages_out"]),
            "bytes_exact": self.link.exact,
            **{key: mean[key] for key in ("seconds_computing", "seconds_compressing", "seconds_waiting")},
            "parameters": sum(p.numel() for p in self.model.parameters()),
            **({"worker_steps": [w["steps"] for w in everyone]} if self.uneven else {}),
            "predicted": None,
            "versions": versions(),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "command": os.environ.get("LACONIC_COMMAND", ""),
            "stopped": None if self.ending.reason in ("done", None) else self.ending.reason,
        }
        (self.folder / "summary.json").write_text(json.dumps(strict(summary), indent=1, allow_nan=False))

    def _apartness(self, mean: dict[str, float]) -> dict[str, float]:
        """What the workers' own weights are worth on average, what their mean is, and how far they are from it."""
        held = sum(value.numel() for value in self.apart[0].values())
        return {
            "local_loss": mean["local_loss"],
            "merged_loss": self.judged["merged_loss"],
            "consensus": mean["distance"],
            "weight_std": math.sqrt(mean["distance"] / held),
        }

    # -- checkpoints -----------------------------------------------------------------------------------------

    def _save(self) -> None:
        meter = self.trained or self._meter()  # once training has ended, what comes after is not the method's
        progress = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "meter": meter}
        progress |= {"own": self.own, "drawn": self.recut.taken}
        self.saved = int(self.steps)  # where workers take unequal steps, a mark that all of them know
        if self.rank == 0:
            points.keep(self.folder, self.points)
        checkpoint.save(self.folder, self.saved, self.model, self.attached, progress)

    def _resume(self, saved: int) -> None:
        progress = checkpoint.load(self.folder, saved, self.model, self.attached)
        step = progress["step"]
        self.step, self.tokens, self.own, self.drawn = step, progress["tokens"], progress["own"], progress["drawn"]
        self.saved, self.rounds = saved, self.attached.rounds if self.uneven else 0
        self.seconds = self.spent = progress["seconds"]
        self.before = progress["meter"]
        _cut_after(self.metrics, step)
        if self.rank == 0:
            _cut_after(self.folder / "evals.jsonl", step)
            measured = _steps(self.folder / "evals.jsonl")
            self.measured = max(measured, default=-1)
            self.points = points.kept(self.folder, step, measured)


def own_seed(seed: int, rank: int) -> int:
    """The seed of torch's generator on one worker: were it everyone's, all would drop out and draw the same."""
    return random.Random(f"worker/{seed}/{rank}").getrandbits(63)


def versions() -> dict[str, str]:
    """What the run was made with."""
    found = {"laconic": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return found | {"commit": commit(Path(__file__).parent)}


def commit(package: Path) -> str:
    """The commit that the package's folder is checked out from; "unknown" where git does not track it."""

    def git(*words: str) -> str:
        argv = ["git", "-C", str(package), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        # An environment may lie inside a project's own checkout, whose commit is not ours.
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "--short", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def assemble(recipe: Recipe, workload: Workload, link: Link, pace: Pace | None = None) -> Attached:
    """A worker's model, optimizer and method, put together on its link; ``pace`` watches the model.

    Raises: ConfigError, ClashError, WorkloadError: what does not go together.
    """
    try:
        model = workload.make_model()
        optimizer = workload.make_optimizer(model)
    except LaconicError:
        raise
    except Exception as error:
        path = str(workload.path) if workload.path else None
        raise WorkloadError(f"worker {link.rank}: the model cannot be made: {_told(error, path)}") from error
    sync = build(recipe.method, seeded(recipe))
    if sync.explore is not None:  # it takes its steps itself, by the learning rate alone
        optimizer = torch.optim.SGD(
            [p for group in optimizer.param_groups for p in group["params"]], lr=optimizer.param_groups[0]["lr"]
        )
    set_learning(optimizer, sync, recipe.lr)
    if pace is not None:
        pace.watch(model)
    return Attached(model, optimizer, sync, link, clip=recipe.clip)


def _link(recipe: Recipe) -> Link:
    if recipe.on == "paced":
        rank, size, store = rendezvous(recipe.timeout)
        return PacedLink(rank, size, store, recipe.replace(workers=size).network(), timeout=recipe.timeout)
    link = process_group(timeout=recipe.timeout)
    link.network = recipe.links_of(link.size)
    return link


def _ending(recipe: Recipe, link: Link) -> Ending:
    asking, waiting = (rendezvous(recipe.timeout, "ending")[2] if link.size > 1 else None for _ in range(2))
    return Ending(asking, waiting, link.rank, link.size, link.gone, recipe.timeout)


def set_learning(optimizer: torch.optim.Optimizer, sync: Sync, lr: float | None = None) -> None:
    """Set the learning rate if one is given, and take the optimizer's momentum away if the method carries it.

    Raises: ConfigError for an optimizer that is neither SGD nor of Adam's family, where the method carries momentum.
    """
    for group in optimizer.param_groups:
        if lr is not None:
            group["lr"] = lr
        if not sync.momentum:
            continue
        if "momentum" in group:
            group["momentum"], group["nesterov"] = 0.0, False
        elif "betas" in group:
            group["betas"] = (0.0, group["betas"][1])
        else:
            raise ConfigError(
                f"{type(optimizer).__name__} has no momentum to hand over to the method; use SGD or AdamW"
            )


def _told(error: BaseException, path: str | None = None) -> str:
    """An error with the line it came from: the last in the file ``path``, else the last outside of libraries."""
    frames = list(reversed(traceback.extract_tb(error.__traceback__)))
    own = [f for f in frames if f.filename == path] or [f for f in frames if "site-packages" not in f.filename]
    where = f" ({own[0].filename}:{own[0].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"


def _steps(path: Path) -> set[int]:
    return {json.loads(line)["step"] for line in path.read_text().splitlines()} if path.exists() else set()


def _cut_after(path: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will take again."""
    if path.exists():
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(status)  # threads that still wait inside torch's C++ would abort an ordinary exit
