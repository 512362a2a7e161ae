"""Random pairs, or larger groups: each round everyone exchanges with a few others, and nobody waits for the rest."""

from __future__ import annotations

import random
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

from laconic.aggregate.mean import Rule, mean
from laconic.compress.base import Compressor, count, needs_values
from laconic.compress.identity import identity
from laconic.errors import ClashError, ConfigError, PacketError, PeerError, unknown
from laconic.exchange.base import Exchange, Tensors
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.state import checkpointed

MISSING = ("alone", "raise")


@checkpointed
class PairsState(NamedTuple):
    """The round, from which the groups are drawn, and one compressor's state for each tensor.

    ``alone`` counts rounds in which someone of the group did not come.
    """

    round: int
    alone: int
    inner: list[Any]


def pairs(
    compressor: Compressor | None = None,
    combine: Rule | None = None,
    seed: int = 0,
    group: int = 2,
    missing: str = "alone",
    patience: float | None = None,
) -> Exchange:
    """Combine my tensors with those of one random partner, or of ``group - 1``; a group gets the same bits.

    The groups are a function of ``seed`` and the round alone, so all workers know them without a word. Workers left
    over form a smaller group, of one it may be, which keeps its own.

    A partner that is gone, or silent for ``patience`` seconds (default: the link's), is left out of the round, with a
    warning: what came is combined, and the worker goes on. A message that comes too late is known by its round, and
    dropped when the two meet again. ``missing="raise"`` gives the error instead.

    Wire:   one message of the packets' bytes, and one number, to each of the others in the group.
    Raises: ClashError for a rule other than the plain mean; ConfigError unless ``2 <= group <= workers``; with
            ``missing="raise"`` PeerLost, PeerTimeout.
    Source: the groups of NoLoCo, Kolehmainen et al. 2025, arXiv:2506.10911.
    """
    count("pairs", seed, "seed", None)
    count("pairs", group, "group", 2)
    if missing not in MISSING:
        raise unknown("pairs missing", missing, MISSING)
    if patience is not None and not patience > 0:
        raise ConfigError(f"pairs: patience must be positive, got {patience}; leave it out for the link's timeout")
    inner = compressor if compressor is not None else identity()
    rule = combine if combine is not None else mean()
    if rule.weighted or not rule.linear:
        raise ClashError(
            f"pairs: takes the plain mean of a few workers' weights, and not the {rule.name}; leave combine out"
        )
    needs_values("pairs", inner, "a partner holds only some of them; use everyone(...), or error_feedback here")

    def init(tensors: Tensors) -> PairsState:
        return PairsState(0, 0, [inner.init(t) for t in tensors])

    def run(tensors: Tensors, state: PairsState, link: Link) -> tuple[list[Any], PairsState]:
        others = [rank for rank in members(link.rank, link.size, seed, state.round, group) if rank != link.rank]
        with link.meter.compressing():
            sent = [inner.compress(t, s) for t, s in zip(tensors, state.inner, strict=True)]
        mine = [packet for packet, _ in sent]
        heard = {link.rank: mine}
        gone: dict[int, PeerError] = {}
        for other in others:
            try:
                link.send([Packet({}, {"round": state.round}), *mine], other)
            except PeerError as error:
                gone[other] = error
        for other in others:
            if other not in gone:
                try:
                    heard[other] = of_round(state.round, len(mine), other, link, patience)
                except PeerError as error:
                    gone[other] = error
        for lost in gone.values():
            if missing == "raise":
                raise lost
            left = "alone" if len(heard) == 1 else f"with {len(heard) - 1} of {len(others)}"
            warnings.warn(f"{lost}; worker {link.rank} goes on {left} in round {state.round}", stacklevel=2)
        combined = []
        with link.meter.compressing():
            for i, tensor in enumerate(tensors):
                for message in heard.values():
                    check_shape(message[i], tensor)
                # By rank, so that all of the group add in the same order.
                parts = [inner.decompress(heard[rank][i]).to(tensor.device) for rank in sorted(heard)]
                combined.append(rule.combine(parts, [1.0] * len(parts)))
        return combined, PairsState(state.round + 1, state.alone + bool(gone), [after for _, after in sent])

    words = [f", seed={seed}"] * (seed != 0) + [f", group={group}"] * (group > 2)
    name = f"pairs({inner.name}{''.join(words)})"
    return Exchange(
        init,
        run,
        equal=False,
        name=name,
        sparse=inner.sparse,
        momentum=inner.momentum,
        group=group,
        among=lambda size: among(size, group),
    )


def among(size: int, group: int) -> str:
    """Who talks to whom.

    Raises: ConfigError for a group of more workers than there are.
    """
    if size > 1 and group > size:
        raise ConfigError(f"pairs: groups of {group} among {size} workers; use group={size} or less, or everyone()")
    left = size % group
    rest = f", {left} left over" if left else ""
    return f"each round {size // group} random groups of {group} of {size} workers{rest}"


def of_round(round: int, packets: int, source: int, link: Link, patience: float | None) -> Message:
    """What ``source`` sent in this round; what it sent in an earlier one came too late, and is dropped.

    Raises: PacketError for a message of a round that has not begun here, or that is no message of pairs.
    """
    while True:
        message = link.recv(source, patience)
        theirs = message[0].header.get("round") if message else None
        if type(theirs) is not int or len(message) != packets + 1:
            raise PacketError(f"pairs: worker {source} sent {len(message)} packets, wanted {packets} and the round")
        if theirs == round:
            return message[1:]
        if theirs > round:
            raise PacketError(
                f"pairs: worker {source} is in round {theirs}, worker {link.rank} in round {round}; a state of another "
                "round does not go together with the others': load the same checkpoint's on every worker"
            )


def members(rank: int, size: int, seed: int, round: int, group: int = 2) -> list[int]:
    """The ranks of the group that ``rank`` is in this round, itself among them, in rising order."""
    order, places = _dealt(size, seed, round)
    first = places[rank] // group * group
    return sorted(order[first : first + group])


@lru_cache(maxsize=64)
def _dealt(size: int, seed: int, round: int) -> tuple[list[int], dict[int, int]]:
    """The ranks in this round's order, and the place of each; hundreds of workers of one process draw it once."""
    order = list(range(size))
    random.Random(f"pairs/{seed}/{round}").shuffle(order)
    return order, {rank: place for place, rank in enumerate(order)}


def partner(rank: int, size: int, seed: int, round: int) -> int:
    """Whom ``rank`` exchanges with in this round, in pairs; itself if it is left over."""
    return next((other for other in members(rank, size, seed, round) if other != rank), rank)
