"""Random pairs: each round, every worker exchanges with one other, and nobody waits for the rest."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from torch import Tensor

from laconic.aggregate.mean import Rule, mean
from laconic.compress.base import Compressor, count, needs_values
from laconic.compress.identity import identity
from laconic.errors import PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.links.base import Link
from laconic.packet import check_shape
from laconic.state import checkpointed


@checkpointed
class PairsState(NamedTuple):
    """The round, from which the pairing is drawn, and one compressor's state for each tensor."""

    round: int
    inner: list[Any]


def pairs(compressor: Compressor | None = None, combine: Rule | None = None, seed: int = 0) -> Exchange:
    """Combine my tensors with those of one random partner; the two get the same bits.

    The pairing is a function of ``seed`` and the round alone, so all workers know it without a word. With an odd
    number of workers one is left over each round, and keeps its own.

    Wire:   one message of the packets' bytes, to one peer.
    Source: the pairing of NoLoCo, Kolehmainen et al. 2025, arXiv:2506.10911.
    """
    count("pairs", seed, "seed", None)
    inner = compressor if compressor is not None else identity()
    rule = combine if combine is not None else mean()
    needs_values("pairs", inner, "a partner holds only some of them; use everyone(...), or error_feedback here")

    def init(tensors: Tensors) -> PairsState:
        return PairsState(0, [inner.init(t) for t in tensors])

    def run(tensors: Tensors, state: PairsState, link: Link) -> tuple[list[Tensor], PairsState]:
        other = partner(link.rank, link.size, seed, state.round)
        with link.meter.compressing():
            sent = [inner.compress(t, s) for t, s in zip(tensors, state.inner, strict=True)]
        mine = [packet for packet, _ in sent]
        if other == link.rank:
            heard = {link.rank: mine}
        else:
            link.send(mine, other)
            heard = {link.rank: mine, other: link.recv(other)}
        if len(heard[other]) != len(mine):
            raise PacketError(f"worker {other} sent {len(heard[other])} packets, wanted {len(mine)}")
        combined = []
        with link.meter.compressing():
            for i, tensor in enumerate(tensors):
                for message in heard.values():
                    check_shape(message[i], tensor)
                # By rank, so that both of the pair add in the same order.
                parts = [inner.decompress(heard[rank][i]).to(tensor.device) for rank in sorted(heard)]
                combined.append(rule.combine(parts, [1.0] * len(parts)))
        return combined, PairsState(state.round + 1, [after for _, after in sent])

    return Exchange(init, run, equal=False, name=f"pairs({inner.name})", sparse=inner.sparse, momentum=inner.momentum)


def partner(rank: int, size: int, seed: int, round: int) -> int:
    """Whom ``rank`` exchanges with in this round; itself if it is left over."""
    order = list(range(size))
    random.Random(f"pairs/{seed}/{round}").shuffle(order)
    place = order.index(rank)
    other = place ^ 1
    return order[other] if other < size else rank
