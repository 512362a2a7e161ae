"""Running sums for links that lose messages: each message says all that was ever sent, so the next makes up for it.

A sum is a whole number of grid units in 32 bits and wraps around, as sequence numbers do: differences of two come out
right, so that nothing grows and what one side gives away is to the bit what the other gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import ConfigError, PacketError, PeerTimeout
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape, need
from laconic.state import varying

GRID = 2.0**22  # units in 1: steps of 2.4e-7
REACH = 2**31 / GRID  # what may be under way to one peer, in each entry
WEIGHT_GRID = 2**40


@varying("sent", "heard")
class Counters(NamedTuple):
    """For each tensor a row of sums for each peer, ``sent`` and ``heard``; those of the weights by peer.

    ``until`` is the last round heard from each.
    """

    sent: list[Tensor | None]
    heard: list[Tensor | None]
    sent_weight: dict[int, int]
    heard_weight: dict[int, int]
    until: dict[int, int]


class Held(NamedTuple):
    """What one worker holds of the masses and of the weight, and its counters."""

    mass: list[Tensor]
    weight: float
    counters: Counters


def no_counters(count: int) -> Counters:
    """Counters before anything was sent."""
    return Counters([None] * count, [None] * count, {}, {}, {})


def give(held: Held, shares: dict[int, float], round: int, link: Link) -> Held:
    """Deal out shares of what is held, by peer; it is gone from here whether it arrives now or later.

    Raises: ConfigError for values beyond what the counters hold; PeerTimeout, PeerLost.
    """
    mass, weight = list(held.mass), held.weight
    sent = [_rows(rows, m, link.size) for rows, m in zip(held.counters.sent, mass, strict=True)]
    totals = dict(held.counters.sent_weight)
    for to in sorted(shares, key=lambda rank: (rank - link.rank) % link.size):
        for i, before in enumerate(held.mass):
            units = _units(before, shares[to])
            sent[i][to] += units  # wraps, on purpose
            mass[i] = mass[i] - units.to(mass[i].dtype) / GRID
        whole = round_(shares[to] * held.weight * WEIGHT_GRID)
        totals[to] = totals.get(to, 0) + whole
        weight -= whole / WEIGHT_GRID
        packets = [Packet({"units": rows[to].reshape(-1)}, {"shape": list(rows[to].shape)}) for rows in sent]
        link.send([Packet({}, {"round": round, "weight": totals[to]}), *packets], to)
    return Held(mass, weight, held.counters._replace(sent=list(sent), sent_weight=totals))


def get(held: Held, sources: Sequence[int], upto: int, patience: float, link: Link) -> Held:
    """Take what has come from ``sources``, waiting ``patience`` seconds for each that has not told of round ``upto``.

    Raises: PacketError; PeerLost.
    """
    mass, weight = list(held.mass), held.weight
    heard = [_rows(rows, m, link.size) for rows, m in zip(held.counters.heard, mass, strict=True)]
    totals, until = dict(held.counters.heard_weight), dict(held.counters.until)
    for source in sources:
        while until.get(source, -1) < upto:
            try:
                message = link.recv(source, patience)
            except PeerTimeout:
                break  # the next one says what this one would have said
            number, total = _lead(message, source, len(mass))
            weight += (total - totals.get(source, 0)) / WEIGHT_GRID
            until[source], totals[source] = number, total
            for i, packet in enumerate(message[1:]):
                check_shape(packet, mass[i])
                told = need(packet, "units", (torch.int32,), mass[i].numel()).reshape(mass[i].shape)
                told = told.to(mass[i].device)
                mass[i] = mass[i] + (told - heard[i][source]).to(mass[i].dtype) / GRID
                heard[i][source] = told
    return Held(mass, weight, held.counters._replace(heard=list(heard), heard_weight=totals, until=until))


round_ = round  # ``round`` is a number of rounds here


def _rows(kept: Tensor | None, like: Tensor, size: int) -> Tensor:
    """A row of sums for each peer; a copy, since those of the old state stay as they are."""
    if kept is None:
        return torch.zeros((size, *like.shape), dtype=torch.int32, device=like.device)
    if kept.shape != (size, *like.shape) or kept.dtype != torch.int32:
        raise PacketError(
            f"checkpoint: counters are {kept.dtype}{list(kept.shape)}, wanted int32 for {list(like.shape)}"
        )
    return kept.clone()


def _units(mass: Tensor, share: float) -> Tensor:
    scaled = (mass * (share * GRID)).round_()
    largest = float(scaled.abs().max()) / GRID if scaled.numel() and mass.device.type != "meta" else 0.0
    if not largest < REACH:
        raise ConfigError(
            f"push_sum: a share of {largest:g} is beyond the {REACH:g} that its counters hold; is training diverging?"
        )
    return scaled.to(torch.int32)


def _lead(message: Message, source: int, count: int) -> tuple[int, int]:
    header = message[0].header if message else {}
    number, total = header.get("round"), header.get("weight")
    if len(message) != count + 1 or type(number) is not int or type(total) is not int or number < 0 or total < 0:
        raise PacketError(f"worker {source} sent {len(message)} packets, wanted a round, a weight and {count} tensors")
    return number, total
