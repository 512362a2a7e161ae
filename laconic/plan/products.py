"""How well a layer's matrix products fill an accelerator: each unit takes a tile, and the last round is seldom full.

A product's result is cut into tiles, which the units (multiprocessors, compute units) work on side by side. 608 tiles
on 108 units are six rounds, of which the last has 68; and where a side is no multiple of the tile's, the rest of a tile
is computed for nothing. So a product takes as long as the whole rounds that it begins. No numbers are fitted: the units
are counted, and the tile is the one with which large products reach the most.

Source: NVIDIA, "Matrix Multiplication Background User's Guide" (tile and wave quantization; from memory).
"""

from __future__ import annotations

from typing import NamedTuple

from laconic.plan.transformer import Transformer

TILE = (256, 128)  # entries of a result, either way round


class Product(NamedTuple):
    """``times`` products of m x k by k x n matrices."""

    m: int
    n: int
    k: int
    times: int = 1

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.m * self.n * self.k * self.times

    def turned(self) -> list[Product]:
        """The two of the backward pass: the gradients of both matrices."""
        return [Product(self.m, self.k, self.n, self.times), Product(self.k, self.n, self.m, self.times)]


def filled(product: Product, units: int) -> float:
    """The share of the units' work that is of use, in (0, 1].

    Law:    1 where whole tiles fill whole rounds; for a larger result it tends to 1.
    """
    return max(_filled(product, units, *tile) for tile in (TILE, TILE[::-1]))


def _filled(product: Product, units: int, high: int, wide: int) -> float:
    tiles = product.times * -(-product.m // high) * -(-product.n // wide)
    rounds = -(-tiles // units)
    return product.times * product.m * product.n / (rounds * units * high * wide)


def linear(model: Transformer, micro_batch: int, tensor: int) -> list[Product]:
    """A layer's products with its weights, forward: queries, keys and values; attention's way out; the MLP's two."""
    rows, h = micro_batch * model.sequence, model.hidden
    own, inner = -(-h // tensor), -(-model.inner // tensor)
    return [Product(rows, 3 * own, h), Product(rows, h, own), Product(rows, inner, h), Product(rows, h, inner)]


def core(model: Transformer, micro_batch: int, tensor: int) -> list[Product]:
    """The products that make and apply the attention scores, forward: one of each for every head and example."""
    s, width, count = model.sequence, model.hidden // model.heads, micro_batch * -(-model.heads // tensor)
    return [Product(s, s, width, count), Product(s, width, s, count)]


def head(model: Transformer, micro_batch: int, tensor: int) -> list[Product]:
    """The head's product, forward."""
    return [Product(micro_batch * model.sequence, -(-model.vocabulary // tensor), model.hidden)]


def seconds(products: list[Product], flops: float, units: int) -> tuple[float, float]:
    """Forward and backward, on units that reach ``flops`` together when all are at work."""

    def taken(some: list[Product]) -> float:
        return sum(product.operations / filled(product, units) for product in some) / flops

    return taken(products), taken([turned for product in products for turned in product.turned()])
