"""Count sketch: a small table of random sums, from which the entries that are large in everyone's mean are read."""

from __future__ import annotations

import math
import random

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, stateless, whole
from laconic.compress.topk import MOST, largest
from laconic.errors import ConfigError, NotANumber, PacketError
from laconic.packet import Packet, need

ROWS = 31  # at most
BLOCK = 1 << 16  # entries that the plain form estimates at a time
LOW31 = 0x7FFFFFFF
AFTER_THE_SUM = (
    "is read only after everyone's tables are added, so that no worker knows what of its own was applied, and what one "
    "keeps is applied again by the others"
)

Keys = list[tuple[int, int]]


def count_sketch(keep: float = 0.01, rows: int = 5, columns: int = 0, size: float = 0.1, seed: int = 0) -> Compressor:
    """Add each entry, with a random sign, to a random cell of every row of a table, and send the table.

    The receiver estimates every entry by the median over the rows of its cells, and keeps the ``ceil(keep * numel)``
    largest estimates. The table is linear: tables are added in flight, and what is read from the sum are the entries
    that are large in the sum, which need not be large anywhere before. ``columns=0`` makes the table ``size`` times as
    large as the tensor.

    Wire:   ``rows * columns`` values in the tensor's dtype.
    Law:    the table of a sum is the sum of the tables. An estimate is off by about ``|x| / sqrt(columns)``, without
            the part of x that the largest entries hold.
    Raises: ConfigError unless ``0 < keep <= 1``, ``0 < size <= 1``, ``columns >= 0`` and ``rows`` is odd and at most
            31; NotANumber if the tensor holds NaN or infinity. Feedback is refused: one worker's part of what was read
            from the sum is known to nobody. FetchSGD keeps it in the sum of the tables, where an exchange would.
    Source: Charikar et al. 2002 (count sketch); Rothchild et al. 2020, arXiv:2007.07682 (FetchSGD). The hashes:
            multiply-add-shift, Dietzfelbinger 1996.
    """
    counts("count_sketch", rows=rows, columns=columns, seed=seed)
    share("count_sketch", keep, "keep")
    share("count_sketch", size, "size")
    if columns < 0:
        raise ConfigError(f"count_sketch: columns must be at least 1, or 0 to take size, got {columns}")
    if rows % 2 == 0 or not 1 <= rows <= ROWS:
        raise ConfigError(f"count_sketch: rows must be odd, for a median, and at most {ROWS}, got {rows}")

    def compress(x: Float[Tensor, "*shape"], state: tuple) -> tuple[Packet, tuple]:
        flat = x.detach().reshape(-1)
        if flat.numel() > MOST:
            raise ConfigError(f"count_sketch: a tensor of {flat.numel()} entries; hashes are of 31 bits, so cut it up")
        wide = columns or max(1, math.ceil(size * flat.numel() / rows))
        table = fill(flat, hashes(seed, rows), wide).to(x.dtype)
        try:
            finite("count_sketch", table)
        except NotANumber:
            finite("count_sketch", x)
            raise NotANumber(f"count_sketch: a cell's sum is beyond the range of {x.dtype}") from None
        header = {"shape": list(x.shape), "rows": rows, "keep": math.ceil(keep * flat.numel()), "seed": seed}
        return Packet({"table": table}, header), state

    def decompress(packet: Packet) -> Float[Tensor, "*shape"]:
        shape, numel = promised(packet)
        table = need(packet, "table", FLOATS)
        high = whole(packet, "rows", 1, ROWS)
        if high % 2 == 0 or not table.numel() or table.numel() % high or table.numel() // high > MOST or numel > MOST:
            raise PacketError(f"packet: a table of {table.numel()} values in {high} rows for {numel} entries")
        count = whole(packet, "keep", min(1, numel), numel)
        keys = hashes(whole(packet, "seed", -(1 << 62), 1 << 62), high)
        try:
            finite("packet", table)
        except NotANumber as error:
            raise PacketError(str(error)) from None
        estimates = estimate(table, keys, numel)
        places, values = largest(estimates, count)
        return torch.zeros_like(estimates).scatter_(0, places.long(), values).to(table.dtype).reshape(shape)

    return Compressor(
        stateless,
        compress,
        decompress,
        summable=True,
        name="count_sketch",
        refines="table",
        sparse=True,
        no_feedback=AFTER_THE_SUM,
    )


def hashes(seed: int, rows: int) -> Keys:
    """For each row an odd factor and a summand, as int64: ``(factor * i + summand) >> 32`` is the hash of ``i``."""
    draw = random.Random(f"count_sketch/{seed}")
    return [(_signed(draw.getrandbits(64) | 1), _signed(draw.getrandbits(64))) for _ in range(rows)]


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


def fill(flat: Float[Tensor, " n"], keys: Keys, columns: int) -> Float[Tensor, " cells"]:
    """The table of ``flat``, row after row, in at least float32."""
    values = flat.to(torch.promote_types(flat.dtype, torch.float32))
    if flat.device.type == "meta":
        return values.new_empty(len(keys) * columns)
    loops = kernels.loops("sketch", values)
    if loops is not None:
        return loops.fill(values, keys, columns)
    table = values.new_zeros(len(keys), columns)
    for start in range(0, values.numel(), BLOCK):  # in this order, as the loops do: the same bits
        part = values[start : start + BLOCK]
        for row, key in zip(table, keys, strict=True):
            cells, minus = _cells(start, part.numel(), key, columns, flat.device)
            row.index_add_(0, cells, torch.where(minus, -part, part))
    return table.reshape(-1)


def estimate(table: Float[Tensor, " cells"], keys: Keys, numel: int) -> Float[Tensor, " n"]:
    """The median over the rows of what the table says of each entry, in at least float32."""
    cells = table.to(torch.promote_types(table.dtype, torch.float32))
    if table.device.type == "meta":
        return cells.new_empty(numel)
    loops = kernels.loops("sketch", cells)
    if loops is not None:
        return loops.estimate(cells, keys, numel).add_(0.0)  # no -0
    by_row = cells.reshape(len(keys), -1)
    out = cells.new_empty(numel)
    for start in range(0, numel, BLOCK):
        count = min(BLOCK, numel - start)
        seen = []
        for row, key in zip(by_row, keys, strict=True):
            places, minus = _cells(start, count, key, by_row.shape[1], table.device)
            seen.append(torch.where(minus, -row[places], row[places]))
        out[start : start + count] = torch.stack(seen).median(dim=0).values
    return out.add_(0.0)


def _cells(start: int, count: int, key: tuple[int, int], columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The cell of each of ``count`` entries in one row, and whether its sign is minus."""
    times, plus = key
    # int64 wraps as the loops' uint64 does, and its upper half is the same bits.
    code = (torch.arange(start, start + count, device=device) * times + plus) >> 32
    return ((code & LOW31) * columns) >> 31, code < 0
