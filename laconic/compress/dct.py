"""The discrete cosine transform: send the low frequencies of a tensor, of which sums are sums."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, whole
from laconic.errors import ConfigError, NotANumber
from laconic.packet import Packet, need
from laconic.state import checkpointed

BY_MATRIX = 256  # entries of a chunk that a matrix transforms; longer ones go through the fast Fourier transform

Part = tuple[int, int, int, int]  # where it begins, how many rows, of how many entries, of which so many coefficients


@checkpointed
class DctState(NamedTuple):
    """How many tensors have been sent: which band comes next."""

    step: int


def dct(keep: float = 0.1, chunk: int = 64, rotate: bool = False) -> Compressor:
    """Send the lowest ``ceil(keep * chunk)`` coefficients of the orthonormal DCT-II of every ``chunk`` entries.

    ``chunk=0`` transforms the whole tensor, flattened, as the paper does; what does not fill the last chunk is one of
    its own. Everything is linear: packets are summable, and their mean is the packet of the mean. It pays where
    neighbours are alike. What changes from one entry to the next is dropped, and every time the same: training stays
    within what low frequencies can say. ``rotate`` sends the next band each time, and all of them in turn: that is what
    :func:`error_feedback` needs.

    Wire:   the coefficients in the tensor's dtype, in all ``ceil(keep * chunk)`` for every chunk.
    Law:    ``|x - decompress(compress(x))|^2`` is the energy of the coefficients that are not sent; at ``keep=1`` it is
            rounding.
    Raises: ConfigError unless ``0 < keep <= 1`` and ``chunk >= 0``; NotANumber if the tensor holds NaN or infinity, or
            a coefficient is beyond the range of the tensor's dtype (float16; a chunk's mean comes out sqrt(chunk) times
            as large).
    Source: FedFT, arXiv:2409.05242. Through the Fourier transform: Makhoul 1980.
    """
    counts("dct", chunk=chunk)
    share("dct", keep, "keep")
    if chunk < 0:
        raise ConfigError(f"dct: chunk must be at least 1, or 0 for the whole tensor, got {chunk}")

    def init(like: Tensor) -> DctState:
        return DctState(0)

    def compress(x: Float[Tensor, "*shape"], state: DctState) -> tuple[Packet, DctState]:
        flat = x.detach().reshape(-1)
        size = min(chunk or flat.numel(), flat.numel())
        count = math.ceil(keep * size)
        turn = state.step if rotate else 0
        found = [
            transform(working(flat[at : at + rows * length]).reshape(rows, length), k, turn * k).reshape(-1)
            for at, rows, length, k in _parts(flat.numel(), size, count)
        ]
        values = (torch.cat(found) if found else flat).to(x.dtype)
        try:
            finite("dct", values)
        except NotANumber:
            finite("dct", x)
            raise NotANumber(f"dct: a coefficient is beyond the range of {x.dtype}; take a smaller chunk") from None
        header = {"shape": list(x.shape), "chunk": size, "keep": count, "turn": turn}
        return Packet({"coefficients": values}, header), DctState(state.step + 1)

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        size = whole(packet, "chunk", min(1, numel), numel)
        count = whole(packet, "keep", min(1, size), size)
        turn = whole(packet, "turn", 0, 1 << 62)
        parts = _parts(numel, size, count)
        values = need(packet, "coefficients", FLOATS, sum(rows * k for _, rows, _, k in parts))
        found = [
            inverse(working(part).reshape(rows, k), length, turn * k).reshape(-1)
            for part, (_, rows, length, k) in zip(values.split([r * k for _, r, _, k in parts]), parts, strict=True)
        ]
        return (torch.cat(found).to(values.dtype) if found else values).reshape(shape)

    return Compressor(
        init,
        compress,
        decompress,
        summable=True,
        name="dct",
        refines="coefficients",
        sparse=True,
        no_feedback="" if rotate or keep == 1 else "never sends what it drops (with rotate=true it does)",
        block=max(1, chunk),
    )


def _parts(numel: int, size: int, keep: int) -> list[Part]:
    """The whole chunks, then what is left over; a part that is empty is left out."""
    if not numel or not size:
        return []
    rows, rest = divmod(numel, size)
    parts = [(0, rows, size, keep), (rows * size, 1, rest, -(-keep * rest // size))]
    return [part for part in parts if part[2]]


def working(values: Tensor) -> Tensor:
    """At least float32: half precision has too few digits for sums, and no Fourier transform."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def transform(rows: Float[Tensor, "r n"], keep: int, first: int = 0) -> Float[Tensor, "r k"]:
    """``keep`` coefficients of the orthonormal DCT-II of each row, from ``first`` on and round again."""
    size = rows.shape[1]
    if rows.device.type == "meta":
        return rows.new_empty(rows.shape[0], keep)
    if size <= BY_MATRIX:
        return rows @ _band(size, keep, first, rows.dtype, rows.device).T
    # The even entries forward, the odd ones backward: then it is a Fourier transform, turned a little each coefficient.
    folded = torch.cat((rows[:, ::2], rows[:, 1::2].flip(1)), dim=1)
    turned = torch.fft.rfft(folded, dim=1).mul_(_turn(size, rows))
    coefficients = torch.cat((turned.real, -turned.imag[:, 1 : (size + 1) // 2].flip(1)), dim=1)
    coefficients[:, 0] *= math.sqrt(0.5)
    band = _wrapped(coefficients, keep, first)
    return band * math.sqrt(2 / size)


def inverse(values: Float[Tensor, "r k"], size: int, first: int = 0) -> Float[Tensor, "r n"]:
    """The rows of ``size`` entries with these coefficients from ``first`` on, and no others."""
    keep = values.shape[1]
    if values.device.type == "meta":
        return values.new_empty(values.shape[0], size)
    if size <= BY_MATRIX:
        return values @ _band(size, keep, first, values.dtype, values.device)
    scaled = values * math.sqrt(size / 2)
    coefficients = scaled.new_zeros(scaled.shape[0], size)
    start = first % size
    ahead = min(keep, size - start)
    coefficients[:, start : start + ahead] = scaled[:, :ahead]
    coefficients[:, : keep - ahead] = scaled[:, ahead:]
    coefficients[:, 0] *= math.sqrt(2)
    imaginary = torch.zeros_like(coefficients[:, : size // 2 + 1])
    imaginary[:, 1:] = -coefficients.flip(1)[:, : size // 2]
    turned = torch.complex(coefficients[:, : size // 2 + 1], imaginary).mul_(_turn(size, values).conj())
    folded = torch.fft.irfft(turned, n=size, dim=1)
    rows = torch.empty_like(folded)
    half = (size + 1) // 2
    rows[:, ::2] = folded[:, :half]
    rows[:, 1::2] = folded[:, half:].flip(1)
    return rows.add_(0.0)  # no -0


def _wrapped(values: Tensor, keep: int, first: int) -> Tensor:
    start = first % values.shape[1]
    if start + keep <= values.shape[1]:
        return values[:, start : start + keep]
    return torch.cat((values[:, start:], values[:, : start + keep - values.shape[1]]), dim=1)


def _turn(size: int, like: Tensor) -> Tensor:
    """A quarter turn spread over ``size`` coefficients, for the first half of them."""
    angles = torch.arange(size // 2 + 1, dtype=torch.float64, device=like.device) * (-math.pi / 2 / size)
    return torch.polar(torch.ones_like(angles), angles).to(like.dtype.to_complex())


def _band(size: int, keep: int, first: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "k n"]:
    """Rows of the orthonormal DCT-II matrix, from ``first`` on and round again."""
    matrix = basis(size, dtype, device)
    start = first % size
    if start + keep <= size:
        return matrix[start : start + keep]
    return torch.cat((matrix[start:], matrix[: start + keep - size]))


@lru_cache(maxsize=32)
def basis(size: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II matrix: ``basis @ column`` are the coefficients."""
    n = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * n[:, None] * (n + 0.5)) * math.sqrt(2 / size)
    matrix[0] *= math.sqrt(0.5)
    return matrix.to(device, dtype)
