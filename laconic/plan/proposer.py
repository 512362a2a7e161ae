"""What to measure next: a proxy learnt from the runs so far ranks what has not been run.

The proxy is a Gaussian process over the choices of each knob: what they do one by one, and a smaller part for what they
do together. It learns the logarithm of what was measured beyond what was predicted, so that with nothing measured the
order is the prediction's. A second one learns what fails.

Source: arXiv:2409.04585 (CubicML), the loop; its proxy is an ensemble of small networks, which needs more runs than the
few dozen that one affords here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from laconic.errors import ConfigError

TOGETHER = (0.02, 0.2, 0.5)  # shares of the variance that the knobs may have together
ORDERED = (0.0, 0.5)  # and of one knob's, what its neighbouring values may have in common
NOISE = (1e-4, 1e-2, 0.1)
REACH = 3.0  # knobs that may differ until choices have little more in common than any
BOLD = 0.5  # deviations added to the mean
LIKELY = 0.5  # chance of running at all, below which nothing is proposed while anything else is left
UNLIKELY = 1e6
POOL, KEPT, GENERATIONS = 400, 40, 6
MOST_LISTED = 4096  # choices that are all looked at

Choice = tuple[int, ...]  # of each knob, which of its values


class Space(NamedTuple):
    """Knobs by name, each with the values it may take; ``predicted`` of a choice in words (higher is better, above 0).

    ``choices``: those there are, where not every combination is one.
    """

    knobs: Mapping[str, Sequence[Any]]
    predicted: Callable[[dict[str, Any]], float] | None = None
    choices: Sequence[Choice] | None = None

    def named(self, choice: Choice) -> dict[str, Any]:
        """A choice in words."""
        return {name: values[at] for (name, values), at in zip(self.knobs.items(), choice, strict=True)}

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each knob has.

        Raises: ConfigError for a knob without any.
        """
        empty = [name for name, values in self.knobs.items() if not len(values)]
        if empty or not self.knobs:
            raise ConfigError(
                f"proposer: {', '.join(empty) or 'nothing'} has values to choose from; each knob needs some"
            )
        return tuple(len(values) for values in self.knobs.values())


class Trial(NamedTuple):
    """A choice and what was measured of it (higher is better, above 0); None if it failed."""

    choice: Choice
    value: float | None


class Found(NamedTuple):
    """The best trial, all of them in order, and how well each round's ranking agreed with what was then measured."""

    best: Trial
    trials: list[Trial]
    agreement: list[float]


def propose(space: Space, trials: Sequence[Trial], number: int = 4, explore: int = 1, seed: int = 0) -> list[Choice]:
    """What to run next: the most promising choices that have not been run, the last ``explore`` of them drawn.

    Fewer than ``number`` only where no more are left. Each is chosen as if those before it had come out as expected, so
    that one round does not ask the same thing four times; before anything has run they are the best predicted. A
    function of its arguments alone.
    """
    draw = random.Random(f"proposer/{seed}/{len(trials)}")
    seen = {trial.choice for trial in trials}
    begun = any(trial.value is not None for trial in trials)
    drawn = min(explore if begun or space.predicted is None else 0, number)
    chosen: list[Choice] = []
    proxy = Proxy(space, trials)
    for _ in range(number - drawn):
        best = _best(space, proxy, seen, draw)
        if best is None:
            return chosen
        chosen.append(best)
        seen.add(best)
        proxy = proxy.as_if(best) if begun or space.predicted is None else proxy
    for _ in range(drawn):
        others = [choice for choice in _pool(space, draw, seen) if choice not in seen]
        runs = [choice for choice, chance in zip(others, proxy.chances(others), strict=True) if chance >= LIKELY]
        if not others:
            break
        chosen.append(draw.choice(runs or others))
        seen.add(chosen[-1])
    return chosen


def search(
    space: Space,
    measure: Callable[[dict[str, Any]], float | None],
    budget: int,
    number: int = 4,
    patience: int | None = None,
    seed: int = 0,
) -> Found:
    """Measure up to ``budget`` choices in rounds; stop early when the best has not improved for ``patience`` rounds.

    ``measure`` gives None for a choice that does not run.

    Raises: ConfigError if none of them ran.
    """
    trials: list[Trial] = []
    agreement: list[float] = []
    stale, top = 0, -math.inf
    while len(trials) < budget and (patience is None or stale < patience):
        chosen = propose(space, trials, min(number, budget - len(trials)), seed=seed)
        if not chosen:
            break
        promised = Proxy(space, trials).promise(chosen)
        new = [Trial(choice, measure(space.named(choice))) for choice in chosen]
        pairs = [(p, trial.value) for p, trial in zip(promised, new, strict=True) if trial.value is not None]
        if len(pairs) > 2:
            agreement.append(spearman([p for p, _ in pairs], [value for _, value in pairs]))
        trials += new
        best = max((value for _, value in pairs), default=-math.inf)
        stale, top = (0, best) if best > top else (stale + 1, top)
    worked = [trial for trial in trials if trial.value is not None]
    if not worked:
        raise ConfigError(f"proposer: none of {len(trials)} choices ran, so that nothing can be learnt from them")
    return Found(max(worked, key=lambda trial: trial.value or 0.0), trials, agreement)


class Proxy:
    """What is believed of choices after some trials."""

    def __init__(self, space: Space, trials: Sequence[Trial]) -> None:
        self.space, self.sizes = space, np.array(space.sizes)
        values: dict[Choice, list[float]] = {}
        for trial in trials:
            if trial.value is not None:
                values.setdefault(trial.choice, []).append(math.log(trial.value) - self._prior([trial.choice])[0])
        self._worked = _Process(self.sizes, list(values), [sum(v) / len(v) for v in values.values()])
        ran = {trial.choice: trial.value is not None for trial in trials}
        self._ran = None if all(ran.values()) else _Process(self.sizes, list(ran), [2.0 * r - 1 for r in ran.values()])

    def as_if(self, choice: Choice) -> Proxy:
        """What would be believed if ``choice`` came out as expected."""
        after = object.__new__(Proxy)
        after.space, after.sizes, after._ran = self.space, self.sizes, self._ran
        after._worked = self._worked.also(choice, float(self._worked([choice])[0][0]))
        return after

    def expected(self, choices: Sequence[Choice]) -> list[float]:
        """The mean of each choice's logarithm, if it runs."""
        return list(self._worked(choices)[0] + self._prior(choices))

    def promise(self, choices: Sequence[Choice]) -> list[float]:
        """The mean and half a deviation of each choice's logarithm, far lower where it is likely to fail."""
        mean, deviation = self._worked(choices)
        promise = mean + BOLD * deviation + self._prior(choices)
        chance = np.array(self.chances(choices))
        return list(np.where(chance < LIKELY, promise - UNLIKELY * (1 - chance), promise))

    def chances(self, choices: Sequence[Choice]) -> list[float]:
        """How likely each is to run, roughly; 1 where none has failed."""
        if self._ran is None or not choices:
            return [1.0] * len(choices)
        mean, _ = self._ran(choices)
        return list(np.clip((1 + mean) / 2, 0, 1))

    def _prior(self, choices: Sequence[Choice]) -> np.ndarray:
        predicted = self.space.predicted
        if predicted is None:
            return np.zeros(len(choices))
        return np.array([math.log(max(predicted(self.space.named(choice)), 1e-300)) for choice in choices])


class _Process:
    """A Gaussian process over choices; which kernel is told by what makes the values most likely."""

    def __init__(self, sizes: np.ndarray, choices: Sequence[Choice], values: Sequence[float]) -> None:
        self.sizes, self.x = sizes, np.array(choices, np.int64).reshape(len(choices), len(sizes))
        raw = np.array(values)
        self.middle, self.scale = (float(raw.mean()), float(raw.std()) or 1.0) if len(raw) else (0.0, 1.0)
        self.y = (raw - self.middle) / self.scale
        options = [(t, o, n) for t in TOGETHER for o in ORDERED for n in NOISE]
        self.kind = max(options, key=self._likelihood) if len(raw) > 2 else options[0]
        self._solve()

    def also(self, choice: Choice, value: float) -> _Process:
        """With one more value, and the kernel as it was."""
        after = object.__new__(_Process)
        after.sizes, after.kind, after.middle, after.scale = self.sizes, self.kind, self.middle, self.scale
        after.x = np.concatenate([self.x, [choice]])
        after.y = np.append(self.y, (value - self.middle) / self.scale)
        after._solve()
        return after

    def __call__(self, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each choice."""
        at = np.array(choices, np.int64).reshape(len(choices), len(self.sizes))
        across = self._kernel(at, self.x, *self.kind[:2])
        half = np.linalg.solve(self.lower, across.T) if len(self.x) else np.zeros((0, len(at)))
        variance = np.clip(1.0 - (half * half).sum(0), 0, None)
        return self.middle + self.scale * (across @ self.weights), self.scale * np.sqrt(variance)

    def _solve(self) -> None:
        inside = self._kernel(self.x, self.x, *self.kind[:2]) + self.kind[2] * np.eye(len(self.x))
        self.lower = np.linalg.cholesky(inside)
        self.weights = np.linalg.solve(inside, self.y) if len(self.x) else self.y

    def _likelihood(self, kind: tuple[float, float, float]) -> float:
        inside = self._kernel(self.x, self.x, *kind[:2]) + kind[2] * np.eye(len(self.x))
        lower = np.linalg.cholesky(inside)
        half = np.linalg.solve(lower, self.y)
        return -float(half @ half) / 2 - float(np.log(np.diag(lower)).sum())

    def _kernel(self, a: np.ndarray, b: np.ndarray, together: float, ordered: float) -> np.ndarray:
        same = (a[:, None] == b[None]).astype(float)
        if ordered:
            near = np.exp(-2 * np.abs(a[:, None] - b[None]) / np.maximum(1, self.sizes - 1))
            same = (1 - ordered) * same + ordered * near
        return (1 - together) * same.mean(2) + together * np.exp((same - 1).sum(2) / REACH)


def _best(space: Space, proxy: Proxy, seen: set[Choice], draw: random.Random) -> Choice | None:
    """The most promising choice that has not been run."""
    pool = [choice for choice in _pool(space, draw, seen) if choice not in seen]
    ranked = _ranked(proxy, pool)
    if space.choices is None and math.prod(space.sizes) > MOST_LISTED:
        for _ in range(GENERATIONS):
            parents = ranked[:KEPT]
            changed = {_changed(space.sizes, draw.choice(parents), draw) for _ in range(POOL)} | set(parents)
            ranked = _ranked(proxy, sorted(changed - seen))
    return ranked[0] if ranked else None


def _ranked(proxy: Proxy, choices: list[Choice]) -> list[Choice]:
    promise = proxy.promise(choices) if choices else []
    return [choices[i] for i in sorted(range(len(choices)), key=lambda i: -promise[i])]


def _pool(space: Space, draw: random.Random, seen: set[Choice]) -> list[Choice]:
    """All choices, or of too many some: drawn, and neighbours of those that have been run."""
    sizes = space.sizes
    if space.choices is not None:
        return list(space.choices)
    total = math.prod(sizes)
    if total <= MOST_LISTED:
        return [_numbered(sizes, number) for number in range(total)]
    near = [_changed(sizes, choice, draw) for choice in sorted(seen)]
    return sorted({*near, *(tuple(draw.randrange(size) for size in sizes) for _ in range(POOL))})


def _numbered(sizes: Sequence[int], number: int) -> Choice:
    found = []
    for size in sizes:
        number, at = divmod(number, size)
        found.append(at)
    return tuple(found)


def _changed(sizes: Sequence[int], choice: Choice, draw: random.Random) -> Choice:
    after = list(choice)
    for at in draw.sample(range(len(after)), min(len(after), draw.choice((1, 1, 2, 3)))):
        after[at] = draw.randrange(sizes[at])
    return tuple(after)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """The correlation of two rankings; equal values share their rank, and where all are equal it is 0."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    scale = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum()) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    below, level = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
    return below + (level - 1) / 2 - (len(values) - 1) / 2
