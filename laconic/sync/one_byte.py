"""Just One Byte: look at the loss to both sides of a random direction, and tell the peers the slope in one byte.

There is no backward. Every worker regenerates everyone's directions from numbers that all know, so a slope is all that
is sent, and a record of slopes is enough to take the same steps again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor, count
from laconic.compress.log_byte import log_byte
from laconic.errors import ClashError, ConfigError, NotANumber, PacketError
from laconic.links.base import Link
from laconic.packet import Packet, need
from laconic.state import varying
from laconic.sync.base import LossAt, Params, Sync, Updates, master, named, positive
from laconic.sync.directions import add_direction, checked_kind


@varying("record")
class OneByteState(NamedTuple):
    """``step`` counts rounds; ``rate`` is the optimizer's learning rate.

    ``masters`` has a float32 copy of each parameter of fewer bits, which small steps would not move. ``record`` is what
    the last rounds were made of: everyone's codes as they were sent, a row a round, and the learning rates.
    """

    step: int
    rate: float
    masters: list[Any]
    record: list[Tensor]


class Way(NamedTuple):
    """What a step is taken by, the same on all workers; ``code`` names the codes in a packet, one to a slope."""

    send: Compressor
    samples: int
    directions: str
    most: float | None
    seed: int
    code: str
    dtype: torch.dtype
    header: dict[str, Any]


def one_byte(
    compressor: Compressor | None = None,
    samples: int = 1,
    eps: float = 1e-3,
    directions: str = "gaussian",
    most: float | None = None,
    keep: int = 1000,
    seed: int = 0,
) -> Sync:
    """Step along random directions by their slopes; of each direction the slope alone is sent.

    Each step every worker draws ``samples`` directions z of its own, and takes the loss of its batch at ``params + eps
    z`` and at ``params - eps z``; the slope is ``p = (plus - minus) / (2 eps)``. All go ``params <- params - rate *
    mean(p z)`` over everyone's directions, in one order, with the slopes as they were sent, their own too. A slope that
    is not finite counts as 0. ``rate`` is the optimizer's learning rate; the optimizer itself takes no step.

    ``most`` bounds a slope, whoever sent it. The last ``keep`` rounds are on record, at ``samples * size + 8`` bytes
    each, for a worker that was away: ``replay`` takes them from where that worker was.

    Wire:   ``samples`` bytes to each peer, each step, and a header.
    Law:    all workers hold the same bits after every step. ``E[p z]`` is the gradient, for a quadratic loss exactly.
            W workers of S samples, uncompressed and on one batch, are one worker of W S samples.
    Raises: ConfigError for settings out of range; ClashError for a compressor whose packets are not one code a value.
    Source: Zelikman et al. 2023, arXiv:2306.10015; the step: Malladi et al. 2023, arXiv:2305.17333 (MeZO).
    """
    send = compressor if compressor is not None else log_byte(missing=True)
    positive("one_byte", "samples", samples)
    count("one_byte", keep, "keep", 0)
    count("one_byte", seed, "seed", None)
    checked_kind("one_byte", directions)
    if not 0 < eps < math.inf:
        raise ConfigError(
            f"one_byte: eps must be positive, got {eps}; it is how far the loss is looked at to each side"
        )
    if most is not None and not most > 0:
        raise ConfigError(f"one_byte: most must be positive, got {most}; leave it out for no bound")
    way = Way(send, samples, directions, most, seed, *_codes_of(send, samples))
    said = f"{send.name}, samples={samples}, {directions}, most={most}, seed={seed}"

    def init(params: Any) -> OneByteState:
        masters = [master(p) if p.dtype.itemsize < 4 else None for p in named(params).values()]
        return OneByteState(0, 0.0, masters, [torch.empty(0, 0, dtype=way.dtype), torch.empty(0, dtype=torch.float64)])

    def learning(state: OneByteState, rate: float) -> OneByteState:
        return state._replace(rate=rate)

    def explore(params: Params, state: OneByteState, link: Link, loss_at: LossAt) -> tuple[Updates, OneByteState]:
        held, of = _held(params, state), samples * link.size
        slopes = []
        for sample in range(link.rank * samples, (link.rank + 1) * samples):
            plus = loss_at(moved(way, held, state.step, sample, of, eps))
            minus = loss_at(moved(way, held, state.step, sample, of, -eps))
            slopes.append((plus - minus) / (2 * eps))
        with link.meter.compressing():
            packet, _ = send.compress(torch.tensor(slopes, dtype=torch.float32), ())
        heard = link.start(link.all_gather, [packet]).result()
        row = torch.cat([_only(way, message, rank) for rank, message in enumerate(heard)])
        values = stepped(way, held, state.step, state.rate, row)
        return dict(enumerate(values)), _noted(state, values, row, keep)

    def replay(params: Params, state: OneByteState, record: Packet) -> tuple[Updates, OneByteState]:
        first, rows, rates = _rounds(record, said, way.dtype)
        if not first <= state.step <= first + len(rates):
            raise ConfigError(
                f"one_byte: the record is of rounds {first + 1} to {first + len(rates)}, and this worker has taken "
                f"{state.step}; begin with newer weights, or let the others keep more rounds"
            )
        values = _held(params, state)
        for row, rate in zip(rows[state.step - first :], rates[state.step - first :].tolist(), strict=True):
            values = stepped(way, values, state.step, rate, row)
            state = _noted(state._replace(rate=rate), values, row, keep)
        return dict(enumerate(values)), state

    def record(state: OneByteState) -> Packet:
        rows, rates = state.record
        told = {"steps": said, "first": state.step - len(rates), "rounds": list(rows.shape)}
        return Packet({"codes": rows.reshape(-1), "rates": rates}, told)

    return Sync(
        init,
        model=_held,
        name=f"one_byte({said}, eps={eps:g})",
        learning=learning,
        explore=explore,
        record=record,
        replay=replay,
    )


def _codes_of(send: Compressor, samples: int) -> tuple[str, torch.dtype, dict[str, Any]]:
    """The name and dtype of a packet's codes, one a value, and the header that all its packets have.

    Raises: ClashError for a compressor that remembers, or whose packets hold something else.
    """
    like = torch.ones(samples)
    packet, after = send.compress(like, send.init(like))
    ((code, codes), *more) = packet.tensors.items()
    if after != () or more or codes.numel() != samples or send.sparse or send.integrate is not None:
        raise ClashError(
            f"one_byte: {send.name} does not send each slope by itself, as one code, and each step's slopes are of new "
            "directions; use log_byte, half or identity"
        )
    return code, codes.dtype, packet.header


def moved(way: Way, held: Sequence[Tensor], step: int, sample: int, of: int, by: float) -> Iterator[Tensor]:
    """The weights, ``by`` further along one of the ``of`` directions of a step; one tensor at a time."""
    for i, value in enumerate(held):
        there = value.clone(memory_format=torch.contiguous_format)
        add_direction(there, by, way.directions, held, way.seed, step, sample, of, i)
        yield there


def stepped(way: Way, held: Sequence[Tensor], step: int, rate: float, row: Tensor) -> list[Tensor]:
    """The weights after a step by everyone's codes.

    In the codes' order, and in products and then sums, so that no machine fuses the two: the same bits everywhere.
    """
    slopes = torch.cat([way.send.decompress(Packet({way.code: c}, way.header)) for c in row.split(way.samples)])
    if not slopes.isfinite().any():
        raise NotANumber(
            f"one_byte: in round {step + 1} no worker found a finite loss; a smaller learning rate or eps may help"
        )
    slopes = slopes.nan_to_num(0.0, 0.0, 0.0)
    slopes = slopes if way.most is None else slopes.clamp(-way.most, way.most)
    values = []
    for i, value in enumerate(held):
        total = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        for sample, slope in enumerate(slopes.tolist()):
            if slope:
                add_direction(total, slope, way.directions, held, way.seed, step, sample, len(slopes), i)
        values.append(value - total.mul_(rate / len(slopes)))
    return values


def _held(params: Params, state: OneByteState) -> list[Tensor]:
    """The weights that a step starts from: the masters, where there are some."""
    return [p.detach() if m is None else m for p, m in zip(params, state.masters, strict=True)]


def _noted(state: OneByteState, values: Sequence[Tensor], row: Tensor, keep: int) -> OneByteState:
    """The state after a step to ``values``, with the round on record."""
    masters = [None if m is None else v for m, v in zip(state.masters, values, strict=True)]
    rows, rates = state.record
    if rows.shape[1:] != row.shape:  # at first, and after the number of workers has changed
        rows, rates = row.new_empty(0, row.numel()), rates[:0]
    rows = torch.cat([rows, row[None]])
    rates = torch.cat([rates, rates.new_tensor([state.rate])])
    start = max(0, len(rates) - keep)
    return OneByteState(state.step + 1, state.rate, masters, [rows[start:].clone(), rates[start:].clone()])


def _only(way: Way, message: Sequence[Packet], rank: int) -> Tensor:
    """One worker's codes.

    Raises: PacketError for anything else, before a step is taken by it.
    """
    if len(message) != 1 or message[0].header != way.header:
        raise PacketError(f"worker {rank} sent {len(message)} packets, wanted one of slopes, headed {way.header}")
    return need(message[0], way.code, (way.dtype,), way.samples)


def _rounds(record: Packet, said: str, dtype: torch.dtype) -> tuple[int, Tensor, Tensor]:
    """The number of rounds before a record, its codes, a row a round, and its learning rates.

    Raises: ConfigError for a record of another run; PacketError for a damaged one.
    """
    if record.header.get("steps") != said:
        raise ConfigError(
            f"one_byte: the record is of steps by {record.header.get('steps')!r}, here they go by {said!r}"
        )
    first, shape = record.header.get("first"), record.header.get("rounds")
    sizes = shape if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) else []
    if type(first) is not int or first < 0 or len(sizes) != 2:
        raise PacketError(f"one_byte: the record begins at {first!r} and is {shape!r} in rounds and codes")
    codes = need(record, "codes", (dtype,), sizes[0] * sizes[1])
    return first, codes.reshape(sizes), need(record, "rates", (torch.float64,), sizes[0])
