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

import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from laconic.errors import ConfigError
from laconic.links.network import Network, parse
from laconic.methods import build
from laconic.nesting import number

PLACES = ("paced", "testbed", "group")
SETTINGS_APART = "settings"


@dataclass(frozen=True)
class Recipe:
    """What to train, by which method, on how many workers, over what, and for how long.

    ``link`` and ``links`` describe the network as :func:`laconic.links.network.parse` reads it; ``on`` says what makes
    it so: ``paced`` (in user space), ``testbed`` (in the kernel; needs root) or ``group`` (torch's process group on the
    network as it is). One of ``seconds``, ``tokens`` (of all workers) and ``steps`` ends the run.
    """

    workload: str
    method: str = "ddp"
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    workers: int = 2
    link: str = ""
    links: tuple[str, ...] = ()
    on: str = "paced"
    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None
    seed: int = 0
    lr: float | None = None
    clip: float | None = None
    threads: int = 0
    timeout: float = 120.0
    save_every: int = 500

    def checked(self) -> Recipe:
        """This recipe, if every choice in it can be made; nothing is started.

        Raises: ConfigError, ClashError.
        """
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if self.on not in PLACES:
            raise ConfigError(f"on: {self.on!r} is none of {', '.join(PLACES)}")
        ends = {n: v for n, v in (("seconds", self.seconds), ("tokens", self.tokens), ("steps", self.steps)) if v}
        if len(ends) > 1:
            raise ConfigError(f"a run ends by one of seconds, tokens and steps, and {' and '.join(ends)} are given")
        for name, value in ends.items():
            if value <= 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if not ends:
            raise ConfigError("say when the run ends: seconds, tokens or steps")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if self.link and self.on == "group":
            raise ConfigError(f"on=group uses the network as it is; leave link={self.link!r} out, or use on=paced")
        self.network()
        build(self.method, self.settings)
        return self

    def network(self) -> Network:
        """The network that ``link`` and ``links`` describe; without them, one without limits."""
        if self.links and not self.link:
            raise ConfigError("links overrides a link; give the others' with link, as in link = '100mbit'")
        return parse(self.link or "1000gbit", self.workers, self.links)

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
                lines.append(f"{f.name} = {_toml(value)}")
        known = {f.name for f in fields(self)}
        apart = {k: v for k, v in self.settings.items() if k in known}
        lines += [f"{k} = {_toml(v)}" for k, v in self.settings.items() if k not in known and v is not None]
        for table, content in ((SETTINGS_APART, apart), ("options", self.options)):
            if content:
                lines += ["", f"[{table}]", *(f"{k} = {_toml(v)}" for k, v in content.items() if v is not None)]
        return "\n".join(lines) + "\n"


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file.

    Raises: ConfigError: no such file, no TOML, a field of the wrong type. A key that is no field is the method's.
    """
    try:
        raw = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    known = {f.name: f.type for f in fields(Recipe)}
    settings = {k: v for k, v in raw.items() if k not in known} | raw.get(SETTINGS_APART, {})
    given = {k: v for k, v in raw.items() if k in known and k != SETTINGS_APART}
    if "workload" not in given:
        given["workload"] = "shakespeare"
    wanted = {"workers": int, "seed": int, "steps": int, "tokens": int, "threads": int, "save_every": int}
    for name, kind in wanted.items():
        if name in given and type(given[name]) is not kind:
            raise ConfigError(f"{path}: {name} must be a whole number, got {given[name]!r}")
    for name in ("seconds", "lr", "clip", "timeout"):
        if name in given and not isinstance(given[name], int | float):
            raise ConfigError(f"{path}: {name} must be a number, got {given[name]!r}")
    given["links"] = tuple(given.get("links", ()))
    return Recipe(settings=settings, **given)


def read_settings(pairs: list[str] | tuple[str, ...], what: str = "--set") -> dict[str, Any]:
    """Settings from ``name=value`` texts: numbers, true, false and lists as such, the rest as text.

    Raises: ConfigError.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"{what} {pair!r}: write name=value, such as every=50")
        settings[name.strip()] = number(value)
    return settings


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
