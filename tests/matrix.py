"""Every compressor with every feedback in every exchange under every sync: what is refused, and what trains.

``python tests/matrix.py`` trains all of it and writes ``docs/matrix.md``; ``tests/test_matrix.py`` trains a part.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import inspect
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from laconic import attach, compress, exchange, sync  # noqa: E402
from laconic.errors import ConfigError  # noqa: E402
from laconic.exchange import Exchange  # noqa: E402
from laconic.exchange.base import take  # noqa: E402
from laconic.exchange.with_momentum import MomentumState  # noqa: E402
from laconic.links import memory  # noqa: E402
from laconic.nesting import bind, read  # noqa: E402
from laconic.sync import Sync  # noqa: E402
from tests.tiny import digest, seeded  # noqa: E402

PAGE = ROOT / "docs" / "matrix.md"
WORKERS, STEPS, SAVED = 3, 6, 2
NONE = "none"
TRAINED, BIASED = "+", "~"

# Tensors here are tiny: settings under which each part has something to do.
SMALL: dict[str, dict[str, Any]] = {
    "streaming": {"every": 4, "fragments": 2},
    "switch": {"at": 6},  # the second half's rounds are longer than what is trained here
    "powersgd": {"rank": 1, "min_rate": 1.0},
    "econtrol": {"eta": 0.1},
    "qsgd": {"levels": 1},  # as far off here as it is with its defaults on tensors of a usual size
    # What these do follows seconds that they measure, and no two runs measure the same: hold it fixed.
    "adaptive": {"every": 1000},
    "uneven_steps": {"every": 2, "least": 2, "most": 2},
    "uneven_batches": {"parts": 1},
    "hcef": {"least_steps": 2, "most_steps": 2, "least_density": 0.2, "most_density": 0.2},
}
USUAL = {"density": 0.2, "every": 2}
BETA = 0.9  # of with_momentum, by default


class Cell(NamedTuple):
    """One nesting; ``compressor`` is empty for an exchange that compresses by itself."""

    compressor: str
    feedback: str
    exchange: str
    sync: str

    @property
    def packed(self) -> str:
        """The compressor with its feedback, as text."""
        if not self.compressor:
            return "identity()"
        inner = call(compress, self.compressor)
        return inner if self.feedback == NONE else call(compress, self.feedback, inner)

    @property
    def talk(self) -> str:
        """The exchange, as text."""
        if not self.exchange:
            return ""
        if not self.compressor:
            alone = call(exchange, self.exchange.split("(")[-1].rstrip(")"))
            outer = self.exchange.split("(")[0]
            return alone if "(" not in self.exchange else call(exchange, outer, *[alone] * talks(outer))
        if takes(exchange, self.exchange, "compressor"):
            return call(exchange, self.exchange, self.packed)
        return call(exchange, self.exchange, *[call(exchange, "everyone", self.packed)] * talks(self.exchange))

    @property
    def text(self) -> str:
        """The whole nesting."""
        return call(sync, self.sync, *filter(None, [self.talk]))


def public(room: Any) -> list[str]:
    """The names of a room's functions."""
    return [name for name in room.__all__ if inspect.isfunction(getattr(room, name))]


def first(room: Any, name: str) -> str:
    """The name of a function's first parameter."""
    return next(iter(inspect.signature(getattr(room, name)).parameters), "")


def takes(room: Any, name: str, what: str) -> bool:
    """Whether a function is given a part of that name first."""
    return first(room, name) == what


def talks(name: str) -> int:
    """How many exchanges an exchange is made of."""
    hints = inspect.signature(getattr(exchange, name)).parameters.values()
    return sum("Exchange" in str(p.annotation) for p in hints)


def call(room: Any, name: str, *parts: str) -> str:
    """A call as text, with settings for tiny tensors."""
    given = [f"{key}={value!r}" for key, value in settings(room, name).items()]
    return f"{name}({', '.join([*parts, *given])})"


@cache
def settings(room: Any, name: str) -> dict[str, Any]:
    """Settings for tiny tensors."""
    parameters = inspect.signature(getattr(room, name)).parameters
    return {key: value for key, value in USUAL.items() if key in parameters} | SMALL.get(name, {})


def compressors() -> list[str]:
    """Every compressor that is no feedback."""
    return [name for name in public(compress) if name not in feedbacks()]


@cache
def feedbacks() -> list[str]:
    """Every wrapper that remembers what was dropped."""
    return [NONE, *(n for n in public(compress) if takes(compress, n, "compressor") and n != "damped")]


@cache
def columns() -> list[tuple[str, str]]:
    """Every exchange that carries a compressor's packets, with every sync."""
    carry = [name for name in public(exchange) if takes(exchange, name, "compressor") or talks(name)]
    return [(to, when) for to in carry for when in syncs()]


@cache
def syncs() -> list[str]:
    """Every sync of an exchange."""
    return [name for name in public(sync) if takes(sync, name, "exchange")]


def cells() -> list[Cell]:
    """All of the matrix."""
    rows = [(what, how) for how in feedbacks() for what in compressors()]
    return [Cell(*row, *column) for row in rows for column in columns()]


def by_themselves() -> list[Cell]:
    """Exchanges that compress by themselves, alone and within others, and syncs that bring an exchange of their own."""
    alone = [n for n in public(exchange) if not takes(exchange, n, "compressor") and not talks(n)]
    made = [f"{outer}({inner})" for outer in public(exchange) if talks(outer) for inner in alone]
    whole = [Cell("", NONE, "", when) for when in public(sync) if when not in syncs()]
    return [Cell("", NONE, to, when) for to in [*alone, *made] for when in syncs()] + whole


def refusals(wanted: Sequence[Cell]) -> dict[Cell, str]:
    """Why each cell cannot be trained, as it is said before anything is sent; empty for those that can.

    What raises anything else than a ConfigError is not refused: training it finds the fault.
    """
    said: dict[Cell, str] = {}

    def build(link: Any) -> None:
        for cell in wanted:
            try:
                attach(*model_and_optimizer(), method(cell), link)
            except ConfigError as error:
                said[cell] = plainly(cell, " ".join(str(error).split()))
            except Exception:
                said[cell] = ""
            else:
                said[cell] = ""

    memory.run(1, build)
    return said


@cache
def part(text: str) -> Any:
    """What a text stands for, or why it stands for nothing."""
    try:
        return read(text)
    except ConfigError as error:
        return error


def method(cell: Cell, wrap: Callable[[Exchange], Exchange] = lambda talk: talk) -> Sync:
    """The sync of a cell, around its exchange as ``wrap`` has it.

    Raises: ConfigError.
    """
    if not cell.exchange:
        return bind(cell.sync, getattr(sync, cell.sync), [], settings(sync, cell.sync))
    talk = part(cell.talk)
    if isinstance(talk, ConfigError):
        raise talk
    return bind(cell.sync, getattr(sync, cell.sync), [wrap(talk)], settings(sync, cell.sync))


def plainly(cell: Cell, reason: str) -> str:
    """A reason with C, F and X for compressor, feedback and exchange, so that it reads alike for all of them."""
    alone = call(compress, cell.compressor or "identity")
    for letter, text in (("X", cell.talk or "everyone()"), ("C", cell.packed), ("C", alone)):
        made = part(text)
        if not isinstance(made, ConfigError):  # else it is this part that refuses
            reason = re.sub(rf"\b{re.escape(made.name)}(?![(\w])", letter, reason)
    # A feedback that refuses says who it is first; error_feedback is also named as what to use elsewhere.
    if cell.feedback != NONE and reason.startswith(f"{cell.feedback}:"):
        reason = re.sub(rf"^{cell.feedback}\b|(?<=[ (]){cell.feedback}(?=\(damped|\(C| \()", "F", reason)
    return reason


def senseless(cell: Cell) -> bool:
    """Whether what a biased compressor drops is lost for good."""
    made = part(cell.packed)
    return cell.feedback == NONE and made.omega is None and made.name != "identity"


# -- training ------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    """Two layers, so two blocks; every tensor of another shape."""
    return seeded(nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double())


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A new model and plain SGD: some methods bring momentum of their own."""
    made = net()
    return made, torch.optim.SGD(made.parameters(), lr=0.05)


ROWS = {(rank, step): torch.Generator().manual_seed(100 * rank + step) for rank in range(4) for step in range(16)}
DATA = {key: torch.randn(8, 6, generator=made, dtype=torch.float64) for key, made in ROWS.items()}


class Round(NamedTuple):
    """What a worker gave to an exchange and got from it, in all rounds, and the state it ended with."""

    given: list[Tensor]
    got: list[Tensor]
    last: list[Tensor]
    state: Any


class Ran(NamedTuple):
    """What one worker has to show."""

    losses: list[float]
    weights: str
    shared: str
    resumed: str
    anchors: str
    rounds: dict[str, Round]


def recorded(talk: Exchange, rounds: dict[str, Round]) -> Exchange:
    """The exchange, which leaves a record of each set of tensors' rounds."""

    def run(tensors: Sequence[Tensor], state: Any, link: Any) -> tuple[list[Tensor], Any]:
        got, after = talk.run(tensors, state, link)
        key = str([list(t.shape) for t in tensors])
        before = rounds.get(key)
        given = [t.detach().clone() for t in tensors]
        mine = [t.detach().clone() for t in got]
        if before is not None:
            given = [a + b for a, b in zip(before.given, given, strict=True)]
            mine = [a + b for a, b in zip(before.got, mine, strict=True)]
        rounds[key] = Round(given, mine, [t.detach().clone() for t in got], after)
        return got, after

    return talk._replace(run=run)


def train(cell: Cell) -> list[Ran]:
    """Train it on a few workers, and a part of it again from a checkpoint."""

    def work(link: Any) -> Ran:
        rounds: dict[str, Round] = {}
        made, optimizer = model_and_optimizer()
        attached = attach(made, optimizer, method(cell, lambda talk: recorded(talk, rounds)), link)
        losses, saved, weights = [], None, None
        for step in range(STEPS):
            if step == SAVED:
                saved, weights = copy.deepcopy(attached.state_dict()), copy.deepcopy(made.state_dict())
            losses.append(one_step(attached, made, link.rank, step))
        attached.drain()
        assert saved is not None
        assert weights is not None
        other, again = model_and_optimizer()
        resumed = attach(other, again, method(cell), link)
        other.load_state_dict(weights)
        resumed.load_state_dict(saved)
        for step in range(SAVED, STEPS):
            one_step(resumed, other, link.rank, step)
        resumed.drain()
        return Ran(
            losses,
            digest(made.parameters()),
            digest(attached.weights().values()),
            digest(other.parameters()),
            digest(fields(attached._state, "anchor")),
            rounds,
        )

    return memory.run(WORKERS, work)


def one_step(attached: Any, made: nn.Module, rank: int, step: int) -> float:
    """One step of an ordinary loop; the loss before it."""
    x = DATA[rank, step]
    y = x[:, :3].argmax(dim=1)
    if attached.sync.explore is not None:
        return float(attached.step(lambda: nn.functional.cross_entropy(made(x), y)))
    loss = nn.functional.cross_entropy(made(x), y)
    loss.backward()
    attached.step()
    attached.zero_grad()
    return float(loss.detach())


def fields(state: Any, name: str) -> list[Tensor]:
    """Every tensor in fields of that name, anywhere in a state."""
    found: list[Tensor] = []
    for key, value in children(state):
        if key == name:
            found += [value] if isinstance(value, Tensor) else list(value)
        else:
            found += fields(value, name)
    return found


def children(state: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a state, with their names where they have one."""
    if hasattr(state, "_fields"):
        yield from zip(state._fields, state, strict=True)
    elif isinstance(state, list | tuple):
        yield from (("", value) for value in state)


# -- judging -------------------------------------------------------------------------------------------------


def faults(cell: Cell, ran: list[Ran]) -> list[str]:
    """What a trained cell broke of what it promises."""
    equal = method(cell).equal
    found = []
    if not all(abs(loss) < 10 for worker in ran for loss in worker.losses):
        found.append(f"losses are {[round(worker.losses[-1], 3) for worker in ran]}")
    talk = method(cell).exchange
    if (talk is None or talk.equal) and len({worker.anchors for worker in ran}) > 1:
        found.append("the shared anchors differ between workers")
    if equal and len({worker.shared for worker in ran}) > 1:
        found.append("the shared weights differ between workers, and it says equal")
    if equal and len({worker.weights for worker in ran}) > 1:
        found.append("the weights differ between workers after a round, and it says equal")
    if any(worker.resumed != worker.weights for worker in ran):
        found.append("a run resumed from a checkpoint ends elsewhere")
    return found + lost(cell, ran)


def lost(cell: Cell, ran: list[Ran]) -> list[str]:
    """Where what went in is neither in what came out nor in a residual."""
    law = BETWEEN.get(cell.exchange) or (LAWS.get(cell.feedback) if cell.compressor else kept)
    if cell.feedback == NONE and cell.compressor not in ("", "identity"):
        return []
    if law is None:
        return [f"no law is written down for {cell.feedback}: add one to tests/matrix.py"]
    found = []
    for key in ran[0].rounds:
        rounds = [worker.rounds[key] for worker in ran]
        for i, given in enumerate(rounds[0].given):
            error = float(law(rounds, i).abs().max()) if given.numel() else 0.0
            scale = max(float(r.given[i].abs().max()) for r in rounds)
            if not error <= tolerance(cell) * scale:
                found.append(f"{error / scale:.1e} of the mass of {list(given.shape)} is lost")
    return found


def tolerance(cell: Cell) -> float:
    """Rounding of float64; of 16 bits where packets of these are summed in flight."""
    made = part(cell.packed)
    if made.summable and cell.exchange != "pairs":
        x = torch.ones(4, 4, dtype=torch.float64)
        packet, _ = made.compress(x, made.init(x))
        if any(t.dtype.itemsize == 2 for t in packet.tensors.values()):
            return 0.05
    return 1e-9


def kept(rounds: list[Round], i: int) -> Tensor:
    """Sum of results + mean residual - sum of mean inputs: error feedback's law, EControl's and PowerSGD's.

    A running mean that was sent in the inputs' place owes ``b / (1 - b)`` times itself.
    """
    total = torch.zeros_like(rounds[0].given[i])
    for r in rounds:
        total += (r.got[i] - r.given[i]) / len(rounds)
        for owned, residual in residuals(take(r.state, [i])):
            total += residual.reshape(total.shape).to(total) / (1 if owned else len(rounds))
    return total


def residuals(state: Any, owned: bool = False) -> Iterator[tuple[bool, Tensor]]:
    """Every residual in a state, and whether it is one of the mean itself, which its owner keeps for all."""
    if isinstance(state, MomentumState):
        yield from ((owned, value * BETA / (1 - BETA)) for value in state.mean)
    for key, value in children(state):
        if isinstance(value, Tensor) and key in ("residual", "error"):
            yield owned, value
        elif key == "residual":  # powersgd's: one a tensor, or none
            yield from ((owned, v) for v in value if v is not None)
        else:
            yield from residuals(value, owned or key == "back")


def told(rounds: list[Round], i: int) -> Tensor:
    """EF21's law: the result is the mean of what everyone told; vectors go whole, with nothing told."""
    parts = [fields(take(r.state, [i]), "told") for r in rounds]
    if not parts[0]:
        return kept(rounds, i)
    return sum(p[0] for p in parts) / len(parts) - rounds[0].last[i]


def nothing(rounds: list[Round], i: int) -> Tensor:
    """Momentum's law is about sums of what the compressor keeps to itself; its own tests have it."""
    return torch.zeros(1)


def stayed(rounds: list[Round], i: int) -> Tensor:
    """Mixing's law: the workers' mean is what it was, whatever a compressor drops, and feedback owes nothing."""
    return sum((r.got[i] - r.given[i] for r in rounds), torch.zeros_like(rounds[0].given[i])) / len(rounds)


Law = Callable[[list[Round], int], Tensor]
LAWS: dict[str, Law] = {
    NONE: kept,
    "error_feedback": kept,
    "econtrol": kept,
    "ef21": told,
    "ef21_sgdm": told,
    "momentum_correction": nothing,
}
# Exchanges between some of the workers, whose law is another. Of neighbours the mean drifts, as it is meant to; of
# push_sum masses stay, which are in its own tests.
BETWEEN: dict[str, Law] = {"graph": stayed, "neighbours": nothing, "push_sum": nothing}


# -- the page ------------------------------------------------------------------------------------------------


def cover(wanted: Sequence[Cell]) -> list[Cell]:
    """Some of the cells, so that any two choices which meet in one of them meet in one of these."""
    seen: set[tuple[int, str, int, str]] = set()
    chosen = []
    for cell in sorted(wanted, key=lambda cell: digest_of(cell.text)):
        pairs = {(i, cell[i], j, cell[j]) for i in range(4) for j in range(i)}
        if not pairs <= seen:
            seen |= pairs
            chosen.append(cell)
    return chosen


def digest_of(text: str) -> int:
    """A number that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def page(said: dict[Cell, str], note: str) -> str:
    """The page, with ``note`` on the run that trained it."""
    reasons = {reason: number + 1 for number, reason in enumerate(sorted({r for r in said.values() if r}))}
    lines = [INTRODUCTION, note, ""]
    whens = syncs()
    for to in dict.fromkeys(cell.exchange for cell in said if cell.compressor):
        lines += [f"## {to}", "", f"| feedback | compressor | {' | '.join(whens)} |", "| --- " * (2 + len(whens)) + "|"]
        rows: dict[tuple[str, ...], list[str]] = {}
        for how in feedbacks():
            for what in compressors():
                marks = [mark(Cell(what, how, to, when), said, reasons) for when in whens]
                rows.setdefault((how, *marks), []).append(f"`{what}`")
        lines += [f"| {key[0]} | {', '.join(names)} | {' | '.join(key[1:])} |" for key, names in rows.items()] + [""]
    lines += ["## What compresses by itself", "", f"| | {' | '.join(whens)} |", "| --- " * (1 + len(whens)) + "|"]
    for to in dict.fromkeys(cell.exchange for cell in said if not cell.compressor and cell.exchange):
        marks = [mark(Cell("", NONE, to, when), said, reasons) for when in whens]
        lines.append(f"| `{to}` | {' | '.join(marks)} |")
    for cell in said:
        if not cell.exchange:
            lines += ["", f"`{cell.sync}` brings an exchange of its own: {mark(cell, said, reasons)}"]
    lines += ["", "## Why not", "", LETTERS, ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def mark(cell: Cell, said: dict[Cell, str], reasons: dict[str, int]) -> str:
    """What stands in the table."""
    if said[cell]:
        return str(reasons[said[cell]])
    return BIASED if senseless(cell) else TRAINED


LETTERS = "C is the compressor (with its feedback, unless that refuses), F the feedback, X the exchange of it."
INTRODUCTION = f"""# What goes with what

Every compressor with every feedback, in every exchange, under every sync. {TRAINED} trains. {BIASED} trains, but what
the compressor drops is lost for good and it is not known to be unbiased: use a feedback. A number says why it is
refused (below), which happens when the nesting is built or attached, and never at a later step.

Each cell that is not refused was trained for {STEPS} steps on {WORKERS} workers in one process (float64, a network of
two layers, plain SGD), and checked for: finite losses; the same bits on every worker where the method says equal, and
the same anchors; a run resumed from a checkpoint of step {SAVED}, with what was under way, that ends in the same bits;
and that nothing is lost, for feedbacks whose law says so: the sum of results plus the mean residual is the sum of mean
inputs, to 1e-9 of the largest. Where packets of 16 bits are summed in flight it is to 5e-2: such sums round, and no
residual holds that.

`python tests/matrix.py` trains all of it and writes this page. `tests/test_matrix.py` checks that no mark is out of
date, and trains enough of the cells that any two choices which may meet do meet.
"""


def main() -> int:
    """Train what may be trained, and write the page or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--marks-only", action="store_true", help="write the marks, and keep the note on the last run")
    parser.add_argument("--check", action="store_true", help="train a part, and see whether the page is up to date")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    said = refusals([*cells(), *by_themselves()])
    legal = [cell for cell, reason in said.items() if not reason]
    old = re.search(r"^Trained: .*$", PAGE.read_text(), re.MULTILINE) if PAGE.exists() else None
    note = old[0] if old else "Trained: not yet."
    trained = [] if args.marks_only else cover(legal) if args.check else legal
    found = sum([report(cell) for cell in trained])
    if args.check:
        dead = [name for place in range(4) for name in {c[place] for c in said} - {c[place] for c in legal}]
        stale = not PAGE.exists() or page(said, note) != PAGE.read_text()
        print(f"{len(trained)} cells of {len(legal)} trained, {found} with faults")
        print("".join(f"{name} trains nowhere\n" for name in dead), end="")
        print("docs/matrix.md is out of date: run `python tests/matrix.py --marks-only`\n" if stale else "", end="")
        return int(bool(found or dead or stale))
    if trained:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        note = (
            f"Trained: {len(legal)} cells of {len(said)}, {found} with faults, in {time.perf_counter() - start:.0f} s "
            f"by `python tests/matrix.py` at {commit}, {platform.machine()}, torch {torch.__version__}."
        )
    PAGE.write_text(page(said, note))
    print(note)
    return int(found > 0)


def report(cell: Cell) -> bool:
    """Train a cell and print its faults; whether it has any."""
    try:
        wrong = faults(cell, train(cell))
    except Exception as error:  # whatever it is, it came after the start
        wrong = [f"{type(error).__name__}: {error}"]
    if wrong:
        print(f"{cell.text}: {'; '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
