"""The ways of a comparison: methods with settings each. A sweep makes a way of every value, several sweeps a grid."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from laconic.bench import units
from laconic.errors import ConfigError, unknown
from laconic.methods import REPLACED, build, get
from laconic.nesting import number
from laconic.recipe import Recipe, read_settings
from laconic.sync.timetable import deal
from laconic.workloads import load

ROUNDS = 24  # synchronisations that a run should have at least, and
HIDDEN = 48  # where a number of steps, overlap, hides them
WARM = 20  # a run is this many times longer than its warm-up, at least
MOST_RUNS = 300  # of one comparison
MOST_WAYS = 3000  # of which some are chosen
OPENING, CLOSING = "([{", ")]}"
RATE = "inner_lr"  # a way's own learning rate, beside the settings of its method: every method has one

Told = Callable[[str], None]


class Way(NamedTuple):
    """One way to train: its name, unlike any other's in a comparison, and what it stands for.

    ``rate``: the learning rate of its workload's optimizer, where it is not the comparison's.
    """

    name: str  # "diloco", or "diloco every=50" of a sweep
    method: str
    settings: dict[str, Any]
    swept: dict[str, Any]  # those of the settings (and of the rate) that a sweep chose
    rate: float | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """The comparison's recipe for this way."""
        rate = recipe.lr if self.rate is None else self.rate
        return recipe.replace(method=self.method, settings=self.settings, lr=rate)


class Given(NamedTuple):
    """A ``--set`` or ``--sweep`` of the command line: for one method, or where ``method`` is empty for all."""

    option: str
    text: str
    method: str
    key: str
    values: list[tuple[str, Any]]  # each as it was written, and as it is read


def ways(
    methods: str,
    settings: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    *,
    seeds: int = 1,
    seconds: float | None = None,
    most: int | None = None,
    tell: Told = lambda sentence: None,
) -> list[Way]:
    """The methods of a comma-separated list, each with the settings that are meant for it, once for every value swept.

    A setting is ``name=value``, for every method that has it, or ``method.name=value``; a sweep is the same with values
    between commas. Every method has ``inner_lr``, the learning rate of the workload's optimizer. What names a method
    goes before what does not. ``seeds`` and ``seconds`` are what each way will take, and ``most`` how many of them are
    run; ``tell`` hears which methods a sweep does not reach.

    Raises: ConfigError for an unknown method or setting, one that fits none of them or is given twice, a method named
            twice, a value that the method refuses, and for more than MOST_RUNS runs, or MOST_WAYS to choose from.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("methods: name at least one; `laconic methods` lists them")
    if len(set(names)) != len(names):
        raise ConfigError(f"methods: {methods!r} names one twice")
    for name in names:
        get(name)
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}; 3 trains each way three times")
    given = [_given("--set", text, names) for text in settings] + [_given("--sweep", text, names) for text in sweeps]
    chosen = {name: _meant_for(name, given) for name in names}
    _affordable(chosen, seeds, seconds, most)
    made = [way for name in names for way in _grid(name, chosen[name])]
    for one in given:
        left = [name for name in names if not one.method and one.key not in _settings(name)]
        if one.option == "--sweep" and left:
            have, are = ("has", "is one way") if len(left) == 1 else ("have", "are one way each")
            tell(f"{' and '.join(left)} {have} no setting {one.key}, and {are}")
    return made


def values(text: str) -> list[tuple[str, Any]]:
    """The values between a text's commas, each as written and as read; a comma within brackets or quotes is no end.

    Raises: ConfigError for brackets or quotes that do not close, an empty value, and one that is there twice.
    """
    pieces, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            pieces.append("")
            continue
        pieces[-1] += letter
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in OPENING) - (letter in CLOSING)
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    found = [(piece.strip(), number(piece)) for piece in pieces]
    if depth or quote:
        raise ConfigError(f"{shown!r}: {'a quote' if quote else 'a bracket'} does not close")
    if not all(written for written, _ in found):
        raise ConfigError(f"{shown!r}: a value is empty; write values between commas, such as 10,50,250")
    for i, (written, value) in enumerate(found):
        if any(repr(value) == repr(other) for _, other in found[:i]):
            raise ConfigError(f"{shown!r}: {written} is there twice")
    return found


def fit(method: str, settings: dict[str, Any], steps: float, name: str = "") -> tuple[dict[str, Any], str]:
    """Shorten a method's period and warm-up to a run of about ``steps`` steps, where they were not set; and say so.

    Published periods are for runs of many thousand steps: DiLoCo's 500 would not come round once in a short one. A
    period that was set is left alone; that it does not come round once is said.
    """
    defaults, fitted, said = get(method).defaults, dict(settings), []
    fragments = fitted.get("fragments", defaults.get("fragments", 1))
    hidden = fitted.get("overlap", defaults.get("overlap")) or 0  # steps in which a fragment must come back
    least = max(2, hidden + 1) * fragments
    rounds = HIDDEN if hidden else ROUNDS
    bounds = {"every": max(least, steps / rounds), "warmup_steps": steps / WARM, "start": steps / 2}
    for key, bound in bounds.items():
        if key in REPLACED and settings.get("compress") is not None:
            continue
        if type(defaults.get(key)) is int and key not in settings and defaults[key] > bound:
            fitted[key] = max(1, round(bound))
            said.append(f"{key}={fitted[key]} in place of {defaults[key]}")
    run = f"a run of about {units.count(round(steps))} steps"
    told = [f"{' and '.join(said)}, for {run}"] if said else []
    every = fitted.get("every", defaults.get("every"))
    if isinstance(every, int) and every > steps:
        told.append(f"every={every} does not come round once in {run}")
    return fitted, f"{name or method}: {'; '.join(told)}" if told else ""


def divided(recipe: Recipe, way: Way, tell: Told) -> Way:
    """Fewer fragments, where they were not set and the model has not so many blocks; and say so."""
    fragments = get(way.method).defaults.get("fragments", 1)
    if "fragments" in way.settings or fragments == 1:
        return way
    names = [key for key, p in load(recipe.workload, recipe.options).make_model().named_parameters() if p.requires_grad]
    for fewer in range(fragments, 0, -1):
        with contextlib.suppress(ConfigError):
            deal(names, fewer, "strided")
            break
    if fewer == fragments:
        return way
    tell(f"{way.name}: fragments={fewer} in place of {fragments}, for a model of so few blocks")
    return way._replace(settings=way.settings | {"fragments": fewer})


def about(seconds: float) -> str:
    """A time that is only roughly known: ``about 40 s``, ``about 19 min``, ``about 2.5 h``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 90 * 60 else f"about {seconds / 3600:.1f} h"


def _given(option: str, text: str, names: Sequence[str]) -> Given:
    """One ``--set`` or ``--sweep``, read and held against the methods compared."""
    left, equals, right = text.partition("=")
    method, dot, key = (part.strip() for part in left.rpartition("."))
    if not equals or not key.isidentifier() or (dot and not method):
        example = "every=50" if option == "--set" else "every=10,50,250"
        raise ConfigError(f"{option} {text!r}: write name=value, such as {example}")
    if method and method not in names:
        raise ConfigError(f"{option} {text}: {method!r} is not among the methods compared ({', '.join(names)})")
    if method and key not in _settings(method):
        raise unknown(f"setting of {method}", key, _settings(method))
    known = {setting for name in names for setting in _settings(name)}
    if key not in known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{option} {text}: none of {', '.join(names)} has a setting {key!r}{hint}")
    if option == "--set":
        return Given(option, text, method, key, [(right.strip(), read_settings([f"{key}={right}"])[key])])
    try:
        return Given(option, text, method, key, values(right))
    except ConfigError as error:
        raise ConfigError(f"--sweep {left}: {error}") from None


def _settings(method: str) -> list[str]:
    return [*get(method).defaults, RATE]


def _meant_for(name: str, given: Sequence[Given]) -> dict[str, Given]:
    """What each setting of a method is given by: by what names the method, else by what is for all."""
    taken: dict[str, Given] = {}
    for one in sorted(given, key=lambda one: bool(one.method)):
        if one.key not in _settings(name) or one.method not in ("", name):
            continue
        other = taken.get(one.key)
        if other is not None and other.method == one.method:
            both = f"{other.option} {other.text} and {one.option} {one.text}"
            raise ConfigError(f"{both}: {name}'s {one.key} is given by both; leave one out")
        taken[one.key] = one
    return taken


def _affordable(chosen: Mapping[str, Mapping[str, Given]], seeds: int, seconds: float | None, most: int | None) -> None:
    """Refuse more runs than anybody waits for, before their settings are even put together."""
    count = sum(math.prod(len(one.values) for one in settings.values()) for settings in chosen.values())
    runs = min(count, most or count) * seeds
    if count > MOST_WAYS and runs <= MOST_RUNS:
        raise ConfigError(f"{count:,} ways are too many to choose from; sweep fewer values, for at most {MOST_WAYS}")
    if runs > MOST_RUNS:
        time = f", {about(runs * seconds)} of training" if seconds else ""
        count = min(count, most or count)
        many = f"{count:,} way{'s' * (count > 1)} x {seeds} seed{'s' * (seeds > 1)} are {runs:,} runs{time}"
        fewer = "sweep fewer values, or for one method, as diloco.every=10,50, or let --most 20 choose some of them"
        raise ConfigError(f"{many}; a comparison has at most {MOST_RUNS}: {fewer}")


def _grid(name: str, chosen: Mapping[str, Given]) -> list[Way]:
    """A way for each combination of a method's swept values, made once to see that it can be."""
    swept = [one for one in chosen.values() if one.option == "--sweep"]
    fixed = {one.key: one.values[0][1] for one in chosen.values() if one.option == "--set"}
    found = []
    for point in itertools.product(*(one.values for one in swept)):
        keys = {one.key: value for one, (_, value) in zip(swept, point, strict=True)}
        label = " ".join([name, *(f"{one.key}={written}" for one, (written, _) in zip(swept, point, strict=True))])
        settings = fixed | keys
        rate = settings.pop(RATE, None)
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf
        ):
            raise ConfigError(f"{label}: {RATE} must be a positive number, got {rate!r}")
        try:
            build(name, settings)
        except ConfigError as error:
            raise type(error)(f"{label}: {error}" if keys else str(error)) from None
        found.append(Way(label, name, settings, keys, rate))
    return found
