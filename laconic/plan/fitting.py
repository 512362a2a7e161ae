"""The rates of GenModel from measurements: memory and additions, links, and how many flows a port bears.

Each is fitted from what shows it alone, because bytes, additions and memory are all proportional to a vector's bytes:
together, from rings, they cannot be told apart.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from laconic.errors import ConfigError
from laconic.plan import genmodel
from laconic.plan.collectives import Rates
from laconic.plan.measured import MachineMeasured

BETTER = 0.25  # two pieces are believed if they leave less than this of one piece's squared error,
WORTH = 0.01  # and if one piece misses by more than this, root mean square
LEAST_PIECE = 2  # sizes on each side of a knee
CROWDED = 0.05  # of a port's time: fans that take less than this more are taken not to crowd it


class Sum(NamedTuple):
    """A timed sum of ``parts`` vectors of ``nbytes`` in one pass."""

    parts: int
    nbytes: float
    seconds: float


class Ping(NamedTuple):
    """A timed message one way: half of a round trip."""

    nbytes: float
    seconds: float


class Crowd(NamedTuple):
    """A timed all-reduce by cps among so many workers."""

    workers: int
    nbytes: float
    seconds: float


class Line(NamedTuple):
    """``alpha + nbytes beta`` between the sizes ``least`` and ``most``; ``r2`` is the share of the spread explained."""

    alpha: float
    beta: float
    r2: float
    residuals: tuple[float, ...]  # what is missed at each size, as a share of what was measured
    least: float
    most: float


def fit_sums(sums: Sequence[Sum]) -> tuple[float, float]:
    """``gamma`` and ``delta`` by ``t = x ((k-1) gamma + (k+1) delta)``, neither below 0; errors are relative.

    Take sizes that are all in the cache, or all far beyond it: the two have rates of their own.

    Raises: ConfigError where all have one number of parts, by which the two cannot be told apart.
    """
    if len({s.parts for s in sums}) < 2:
        raise ConfigError("fit of sums: needs sums of at least two numbers of parts, such as 2 and 16")
    rows = np.array([[s.nbytes * (s.parts - 1), s.nbytes * (s.parts + 1)] for s in sums])
    gamma, delta = _positive(rows, np.array([s.seconds for s in sums]))
    return gamma, delta


def fit_pings(pings: Sequence[Ping]) -> Line:
    """``alpha`` and ``beta`` by ``t = alpha + x beta`` of each size's median, neither below 0; errors are relative.

    Raises: ConfigError for fewer than two sizes, or a time that is not positive.
    """
    sizes, times = _medians(pings)
    if len(sizes) < 2:
        raise ConfigError(f"fit of pings: needs messages of at least two sizes, got {len(sizes)}")
    return _line(sizes, times)


def fit_pieces(pings: Sequence[Ping]) -> tuple[Line, ...]:
    """One line, or two where there is a knee: a switch of protocols, or a token bucket's burst that has run out.

    Two are believed where one misses noticeably and they leave less than a quarter of its squared error.
    """
    whole = fit_pings(pings)
    sizes, times = _medians(pings)
    error = _squares(whole)
    if error <= WORTH**2 * len(sizes):
        return (whole,)
    cuts = range(LEAST_PIECE, len(sizes) - LEAST_PIECE + 1)
    both = [(_line(sizes[:k], times[:k]), _line(sizes[k:], times[k:], anchored=False)) for k in cuts]
    best = min(both, key=lambda pair: sum(map(_squares, pair)), default=None)
    return best if best is not None and sum(map(_squares, best)) < BETTER * error else (whole,)


def fit_incast(crowds: Sequence[Crowd], rates: Rates) -> tuple[float, int]:
    """``epsilon`` and ``w_t`` from what cps takes beyond what ``rates`` (all but these two) predict.

    Every whole ``w_t`` from 1 to the most workers is tried, with the best ``epsilon`` from 0 on for it; the pair that
    leaves least is taken. Where nothing is left to explain, ``epsilon`` is 0 and ``w_t`` the most workers. Of several
    measurements of one case the median counts: incast's timeouts are far from what is usual.

    Raises: ConfigError for measurements of one number of workers, which cannot tell the two apart.
    """
    cases: dict[tuple[int, float], list[float]] = {}
    for crowd in crowds:
        if not crowd.seconds > 0:
            raise ConfigError(
                f"fit of incast: a time of {crowd.seconds:g} s came; every measurement takes more than none"
            )
        cases.setdefault((crowd.workers, crowd.nbytes), []).append(crowd.seconds)
    counts = {workers for workers, _ in cases}
    if len(counts) < 2:
        raise ConfigError(f"fit of incast: needs cps among at least two numbers of workers, got {sorted(counts)}")
    plain = rates._replace(epsilon=0.0, w_t=math.inf)
    left = np.array([statistics.median(t) - genmodel.cps(*case, math.inf).seconds(plain) for case, t in cases.items()])
    weight = 1 / np.array([statistics.median(t) for t in cases.values()])
    best = (float(((left * weight) ** 2).sum()), 0.0, max(counts))
    for w_t in range(1, max(counts)):
        crowded = np.array([genmodel.cps(workers, nbytes, w_t).crowded for workers, nbytes in cases]) * weight
        epsilon = max(0.0, float(crowded @ (left * weight) / (crowded @ crowded)))
        error = float(((left * weight - epsilon * crowded) ** 2).sum())
        if error < best[0] and epsilon > 0:
            best = error, epsilon, w_t
    return best[1], best[2]


class Probed(NamedTuple):
    """A machine as a probe found it: seconds a byte added and touched, and how its port bears flows in and out.

    Names are those of :class:`~laconic.plan.collectives.Rates`; None where nothing was measured.
    """

    gamma: float | None = None
    delta: float | None = None
    into: tuple[float, float] | None = None  # epsilon and w_t
    out: tuple[float, float] | None = None


def fit_machine(measured: MachineMeasured) -> Probed:
    """What the sums and the fans of a probe say of a machine."""
    sums = [Sum(parts, 1.0, each.median) for parts, each in measured.sums.items()]
    gamma, delta = fit_sums(sums) if len(sums) > 1 else (None, None)
    into, out = (
        fit_fans({peers: 1 / fan.bandwidth.median for peers, fan in fans.items() if fan.bandwidth.median > 0})
        for fans in (measured.into, measured.out)
    )
    return Probed(gamma, delta, into, out)


def fit_fans(seconds: Mapping[int, float]) -> tuple[float, float] | None:
    """``epsilon`` and ``w_t`` of a port from the seconds a byte with so many peers at once; None for fewer than two.

    What the quickest fan takes is the port's own time, ``beta``; of larger ones ``max(w - w_t, 0) epsilon`` is more,
    with ``w`` the peers and the worker itself. Nothing crowds where none takes :data:`CROWDED` more.
    """
    if len(seconds) < 2:
        return None
    best = min(seconds, key=lambda peers: (seconds[peers], -peers))
    beta = seconds[best]
    more = {peers + 1: each / beta - 1 for peers, each in seconds.items() if peers > best}
    if max(more.values(), default=0.0) < CROWDED:
        return 0.0, math.inf

    def fitted(w_t: int) -> tuple[float, float, float]:
        beyond = {w: max(w - w_t, 0) for w in more}
        epsilon = max(0.0, sum(beyond[w] * more[w] for w in more) / sum(n * n for n in beyond.values()))
        return sum((more[w] - epsilon * beyond[w]) ** 2 for w in more), epsilon, w_t

    _, epsilon, w_t = min(fitted(w_t) for w_t in range(best + 1, max(more)))
    return epsilon * beta, w_t


def _medians(pings: Iterable[Ping]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    by_size: dict[float, list[float]] = {}
    for ping in pings:
        if not ping.seconds > 0:
            raise ConfigError(
                f"fit of pings: a message of {ping.nbytes:g} bytes took {ping.seconds} s; is the clock right?"
            )
        by_size.setdefault(ping.nbytes, []).append(ping.seconds)
    sizes = sorted(by_size)
    return np.array(sizes, dtype=float), np.array([statistics.median(by_size[size]) for size in sizes])


def _line(sizes: NDArray[np.float64], times: NDArray[np.float64], anchored: bool = True) -> Line:
    rows = np.stack([np.ones_like(sizes), sizes], axis=1)
    if anchored:
        alpha, beta = _positive(rows, times)
    else:  # past a burst's end a line may well begin below 0: what passed for free is no longer owed
        alpha, beta = np.linalg.lstsq(rows / times[:, None], np.ones_like(times), rcond=None)[0].tolist()
    predicted = alpha + sizes * beta
    spread = float(((times - times.mean()) ** 2).sum())
    r2 = 1.0 if spread == 0 else 1 - float(((times - predicted) ** 2).sum()) / spread
    # Over what was measured and not over what is predicted, which may be next to nothing.
    return Line(alpha, beta, r2, tuple((1 - predicted / times).tolist()), float(sizes[0]), float(sizes[-1]))


def _squares(line: Line) -> float:
    return sum(residual**2 for residual in line.residuals)


def _positive(rows: NDArray[np.float64], times: NDArray[np.float64]) -> tuple[float, float]:
    """The least relative squares of two coefficients that are not below 0."""
    if not (times > 0).all():
        raise ConfigError(f"fit: a time of {times.min():g} s came; every measurement takes more than none")
    scaled, ones = rows / times[:, None], np.ones_like(times)
    found = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    if (found >= 0).all():
        return float(found[0]), float(found[1])
    alone = [float(column @ ones / (column @ column)) for column in scaled.T]
    errors = [float(((ones - column * value) ** 2).sum()) for column, value in zip(scaled.T, alone, strict=True)]
    return (alone[0], 0.0) if errors[0] <= errors[1] else (0.0, alone[1])
