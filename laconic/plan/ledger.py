"""How wrong predictions were, kept for the next: by method and by class of link, drawn towards 1 while they are few.

A miss is one run's seconds a step, predicted and measured. Those of a cluster are kept in its own file as
``[[errors]]``, others in the run's folder as ``errors.toml``; what a plan reads of either corrects what it says.
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from laconic.errors import ConfigError
from laconic.links.network import Network

FILE = "errors.toml"
DOUBT = 2.0  # runs as good as predicted that stand beside those that were measured
UNLIMITED = "unlimited"


class Miss(NamedTuple):
    """Seconds a step of one run, ``predicted`` without any correction, and ``measured``."""

    method: str
    link: str
    workers: int
    workload: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Learnt:
    """What earlier runs have shown."""

    misses: tuple[Miss, ...] = ()

    def factor(self, method: str, network: Network) -> float:
        """By how much to multiply a prediction.

        Law:    1 without a miss of that method on links of that class; between 1 and the geometric mean of measured
                over predicted, and nearer to that the more there are.
        """
        kind = link_class(network)
        logs = [math.log(m.measured / m.predicted) for m in self.misses if (m.method, m.link) == (method, kind)]
        return math.exp(sum(logs) / (len(logs) + DOUBT))

    def band(self, method: str, network: Network) -> tuple[float, float] | None:
        """Between which factors of a corrected prediction two thirds of such runs came; None for fewer than two."""
        kind = link_class(network)
        logs = [math.log(m.measured / m.predicted) for m in self.misses if (m.method, m.link) == (method, kind)]
        if len(logs) < 2:
            return None
        width, middle = statistics.stdev(logs), statistics.fmean(logs) - math.log(self.factor(method, network))
        return math.exp(middle - width), math.exp(middle + width)


def link_class(network: Network) -> str:
    """Links from one power of ten of bits a second to the next are one class, by the slowest pair."""
    size = network.workers
    rates = [network.link(a, b).up for a in range(size) for b in range(size) if a != b]
    slowest = min(rates, default=math.inf)
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
        found += [_miss(file, entry) for entry in raw.get("errors", [])]
    return Learnt(tuple(found))


def note(path: Path, misses: Sequence[Miss]) -> None:
    """Append misses to a TOML file, which need not exist."""
    text = "".join(
        "\n[[errors]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in miss._asdict().items())
        for miss in misses
    )
    with open(path, "a") as file:
        file.write(text)


def kept_in(cluster: str, folder: Path) -> Path:
    """Where a run's misses are kept: in its cluster's own file, if it is the user's, else in the run's folder."""
    if cluster.endswith(".toml") and Path(cluster).is_file():
        return Path(cluster)
    return folder / FILE


def _miss(file: Path, entry: Any) -> Miss:
    kinds = {"method": str, "link": str, "workers": int, "workload": str, "predicted": float, "measured": float}
    if not isinstance(entry, dict) or set(entry) != set(kinds):
        raise ConfigError(f"{file}: an entry of [[errors]] has {', '.join(kinds)}, and nothing else")
    values: dict[str, Any] = {
        key: float(v) if kinds[key] is float and type(v) is int else v for key, v in entry.items()
    }
    for key, kind in kinds.items():
        if type(values[key]) is not kind or (kind is float and not 0 < values[key] < math.inf):
            raise ConfigError(f"{file}: [[errors]]: {key} must be {kind.__name__} above 0, got {entry[key]!r}")
    return Miss(**values)
