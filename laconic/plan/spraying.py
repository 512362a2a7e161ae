"""Flows split before they start, so that single-path connections load a leaf-spine network as evenly as spraying.

Between two leaves go n flows of equal size over s paths. As many as are a multiple of s go whole, the same number on
each path; each of the r left over is cut into ``s / gcd(r, s)`` equal parts, dealt round. Each path then carries
exactly ``n / s`` of a flow's bytes, as if every packet had been sprayed, and none overtakes another of its connection.

Source: Ethereal, arXiv:2407.00550.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError

Rows = NDArray[Any]  # of source, target, bytes and, once dealt, the path
WHOLE = Fraction(1)
LEAST = 65536  # bytes of a part under which a connection's start takes longer than what it saves


class Piece(NamedTuple):
    """A share of one flow, on one path."""

    flow: int
    path: int
    share: Fraction


def split(flows: int, paths: int, most: int | None = None, before: Sequence[float] | None = None) -> list[Piece]:
    """Deal equal flows to equal paths; ``most`` parts of a flow, where they would get too small.

    What then is over goes to neighbouring paths, those that carry least ``before``.

    Law:    without ``most`` each path carries ``flows / paths``; ``r (paths / gcd(r, paths) - 1)`` pieces are added,
            for ``r = flows mod paths``. With it, no two paths differ by more than one piece.
    Raises: ConfigError unless there are paths, and flows from 0 on.
    """
    if paths < 1 or flows < 0 or (most is not None and most < 1):
        raise ConfigError(f"spraying: {flows} flows over {paths} paths, each in at most {most} parts; count from 1")
    left = flows % paths
    whole = flows - left
    pieces = [Piece(flow, flow % paths, WHOLE) for flow in range(whole)]
    if left:
        parts = min(paths // math.gcd(left, paths), paths if most is None else most)
        share, over = Fraction(1, parts), left * parts % paths
        carried = [0.0] * paths if before is None else before
        start = min(range(paths), key=lambda first: sum(carried[(first + i) % paths] for i in range(over)))
        pieces += [Piece(whole + i // parts, (start + i) % paths, share) for i in range(left * parts)]
    return pieces


def split_by(
    flows: int,
    capacities: Sequence[Fraction | int],
    least: Fraction | int = 0,
    before: Sequence[float] | None = None,
) -> list[Piece]:
    """Deal equal flows to paths of unlike capacities, each its share of the bytes.

    The flows stand in a row, and the row is cut where a path's share ends: at most one flow a path is split. Pieces
    under ``least`` of a flow join one of the flow's others, or where it has none go as one, on the path that then
    carries least for its capacity; it carries ``before`` flows already.

    Law:    with ``least`` 0, path k carries ``flows capacities[k] / sum(capacities)``, in at most
            ``flows + len(capacities) - 1`` pieces.
    Raises: ConfigError unless every capacity is positive.
    """
    if not capacities or min(capacities) <= 0 or flows < 0:
        raise ConfigError("spraying: every path needs a capacity above 0, and there must be one; leave dead paths out")
    total = sum(map(Fraction, capacities))
    ends = [Fraction(0)]
    for capacity in capacities:
        ends.append(ends[-1] + flows * Fraction(capacity) / total)
    pieces: list[Piece] = []
    for path, (begin, end) in enumerate(pairwise(ends)):
        for flow in range(math.floor(begin), math.ceil(end)):
            if (share := min(end, Fraction(flow + 1)) - max(begin, Fraction(flow))) > 0:
                pieces.append(Piece(flow, path, share))
    carried = [Fraction(0)] * len(capacities) if before is None else list(map(Fraction, before))
    return _without_crumbs(pieces, Fraction(least), list(map(Fraction, capacities)), carried)


def _without_crumbs(
    pieces: Iterable[Piece], least: Fraction, capacities: Sequence[Fraction], carried: list[Fraction]
) -> list[Piece]:
    by_flow: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_flow.setdefault(piece.flow, []).append(piece)
    kept = {flow: [piece for piece in group if piece.share >= least] for flow, group in by_flow.items()}
    for piece in chain.from_iterable(kept.values()):
        carried[piece.path] += piece.share
    found: list[Piece] = []
    for flow, group in by_flow.items():
        own = {piece.path: piece.share for piece in kept[flow]}
        if crumbs := sum((piece.share for piece in group), Fraction(0)) - sum(own.values(), Fraction(0)):
            path = min(own or range(len(capacities)), key=lambda k: (carried[k] + crumbs) / capacities[k])
            own[path] = own.get(path, Fraction(0)) + crumbs
            carried[path] += crumbs
        found += [Piece(flow, path, share) for path, share in sorted(own.items())]
    return found


def ethereal(
    rows: Sequence[Any] | Rows,
    leaf: Sequence[int] | Rows,
    paths: Sequence[int],
    capacities: Sequence[Fraction | int] | None = None,
    least: int = LEAST,
) -> Rows:
    """Deal messages ``(source, target, bytes)`` to ``paths``, splitting as few as it takes; a row a piece.

    ``leaf`` is each worker's. Flows between the same two leaves and of the same size are dealt together, and those
    within a leaf keep path -1. ``capacities`` are the paths', where they differ. No part is smaller than ``least``
    bytes, unless a whole message is: what cannot be dealt equally goes where the two leaves have least so far.

    Wire:   the same bytes, in more connections.
    """

    def deal(count: int, nbytes: float, before: Sequence[float]) -> list[Piece]:
        if capacities is not None:
            return split_by(count, capacities, Fraction(least) / Fraction(nbytes) if nbytes else 1, before)
        return split(count, len(paths), max(1, int(nbytes // least)) if least > 0 else None, before)

    return _dealt(rows, leaf, paths, deal)


def sprayed(
    rows: Sequence[Any] | Rows,
    leaf: Sequence[int] | Rows,
    paths: Sequence[int],
    capacities: Sequence[Fraction | int] | None = None,
) -> Rows:
    """Every message over all paths at once, as ideal packet spraying has it: the measuring rod."""
    shares = [Fraction(c) for c in (capacities if capacities is not None else [1] * len(paths))]
    total = sum(shares)

    def every(count: int, nbytes: float, before: Sequence[float]) -> list[Piece]:
        return [Piece(flow, path, share / total) for flow in range(count) for path, share in enumerate(shares)]

    return _dealt(rows, leaf, paths, every)


def hashed(rows: Sequence[Any] | Rows, leaf: Sequence[int] | Rows, paths: Sequence[int], seed: int = 0) -> Rows:
    """Every message whole on a path drawn for it, as switches that hash addresses have it."""
    draw = np.random.default_rng(seed)

    def one(count: int, nbytes: float, before: Sequence[float]) -> list[Piece]:
        return [Piece(flow, int(path), Fraction(1)) for flow, path in enumerate(draw.integers(len(paths), size=count))]

    return _dealt(rows, leaf, paths, one)


def again(
    rows: Rows,
    left: Sequence[float] | Rows,
    dead: int,
    leaf: Sequence[int] | Rows,
    paths: Sequence[int],
    capacities: Sequence[Fraction | int] | None = None,
    least: int = LEAST,
) -> Rows:
    """What is still to be sent when path ``dead`` fails, and ``left`` bytes of each row are not acknowledged.

    Connections on other paths go on as they are, each being one of its own; the dead path's bytes are dealt anew, as by
    :func:`ethereal`. ``capacities`` are those of all ``paths``, the dead one's too.

    Raises: ConfigError if no other path is left.
    """
    alive = [path for path in paths if path != dead]
    if not alive:
        raise ConfigError(f"spraying: path {dead} was the last one")
    rest = np.column_stack((np.asarray(rows, float)[:, :2], np.asarray(left, float), np.asarray(rows, float)[:, 3]))
    rest = rest[rest[:, 2] > 0]
    lost = rest[:, 3] == dead
    if capacities is not None:
        capacities = [capacity for path, capacity in zip(paths, capacities, strict=True) if path != dead]
    return np.concatenate((rest[~lost], ethereal(rest[lost][:, :3], leaf, alive, capacities, least)))


def _dealt(rows: Sequence[Any] | Rows, leaf: Sequence[int] | Rows, paths: Sequence[int], deal: Any) -> Rows:
    """Rows with their paths: ``deal(count, nbytes, before)`` splits ``count`` flows of one size between two leaves.

    ``before`` is what each path carries out of the one leaf and into the other so far, in such flows.
    """
    table = np.asarray(rows, float).reshape(-1, 3)
    if not len(paths):
        raise ConfigError("spraying: there is no path")
    classes: dict[tuple[int, int, float], list[int]] = {}
    for i, (source, target, nbytes) in enumerate(table):
        classes.setdefault((int(leaf[int(source)]), int(leaf[int(target)]), float(nbytes)), []).append(i)
    found: list[tuple[float, float, float, float]] = []
    out, into = (np.zeros((1 + int(np.max(leaf, initial=0)), len(paths))) for _ in range(2))
    for (here, there, nbytes), members in classes.items():
        if here == there:
            found += [(table[i, 0], table[i, 1], nbytes, -1.0) for i in members]
            continue
        before = (out[here] + into[there]) / nbytes if nbytes else np.zeros(len(paths))
        for flow, path, share in deal(len(members), nbytes, before.tolist()):
            i = members[flow]
            out[here, path] += float(share) * nbytes
            into[there, path] += float(share) * nbytes
            found.append((table[i, 0], table[i, 1], float(share * Fraction(nbytes)), float(paths[path])))
    return np.array(found, float).reshape(-1, 4)
