"""Words that well-known computations must move between a fast memory and a slow one, and the seconds that takes.

Bounds, in words of the fast memory's; a number is a word, whatever its bytes. They hold without recomputation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from laconic.errors import ConfigError
from laconic.plan.pebbling import COMPUTE, DROP, LOAD, STORE, Graph, Step

ADAM_READS, ADAM_WRITES = 4, 3  # weight, gradient and two moments; all but the gradient


def matmul_least(n: int, words: int) -> float:
    """Words in and out of a product of two ``n x n`` matrices, at least.

    Source: Smith, Lowery, Langou, van de Geijn 2019, arXiv:1702.02017: ``2 n^3 / sqrt(words) - 2 words``; and each
            matrix passes once.
    """
    return max(2 * n**3 / math.sqrt(words) - 2 * words, 3.0 * n * n)


def matmul_tiled(n: int, tile: int) -> float:
    """Words of the product tile by tile: :func:`tiled`'s.

    A tile of the result stays, and a column of the one matrix and a row of the other pass by, so ``tile`` is nearly the
    square root of the room. Three square tiles at once, of a third of it each, move 1.7 times as much.
    """
    return 2 * n**3 / tile + n * n


def matmul_room(tile: int) -> int:
    """Words that such a tile needs: the tile, a column, one value of the row, and one new value."""
    return tile * tile + tile + 2


def matmul(n: int) -> Graph:
    """A product of two ``n x n`` matrices as a graph: left, right, and sums that grow by a product at a time.

    Of the sum at row i and column j, ``2 n^2 + (i n + j) n + k`` is that of the first ``k + 1`` products.
    """
    inputs: list[tuple[int, ...]] = [() for _ in range(2 * n * n)]
    for i in range(n):
        for j in range(n):
            for k in range(n):
                before = (len(inputs) - 1,) if k else ()
                inputs.append((i * n + k, n * n + k * n + j, *before))
    return Graph(tuple(inputs))


def tiled(n: int, tile: int) -> Iterator[Step]:
    """A schedule of :func:`matmul` for one processor with room for :func:`matmul_room` words.

    Raises: ConfigError unless tiles of that size cover the matrices.
    """
    if tile < 1 or n % tile:
        raise ConfigError(f"tiled: a tile must divide {n}, got {tile}")
    for top in range(0, n, tile):
        for left in range(0, n, tile):
            rows, columns = range(top, top + tile), range(left, left + tile)
            for k in range(n):
                for i in rows:
                    yield Step(LOAD, ((0, i * n + k),))
                for j in columns:
                    right = n * n + k * n + j
                    yield Step(LOAD, ((0, right),))
                    for i in rows:
                        value = 2 * n * n + (i * n + j) * n + k
                        yield Step(COMPUTE, ((0, value),))
                        if k:
                            yield Step(DROP, ((0, value - 1),))
                    yield Step(DROP, ((0, right),))
                yield Step(DROP, tuple((0, i * n + k) for i in rows))
            for value in (2 * n * n + (i * n + j) * n + n - 1 for i in rows for j in columns):
                yield Step(STORE, ((0, value),))
                yield Step(DROP, ((0, value),))


def attention_blocked(sequence: int, head: int, words: int) -> float:
    """Words of one head's attention that never writes its scores.

    A quarter of the room is for each of queries, keys, values and results: every block of queries reads all keys and
    values once. Grows as ``sequence^2 head^2 / words``.

    Source: Dao et al. 2022, arXiv:2205.14135, theorem 2, with the constants of these blocks.
    """
    blocks = math.ceil(4 * sequence * head / words)
    return 2.0 * sequence * head + 2.0 * blocks * sequence * head


def attention_plain(sequence: int, head: int) -> float:
    """Words of one head's attention that writes its scores and reads them, before and after the softmax."""
    return 4.0 * sequence * head + 4.0 * sequence**2


def elementwise(values: int, inputs: int = 1) -> float:
    """Words of a function of each value by itself, of so many inputs."""
    return float(values * (inputs + 1))


def adam_bytes(parameters: int, word: int = 4) -> float:
    """Bytes of one step of Adam: 28 a parameter in float32."""
    return float(parameters * word * (ADAM_READS + ADAM_WRITES))


def least_seconds(flops: float, rate: float, nbytes: float, bandwidth: float) -> float:
    """What no machine of ``rate`` operations and ``bandwidth`` bytes a second goes below: a roofline.

    A measurement below it says that something of the four is wrong.
    """
    return max(flops / rate, nbytes / bandwidth)
