"""What is asked about a cluster file before it is believed: its version, a matrix in parts, a number out of line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError

VERSION = 1
JUMP = 1000.0  # between neighbours: a kilo too many or too few, and most slips of a unit
AS_NEAR = JUMP**0.5  # times by which two rooms' own lines may differ, and both be taken for rooms


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


def in_line(
    names: Sequence[str], table: NDArray[Any], what: str, unit: str, near: int, groups: Sequence[str] = ()
) -> None:
    """See that no number between two machines is a thousand times its neighbours', or a thousandth of them.

    Its neighbours are what else stands in its row and its column, and the other direction. Where neighbours are far
    apart themselves, as in two rooms with a slow line between, nothing is asked. ``near`` is 1 where more is nearer,
    else -1. Two machines that are near each other both ways are in one room, and are not asked about if their
    ``groups`` say so or others are as near; of latencies, which rooms do differ in, never. Of bandwidths, a machine all
    of whose links are a thousand times off is asked about as one, unless it is slow and in a group of its own.

    Raises: ConfigError that asks.
    """
    n = len(names)
    known = np.where((table > 0) & ~np.eye(n, dtype=bool), table, np.nan)
    least, most = _others(known, np.fmin), _others(known, np.fmax)
    alone = most < JUMP * least
    low = alone & (known < least) & (most >= JUMP * known)
    high = alone & (known > most) & (known >= JUMP * least)
    room = _rooms(known, high, groups) if near > 0 else low & low.T
    for i, j in np.argwhere((low | high) & ~room):
        _ask(what, unit, (names[i], names[j]), known[i, j], least[i, j], most[i, j], "its neighbours'")
    back = known.T
    for i, j in np.argwhere(known >= JUMP * back):
        _ask(what, unit, (names[i], names[j]), known[i, j], back[i, j], back[i, j], "the other direction's")
    if near < 0 or n < 3:
        return
    for i in range(n):
        own, rest = np.concatenate((known[i], known[:, i])), np.delete(np.delete(known, i, 0), i, 1)
        own, rest = own[np.isfinite(own)], rest[np.isfinite(rest)]
        apart = bool(groups) and groups[i] != "" and list(groups).count(groups[i]) == 1
        if own.min() >= JUMP * rest.max() or (own.max() * JUMP <= rest.min() and not apart):
            off = own.min() if own.min() > rest.max() else own.max()
            _ask(what, unit, (names[i], "the others"), off, rest.min(), rest.max(), "the others' between one another:")


def ends_in_line(names: Sequence[str], ends: Mapping[str, Sequence[float]], unit: str) -> None:
    """See that no machine's ``up`` or ``down`` is a thousand times the other machines', or its own other one.

    Infinite ones, of which a file says nothing, are left aside.

    Raises: ConfigError that asks.
    """
    for key, rates in ends.items():
        other = ends["down" if key == "up" else "up"]
        for i, (name, rate) in enumerate(zip(names, rates, strict=True)):
            if not np.isfinite(rate):
                continue
            rest = [r for k, r in enumerate(rates) if k != i and np.isfinite(r)]
            if rest and (rate >= JUMP * max(rest) or rate * JUMP <= min(rest)):
                _ask(key, unit, (name,), rate, min(rest), max(rest), "the other machines'")
            if np.isfinite(other[i]) and rate >= JUMP * other[i]:
                _ask(key, unit, (name,), rate, other[i], other[i], "its other direction's")


def as_measured(ends: tuple[str, str], stated: float, measured: float, unit: str) -> None:
    """See that a link's bandwidth is not a thousand times what the same file has measured of it, or a thousandth.

    Raises: ConfigError that asks.
    """
    if max(stated, measured) >= JUMP * min(stated, measured):
        _ask("bandwidth", unit, ends, stated, measured, measured, "the same file's [measured]")


def _rooms(known: NDArray[Any], high: NDArray[Any], groups: Sequence[str]) -> NDArray[Any]:
    """Which pairs, near each other both ways, are in one room: their group says so, or others are about as near."""
    room = high & high.T
    for i, j in np.argwhere(room):
        others = known.copy()
        others[i, j] = others[j, i] = np.nan
        named = bool(groups) and groups[i] != "" and groups[i] == groups[j]
        room[i, j] = named or bool(known[i, j] < AS_NEAR * np.nanmax(others))
    return room


def _ask(what: str, unit: str, ends: Sequence[str], value: float, least: float, most: float, than: str) -> None:
    less = value < least
    times, beside = (
        most / value if less else value / least,
        f"{least:.4g}" + (f" to {most:.4g}" if most > least else ""),
    )
    between = f"from {ends[0]} to {ends[1]}" if len(ends) == 2 else f"of {ends[0]}"
    raise ConfigError(
        f"{what} {between} is {value:.4g} {unit}, up to {times:,.0f} times {'less' if less else 'more'} than {than} "
        f"{beside}: is it in another unit? If it is right, write checked = true at the top of the file"
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
