"""Views: who takes part, as one worker knows it, and the order in which a round asks them.

Every worker draws the sample of a round from its own view. Views travel with models and merge in any order, so they
need not be equal at any moment; nodes whose views are equal draw equal samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import PacketError
from laconic.packet import Packet, need

WIDTH = 4  # numbers of an entry on the wire
NEVER = -1  # the round in which who has not been heard of yet was active


class Entry(NamedTuple):
    """What is known of one worker: the last round it was active in, and its own last word on whether it takes part.

    ``counter`` is what the worker counts its announcements by: of two words the one with the larger counter holds.
    """

    active: int = NEVER
    counter: int = 0
    member: bool = True


View = dict[int, Entry]


def everybody(size: int, but: Iterable[int] = ()) -> View:
    """The view of a group at its start: everyone takes part who is not in ``but``."""
    absent = set(but)
    return {rank: Entry(member=rank not in absent) for rank in range(size)}


def merge(one: View, other: View) -> View:
    """What both know together.

    Law:    commutative, associative and idempotent: the order in which views meet does not matter. For that, of two
            words with one counter (which no worker says) that of leaving holds.
    Source: MoDeST, arXiv:2302.13837; ties: laconic's, where the paper keeps its own.
    """
    merged = dict(one)
    for rank, entry in other.items():
        known = merged.get(rank)
        if known is None:
            merged[rank] = entry
        elif known != entry:
            counter, left = max((e.counter, not e.member) for e in (known, entry))
            merged[rank] = Entry(max(known.active, entry.active), counter, not left)
    return merged


def heard(view: View, rank: int, round: int, counter: int) -> View:
    """``view`` once ``rank`` has spoken in ``round``: it is there, and takes part if its counter is new."""
    known = view.get(rank, Entry(member=False))
    member = True if counter > known.counter else known.member
    entry = Entry(max(known.active, round), max(known.counter, counter), member)
    return view if entry == known and rank in view else view | {rank: entry}


def order(view: View, round: int, window: int, me: int, seed: int = 0) -> list[int]:
    """Who is asked in ``round``, the first first: those active in the last ``window`` rounds, and always me.

    Law:    a function of the view and the round alone; over the rounds every place in it is equally likely for all.
    Source: MoDeST, arXiv:2302.13837: by the hash of the identity and the round.
    """
    here = [rank for rank, e in view.items() if rank == me or (e.member and e.active >= round - window)]
    return sorted(here, key=lambda rank: (_mark(seed, rank, round), rank))


def _mark(seed: int, rank: int, round: int) -> bytes:
    return hashlib.blake2b(f"modest/{seed}/{rank}-{round}".encode(), digest_size=8).digest()


def view_packet(view: View) -> Packet:
    """A view as it crosses a link: four numbers for each worker."""
    rows = [number for rank in sorted(view) for number in (rank, *view[rank])]
    return Packet({"view": torch.tensor(rows, dtype=torch.int32)})


def read_view(packet: Packet, size: int) -> View:
    """A view as it came.

    Raises: PacketError for what is no view of ``size`` workers.
    """
    flat: Tensor = need(packet, "view", (torch.int32,))
    rows = flat.reshape(-1, WIDTH).tolist() if flat.numel() % WIDTH == 0 else [[-1] * WIDTH]
    view = {rank: Entry(active, counter, bool(member)) for rank, active, counter, member in rows}
    fits = all(0 <= r < size and a >= NEVER and c >= 0 and m in (0, 1) for r, a, c, m in rows)
    if not fits or len(view) != len(rows):
        raise PacketError(f"view: {flat.numel()} numbers came that are no view of {size} workers")
    return view
