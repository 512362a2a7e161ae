"""With which weights neighbours are mixed: Metropolis, equal shares or a given matrix; and how fast that mixes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import ConfigError, unknown
from laconic.exchange.topology import Shape, Topology

Matrix = list[list[float]]
Given = str | Sequence[Sequence[float]]
CLOSE = 1e-6
LARGEST = 512  # workers up to which the eigenvalues are computed: beyond, it takes longer than it is worth


class Weights(NamedTuple):
    """``of(topology, to, source, round)`` is the weight that worker ``to`` gives to what ``source`` sends.

    ``check(topology)`` refuses those that break what the method stands on.
    """

    name: str
    of: Callable[[Topology, int, int, int], float]
    check: Callable[[Topology], None]


def keeping_the_mean(weights: Given = "metropolis") -> Weights:
    """Weights whose rows and columns sum to 1, so that mixing moves nobody's mean.

    ``metropolis``: ``1 / (1 + max(d_i, d_j))`` on each edge, where edges go both ways; on a directed graph in which all
    have equally many ways in and out, that same number. Or a matrix, row by row or in a file: entry (i, j) is what
    worker i gives to worker j's.

    Raises: ConfigError for an unknown name, or a matrix that is none; ``check`` for a matrix that does not fit.
    Source: Lian et al. 2017, arXiv:1705.09056; Xiao and Boyd 2004 (Metropolis weights).
    """
    matrix, name = _read(weights, "metropolis")

    def of(graph: Topology, to: int, source: int, round: int) -> float:
        if matrix is not None:
            return matrix[to][source]
        return 1 / (1 + max(len(graph.sources(to, round)), len(graph.sources(source, round))))

    def check(graph: Topology) -> None:
        if matrix is not None:
            _fits(matrix, graph, name)
            _sums(matrix, name, "row")
            _sums([list(column) for column in zip(*matrix, strict=True)], name, "column")
            for i, row in enumerate(matrix):
                for j, value in enumerate(row):
                    if graph.both and abs(value - matrix[j][i]) > CLOSE:
                        raise ConfigError(
                            f"{name}: not symmetric: entry ({i}, {j}) is {value:g}, entry ({j}, {i}) {matrix[j][i]:g}"
                        )
            return
        for round in range(len(graph.rounds)):
            into = [len(graph.sources(rank, round)) for rank in range(graph.size)]
            out = [len(graph.targets(rank, round)) for rank in range(graph.size)]
            edges = set(graph.rounds[round])
            if {(b, a) for a, b in edges} != edges and len({*into, *out}) > 1:
                worker = next(rank for rank in range(graph.size) if into[rank] != out[rank] or into[rank] != into[0])
                raise ConfigError(
                    f"graph {graph.name}: its edges go one way, and worker {worker} has {into[worker]} in and "
                    f"{out[worker]} out: none of its weights keep the mean; use push_sum (sgp), or edges both ways"
                )

    return Weights(name, of, check)


def keeping_the_sum(weights: Given = "uniform") -> Weights:
    """Weights whose columns sum to 1: each worker deals out all it has, and keeps its own share.

    ``uniform``: equal shares to itself and to each whom it sends to. Or a matrix: entry (i, j) is the share of worker
    j's that goes to worker i.

    Raises: ConfigError as :func:`keeping_the_mean`.
    Source: Kempe, Dobra and Gehrke 2003; Assran et al. 2019, arXiv:1811.10792.
    """
    matrix, name = _read(weights, "uniform")

    def of(graph: Topology, to: int, source: int, round: int) -> float:
        return matrix[to][source] if matrix is not None else 1 / (1 + len(graph.targets(source, round)))

    def check(graph: Topology) -> None:
        if matrix is not None:
            _fits(matrix, graph, name)
            _sums([list(column) for column in zip(*matrix, strict=True)], name, "column")
            for rank in range(graph.size):
                if matrix[rank][rank] <= 0:
                    raise ConfigError(f"{name}: worker {rank} keeps nothing of its own; entry ({rank}, {rank}) is 0")

    return Weights(name, of, check)


def settled(plan: Shape, weights: Weights) -> Callable[[int], Topology]:
    """The graph of so many workers, with its weights checked, once a number; one worker has nobody to talk to.

    One alone passes whatever the graph: ``attach`` rehearses so.
    """

    @lru_cache(maxsize=4)
    def of(size: int) -> Topology:
        if size == 1:
            return Topology(plan.name, 1, ((),))
        made = plan.among(size)
        weights.check(made)
        return made

    return of


def matrix_of(graph: Topology, weights: Weights, round: int) -> Tensor:
    """The whole mixing matrix of a round; what a worker does not take from others is its own."""
    made = torch.zeros(graph.size, graph.size, dtype=torch.float64)
    for source, to in graph.rounds[round % len(graph.rounds)]:
        made[to, source] = weights.of(graph, to, source, round)
    return made


def mean_matrix(graph: Topology, weights: Weights, round: int) -> Tensor:
    """The matrix by which :func:`keeping_the_mean` mixes: rows sum to 1."""
    made = matrix_of(graph, weights, round)
    return made + torch.diag(1 - made.sum(1))


def sum_matrix(graph: Topology, weights: Weights, round: int) -> Tensor:
    """The matrix by which :func:`keeping_the_sum` mixes: columns sum to 1."""
    made = matrix_of(graph, weights, round)
    return made + torch.diag(1 - made.sum(0))


def contraction(matrices: Sequence[Tensor]) -> float:
    """By how much deviations shrink a round, in the long run: the second largest eigenvalue's modulus, of the product.

    For one symmetric matrix it is ``max(|lambda_2|, |lambda_n|)``; 1 minus it is the spectral gap.
    """
    product = matrices[0]
    for matrix in matrices[1:]:
        product = matrix @ product
    sizes = torch.linalg.eigvals(product).abs().sort(descending=True).values
    # An eigenvalue of 0 that is defective comes out as large as a root of the rounding.
    second = float(sizes[1]) if len(sizes) > 1 else 0.0
    return second ** (1 / len(matrices)) if second > 1e-6 else 0.0


def told(plan: Shape, weights: Weights, size: int, matrix: Callable[[Topology, Weights, int], Tensor]) -> str:
    """A sentence on a graph of so many workers: what is sent, and how fast it mixes.

    Raises: ConfigError for a graph or weights that do not fit so many.
    """
    graph = plan.among(size)
    weights.check(graph)
    rounds = len(graph.rounds)
    counts = {len(graph.targets(rank, round)) for rank in range(graph.size) for round in range(rounds)}
    messages = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    said = f"graph {graph.name}: {messages} message{'s' if messages != '1' else ''} a round out of each"
    if rounds > 1:
        said += f", {rounds} rounds in turn"
    if not 1 < graph.size <= LARGEST:
        return said
    rho = contraction([matrix(graph, weights, round) for round in range(rounds)])
    if rho == 0:
        return f"{said}; the mean is exact after {rounds} round{'s' if rounds > 1 else ''}"
    halves = math.log(2) / -math.log(rho) if rho < 1 else math.inf
    return f"{said}; spectral gap {1 - rho:.3g}: deviations halve in {halves:.2g} rounds"


def _read(weights: Given, known: str) -> tuple[Matrix | None, str]:
    if weights == known:
        return None, known
    if isinstance(weights, str):
        if "." not in weights and "/" not in weights:
            raise unknown("weights", weights, [known, "a file of a matrix"])
        try:
            lines = [line.split("#")[0].replace(",", " ").split() for line in Path(weights).read_text().splitlines()]
            rows = [[float(entry) for entry in line] for line in lines if line]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ConfigError(f"weights: {weights} cannot be read: {why}") from None
        except ValueError as error:
            raise ConfigError(f"weights: {weights} holds something that is no number: {error}") from None
    else:
        try:
            rows = [[float(entry) for entry in row] for row in weights]
        except (TypeError, ValueError):
            raise ConfigError(f"weights: wanted {known!r}, a file, or rows of numbers, got {weights!r}") from None
    name = f"weights {hashlib.sha256(repr(rows).encode()).hexdigest()[:8]}"
    for i, row in enumerate(rows):
        if len(row) != len(rows):
            raise ConfigError(f"weights: not square: row {i} has {len(row)} entries, and there are {len(rows)} rows")
        for j, value in enumerate(row):
            if not 0 <= value <= 1:
                raise ConfigError(f"weights: entry ({i}, {j}) is {value:g}; all must be in [0, 1]")
    return rows, name


def _fits(matrix: Matrix, graph: Topology, name: str) -> None:
    if len(matrix) != graph.size:
        raise ConfigError(f"{name}: it is of {len(matrix)} workers, and the run has {graph.size}")
    if len(graph.rounds) > 1:
        raise ConfigError(f"{name}: one matrix, and graph {graph.name} changes from round to round; leave weights out")
    edges = set(graph.rounds[0])
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value and i != j and (j, i) not in edges:
                raise ConfigError(
                    f"{name}: entry ({i}, {j}) is {value:g}, and graph {graph.name} has no edge from worker {j} to {i}"
                )


def _sums(rows: Matrix, name: str, what: str) -> None:
    for i, row in enumerate(rows):
        if abs(math.fsum(row) - 1) > CLOSE:
            raise ConfigError(f"{name}: {what} {i} sums to {math.fsum(row):.6g}, wanted 1")
