"""How wrong predictions were, kept for the next: by method and by class of link, drawn towards 1 while they are few.

A miss is one run's seconds a step, predicted and measured. Those of a cluster are kept in its own file as
``[[errors]]``, others in the run's folder as ``errors.toml``; what a plan reads of either corrects what it says. Of a
run whose own computing was taken for the step only the rest can have missed, and only the rest is corrected by it.
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.links.network import Network

FILE = "errors.toml"
DOUBT = 2.0  # runs as good as predicted that stand beside those that were measured
NEWEST = 24  # misses of a method that count, as many as a probe keeps of a link
EXPOSED = 0.05  # of a step, that must not be computing before its miss says anything of what is not
FURTHEST = 10.0  # times what was predicted, or a tenth of it, beyond which a miss counts as no more
UNLIMITED = "unlimited"
OPTIONAL = ("compress", "computing")


class Miss(NamedTuple):
    """Seconds a step of one run, ``predicted`` without any correction, and ``measured``.

    ``compress`` is the method's setting of that name, as text. ``computing`` are those seconds of the prediction that
    were the run's own, so that they could not miss: 0 where all could.
    """

    method: str
    link: str
    workers: int
    workload: str
    predicted: float
    measured: float
    compress: str = ""
    computing: float = 0.0

    def ratio(self, exposed: float = 1.0) -> float | None:
        """By how much this miss multiplies a step of which ``exposed`` is not computing; None where it says nothing.

        Law:    measured over predicted where all could miss, or where as much is exposed as was here.
        """
        if not self.computing:
            return self.measured / self.predicted
        rest = self.predicted - self.computing
        if rest < EXPOSED * self.predicted:
            return None
        beyond = min(max((self.measured - self.computing) / rest, 1 / FURTHEST), FURTHEST)
        return 1 - exposed + exposed * beyond


@dataclass(frozen=True)
class Learnt:
    """What earlier runs have shown; ``kind`` is the class of links of whose misses it speaks, whatever a network is."""

    misses: tuple[Miss, ...] = ()
    kind: str | None = None

    def like(self, network: Network) -> Learnt:
        """The same for other links, as if they were of this network's class: what a change brings is not a class's."""
        return replace(self, kind=link_class(network)) if self.misses else self

    def factor(
        self, method: str, network: Network, settings: Mapping[str, Any] | None = None, exposed: float = 1.0
    ) -> float:
        """By how much to multiply a prediction, of which ``exposed`` is the share that is not computing.

        Law:    1 without a miss of that method and compressor on links of that class; between 1 and the geometric mean
                of what its newest misses say, and nearer to that the more there are.
        """
        logs = self._logs(method, network, settings or {}, exposed)
        return math.exp(sum(logs) / (len(logs) + DOUBT))

    def band(
        self, method: str, network: Network, settings: Mapping[str, Any] | None = None, exposed: float = 1.0
    ) -> tuple[float, float] | None:
        """Between which factors of a corrected prediction two thirds of such runs came; None for fewer than two."""
        logs = self._logs(method, network, settings or {}, exposed)
        if len(logs) < 2:
            return None
        width, middle = statistics.stdev(logs), statistics.fmean(logs) - sum(logs) / (len(logs) + DOUBT)
        return math.exp(middle - width), math.exp(middle + width)

    def _logs(self, method: str, network: Network, settings: Mapping[str, Any], exposed: float) -> list[float]:
        compress = compress_of(settings)
        known = [miss for miss in self.misses if (miss.method, miss.compress) == (method, compress)]
        if not known:  # before the links are classed, which takes a look at every pair
            return []
        kind = self.kind or link_class(network)
        ratios = [miss.ratio(exposed) for miss in known if miss.link == kind]
        return [math.log(ratio) for ratio in ratios if ratio is not None][-NEWEST:]


def compress_of(settings: Mapping[str, Any]) -> str:
    """A method's setting ``compress`` as a miss keeps it; "" for none."""
    given = settings.get("compress")
    return "" if given is None else given if isinstance(given, str) else json.dumps(given)


def link_class(network: Network) -> str:
    """Links from one power of ten of bits a second to the next are one class, by the slowest pair."""
    slowest = math.inf if network.slowest is None else network.link(*network.slowest).up
    return UNLIMITED if math.isinf(slowest) else f"1e{math.floor(math.log10(8 * slowest) + 1e-9)} bit/s"


def read(paths: Iterable[Path]) -> Learnt:
    """The misses in cluster files and run folders; a folder without any adds none.

    Raises: ConfigError for a file that is no TOML, or an error in it that is none.
    """
    found: list[Miss] = []
    for path in paths:
        file = path / FILE if path.is_dir() else path
        if not file.exists() and path.is_dir():
            continue
        try:
            raw = tomllib.loads(file.read_text())
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: not TOML: {error}") from None
        found += misses_in(raw, str(file))
    return Learnt(tuple(found))


def misses_in(raw: Mapping[str, Any], where: str) -> list[Miss]:
    """The misses among the tables of a file called ``where``.

    Raises: ConfigError for what is none.
    """
    entries = raw.get("errors", [])
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: errors must be tables: [[errors]]")
    return [_miss(where, entry) for entry in entries]


def note(path: Path, misses: Sequence[Miss]) -> None:
    """Append misses to a TOML file, which need not exist.

    Raises: ConfigError where it cannot be written.
    """
    text = "".join(
        "\n[[errors]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in miss._asdict().items())
        for miss in misses
    )
    try:
        with open(path, "a") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def kept_in(cluster: str, folder: Path) -> Path:
    """Where a run's misses are kept: in its cluster's own file, if it is the user's, else in the run's folder."""
    if cluster.endswith(".toml") and Path(cluster).is_file():
        return Path(cluster)
    return folder / FILE


def _miss(where: str, entry: Any) -> Miss:
    kinds = {"method": str, "link": str, "workers": int, "workload": str, "predicted": float, "measured": float}
    kinds |= {"compress": str, "computing": float}
    if not isinstance(entry, dict) or not set(kinds) - set(OPTIONAL) <= set(entry) <= set(kinds):
        raise ConfigError(f"{where}: an entry of [[errors]] has {', '.join(kinds)}, and nothing else")
    values: dict[str, Any] = {
        key: float(v) if kinds[key] is float and type(v) is int else v for key, v in entry.items()
    }
    for key, value in values.items():
        none = (
            kinds[key] is float
            and type(value) is float
            and not (0 < value < math.inf or (value == 0 and key in OPTIONAL))
        )
        if type(value) is not kinds[key] or none:
            raise ConfigError(f"{where}: [[errors]]: {key} must be {kinds[key].__name__} above 0, got {entry[key]!r}")
    return Miss(**values)
