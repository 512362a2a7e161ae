"""What is asked about a cluster file before it is believed: its version, a matrix in parts, a number out of line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError

VERSION = 1
JUMP = 1000.0  # between neighbours: a kilo too many or too few, and most slips of a unit


def version_of(raw: Mapping[str, Any]) -> int:
    """The version a file says it has; one that says nothing is of version 1.

    Raises: ConfigError for what is no version, and for one that is newer than this reader.
    """
    said = raw.get("version", VERSION)
    if isinstance(said, bool) or not isinstance(said, int) or said < 1:
        raise ConfigError(f"version must be a whole number from 1 on, got {said!r}")
    if said > VERSION:
        raise ConfigError(
            f"it is of version {said}, and this laconic reads cluster files up to version {VERSION}; use a newer one"
        )
    return said


def whole(places: Sequence[str], bandwidth: Sequence[Sequence[Any]]) -> None:
    """See that no zeros cut a matrix in parts.

    Raises: ConfigError that names the parts.
    """
    n = len(places)
    parts, left = [], list(range(n))
    while left:
        part, edge = set[int](), [left[0]]
        while edge:
            a = edge.pop()
            part.add(a)
            edge += [b for b in range(n) if b not in part and (bandwidth[a][b] != 0 or bandwidth[b][a] != 0)]
        parts.append([places[i] for i in sorted(part)])
        left = [i for i in left if i not in part]
    if len(parts) > 1:
        told = " and ".join(", ".join(part) for part in parts[:2]) + (" and more" if len(parts) > 2 else "")
        raise ConfigError(
            f"between: the bandwidth is 0 from {told}, both ways, so that the cluster is in {len(parts)} parts; "
            "every pair needs a link, if only a slow one"
        )


def in_line(names: Sequence[str], table: NDArray[Any], what: str, unit: str, near: int) -> None:
    """See that no number between two machines is a thousand times its neighbours', or a thousandth of them.

    Its neighbours are what else stands in its row and its column. Only a number alone is asked about: where neighbours
    are far apart themselves, as in two rooms with a slow line between, nothing is. ``near`` is 1 where more is nearer,
    else -1: two machines that are near each other both ways are in one room, and are not asked about. Of two machines,
    the two directions are neighbours.

    Raises: ConfigError that asks.
    """
    known = np.where((table > 0) & ~np.eye(len(names), dtype=bool), table, np.nan)
    least, most = _others(known, np.fmin), _others(known, np.fmax)
    alone = most < JUMP * least
    low = alone & (known < least) & (most >= JUMP * known)
    high = alone & (known > most) & (known >= JUMP * least)
    room = (high & high.T) if near > 0 else (low & low.T)
    for i, j in np.argwhere((low | high) & ~room):
        times = most[i, j] / known[i, j] if low[i, j] else known[i, j] / least[i, j]
        raise ConfigError(
            f"{what} from {names[i]} to {names[j]} is {known[i, j]:.4g} {unit}, up to {times:,.0f} times "
            f"{'less' if low[i, j] else 'more'} than its neighbours' {least[i, j]:.4g} to {most[i, j]:.4g}: is it in "
            "another unit? If it is right, write checked = true at the top of the file"
        )


def _others(known: NDArray[Any], pick: Any) -> NDArray[Any]:
    """The least (or the most) of each number's neighbours, itself left out; of two machines, the other direction."""
    if len(known) == 2:
        return known.T
    order = (
        np.sort(known if pick is np.fmin else -known, axis=1),
        np.sort(known.T if pick is np.fmin else -known.T, axis=1),
    )
    rows, columns = (np.abs(each) for each in order)
    row = np.where(known == rows[:, :1], rows[:, 1:2], rows[:, :1])
    column = np.where(known == columns[:, :1].T, columns[:, 1:2].T, columns[:, :1].T)
    found: NDArray[Any] = pick(row, column)
    return found
