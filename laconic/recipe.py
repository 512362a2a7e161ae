"""A recipe: everything that makes a run, as one TOML file.

Keys that are not fields of :class:`Recipe` are settings of the method, so a recipe reads as a preset with some choices
overridden::

    workload = "shakespeare"
    method   = "streaming-diloco"
    workers  = 2
    link     = "20mbit,30ms"
    every    = 50
    compress = ["topk(0.05)", "int8"]
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from laconic.drag import factors
from laconic.errors import ConfigError, unknown
from laconic.links.network import Connection, Network, check_workers, of_cluster, on_the_wire, parse
from laconic.methods import METHODS, build
from laconic.nesting import number
from laconic.plan.cluster import read_cluster
from laconic.schedule import CONSTANT
from laconic.schedule import check as check_schedule
from laconic.sync.base import among

SIMULATED = "simulated"
PLACES = ("paced", "testbed", "group", SIMULATED)
FLOPS = 20e9  # operations a second in training of a simulated machine of which nothing is said: about a server's core
SETTINGS_APART = "settings"
NONE = "none"
LONGEST = 1e7  # seconds of silence, about four months
BARE = re.compile(r"[A-Za-z0-9_-]+")  # names that TOML takes without quotes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# What a field of the file must be: its names, whether a value is right, and what to say if it is not.
KINDS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("workers", "seed", "steps", "tokens", "threads", "save_every", "warmup"),
        lambda value: isinstance(value, int) and not isinstance(value, bool),
        "a whole number",
    ),
    (("seconds", "lr", "clip", "timeout", "flops", "step_seconds"), _is_number, "a number"),
    (
        ("workload", "method", "link", "on", "cluster", "schedule"),
        lambda value: isinstance(value, str),
        "text in quotes",
    ),
    (
        ("links", "slow"),
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        'a list of texts, such as ["1:5mbit"]',
    ),
    ((SETTINGS_APART, "options"), lambda value: isinstance(value, dict), "a table"),
)


@dataclass(frozen=True)
class Recipe:
    """What to train, by which method, on how many workers, over what, and for how long.

    ``link`` and ``links`` describe the network as :func:`laconic.links.network.parse` reads it, or ``cluster`` does, as
    :func:`laconic.plan.cluster.read_cluster` reads it; ``on`` says what makes it so: ``paced`` (in user space),
    ``testbed`` (in the kernel; needs root), ``group`` (torch's process group on the network as it is) or ``simulated``
    (one process and a virtual clock, where ``flops`` a second or ``step_seconds`` say what computing takes). ``slow``
    names workers that are held back, as :func:`laconic.drag.factors` reads it. One of ``seconds``, ``tokens`` (of all
    workers) and ``steps`` ends the run. Where workers take unequal steps, ``steps`` is the mean of theirs, and the run
    ends with the round in which its end is reached. ``schedule`` and ``warmup`` are :mod:`laconic.schedule`'s.
    """

    workload: str
    method: str = "ddp"
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 2
    link: str = ""
    links: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    on: str = "paced"
    cluster: str = ""
    flops: float | None = None
    step_seconds: float | None = None
    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None
    seed: int = 0
    lr: float | None = None
    schedule: str = CONSTANT
    warmup: int = 0
    clip: float | None = None
    threads: int = 0
    timeout: float = 120.0
    save_every: int = 500

    def checked(self) -> Recipe:
        """This recipe, if every choice in it can be made; nothing is started.

        Raises: ConfigError, ClashError.
        """
        check_workers(self.workers)
        if self.on not in PLACES:
            raise unknown("place for --on", self.on, PLACES)
        given = (("seconds", self.seconds), ("tokens", self.tokens), ("steps", self.steps))
        ends = {name: value for name, value in given if value is not None}
        if len(ends) > 1:
            raise ConfigError(f"a run ends by one of seconds, tokens and steps, and {' and '.join(ends)} are given")
        if not ends:
            raise ConfigError("say when the run ends: seconds, tokens or steps")
        for name in ("seconds", "tokens", "steps", "lr", "clip", "timeout", "flops", "step_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} must be positive, got {value}")
        for name, least in (("save_every", 1), ("seed", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.seed >= 1 << 63 or self.timeout > LONGEST:
            most = f"seed must be under 2^63, got {self.seed}"
            raise ConfigError(
                most if self.seed >= 1 << 63 else f"timeout must be at most {LONGEST:g} s, got {self.timeout:g}"
            )
        check_schedule(self.schedule, self.warmup, self.steps)
        if self.link and self.on == "group":
            raise ConfigError(f"on=group uses the network as it is; leave link={self.link!r} out, or use on=paced")
        self._place()
        self.network()
        factors(self.slow, self.workers)
        among(build(self.method, self.settings), self.workers)
        return self

    def _place(self) -> None:
        if self.on != SIMULATED:
            for name in ("flops", "step_seconds"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"{name} is for simulated machines; real ones take the time they take: on=simulated"
                    )
        if self.flops is not None and self.step_seconds is not None:
            raise ConfigError("flops and step_seconds both say what computing takes; give one of them")
        if self.flops is not None and not 1e6 <= self.flops <= 1e18:
            raise ConfigError(f"flops must be from 1e6 to 1e18 operations a second, got {self.flops:g}; write 20gflops")
        if self.cluster and self.link:
            raise ConfigError(f"cluster={self.cluster!r} and link={self.link!r} both say what the links are; give one")
        if self.cluster and self.links:
            raise ConfigError(
                f"cluster={self.cluster!r} says what every link is, and link-of {self.links[0]} what one is; "
                "leave it out, or change the cluster's file"
            )
        if self.cluster and self.on == "group":
            raise ConfigError(
                f"cluster={self.cluster!r} needs on=simulated, paced or testbed; on=group takes the network as it is"
            )

    def network(self) -> Network:
        """The network that ``link`` and ``links``, or ``cluster`` describe; without them, one without limits."""
        if self.cluster:
            found = of_cluster(read_cluster(self.cluster), self.workers)
            return on_the_wire(found) if self.on == "testbed" else found
        if self.links and not self.link:
            raise ConfigError(f"link-of {self.links[0]} sets one apart; say the others' with link, such as 100mbit")
        if not self.link:
            return Network((Connection(),) * self.workers)
        return parse(self.link, self.workers, self.links)

    def links_of(self, workers: int) -> Network | None:
        """What it says of the links among so many workers, in messages' rates; None where it says nothing of them."""
        if workers != self.workers or not (self.cluster or self.link):
            return None
        return self.replace(on="paced").network()

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with some fields changed."""
        return replace(self, **changes)

    def to_toml(self) -> str:
        """The recipe as text; :func:`read_recipe` reads it back."""
        default = Recipe(self.workload)
        lines = []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("settings", "options") or value is None:
                continue
            if f.name in ("workload", "method", "workers", "seed") or value != getattr(default, f.name):
                lines.append(_entry(f.name, value))
        known = {f.name for f in fields(self)}
        apart = {k: v for k, v in self.settings.items() if k in known}
        lines += [_entry(k, v) for k, v in self.settings.items() if k not in known]
        for table, content in ((SETTINGS_APART, apart), ("options", self.options)):
            if content:
                lines += ["", f"[{table}]", *(_entry(k, v) for k, v in content.items())]
        return "\n".join(lines) + "\n"


def seeded(recipe: Recipe) -> dict[str, Any]:
    """The method's settings, with the run's seed where a method draws and none was set: who meets whom, say."""
    drawn = recipe.method in METHODS and "seed" in METHODS[recipe.method].defaults
    return ({"seed": recipe.seed} if drawn else {}) | recipe.settings


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file.

    Raises: ConfigError: no such file, no TOML, a field of the wrong type. A key that is no field is the method's.
    """
    try:
        raw = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    known = [f.name for f in fields(Recipe)]
    given = {"workload": "shakespeare"} | {k: v for k, v in raw.items() if k in known}
    for names, right, wanted in KINDS:
        for name in names:
            if name in given and not right(given[name]):
                raise ConfigError(f"{path}: {name} must be {wanted}, got {given[name]!r}")
    own = {k: v for k, v in raw.items() if k not in known}
    method = given.get("method", Recipe.method)
    for key in own:
        if method in METHODS and key not in METHODS[method].defaults:
            raise unknown(f"key in {path}:", key, [*known, *METHODS[method].defaults])
    given["settings"] = _thawed(own | given.get(SETTINGS_APART, {}))
    given["options"] = _thawed(given.get("options", {}))
    given |= {name: tuple(given.get(name, ())) for name in ("links", "slow")}
    return Recipe(**given)


def read_settings(pairs: list[str] | tuple[str, ...], what: str = "--set") -> dict[str, Any]:
    """Settings from ``name=value`` texts: numbers, true, false and lists as such, the rest as text.

    Raises: ConfigError.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"{what} {pair!r}: write name=value, such as every=50")
        if name.strip() in settings:
            raise ConfigError(f"{what} {pair!r}: {name.strip()} is set twice")
        settings[name.strip()] = number(value)
    return settings


def _thawed(settings: dict[str, Any]) -> dict[str, Any]:
    """TOML has no word for nothing: a setting is switched off by "none", as on the command line."""
    return {name: None if value == NONE else value for name, value in settings.items()}


def _toml(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(_entry(key, item) for key, item in value.items()) + "}"
    return repr(value)


def _entry(name: Any, value: Any) -> str:
    key = str(name)
    return f"{key if BARE.fullmatch(key) else _toml(key)} = {_toml(value)}"
