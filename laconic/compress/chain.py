"""Chains: what one compressor leaves, the next compresses further."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from laconic.compress.base import KEEPS, Compressor, needs_values, promised
from laconic.compress.int8 import int8
from laconic.compress.topk import topk
from laconic.errors import ClashError, PacketError
from laconic.packet import Packet, need

Chained = tuple[Any, Any]


def chain(*compressors: Compressor) -> Compressor:
    """Compress with the first, then what it leaves to be refined (Top-k's values, say) with the next, and so on.

    Wire:   the first one's packet, with the refined tensor replaced by the next one's packet.
    Error:  the errors of all; wrap the whole chain in :func:`error_feedback`, not its members.
    Raises: ClashError where a member leaves nothing that the next could compress: ``chain(int8(), topk())``; for one
            with feedback after one that is sparse.
    """
    first, *rest = compressors or (topk(), int8())
    for compressor in rest:
        first = _pair(first, compressor)
    return first


def _pair(outer: Compressor, inner: Compressor) -> Compressor:
    for member in (outer, inner):
        needs_values("chain", member, "put the whole chain inside it, ef21(chain(...)) say")
    if inner.no_feedback == KEEPS and outer.sparse:
        raise ClashError(
            f"chain: {inner.name} would add what it dropped of one entry to another, since {outer.name} leaves other "
            "entries each time; put the whole chain inside the feedback"
        )
    part = outer.refines
    if part is None:
        raise ClashError(
            f"chain: {outer.name} leaves nothing that {inner.name} could compress further; put {inner.name} first "
            "if it leaves values (topk, random_k and identity do)"
        )

    def init(like: Tensor) -> Chained:
        packet, _ = outer.compress(torch.empty_like(like, device="meta"), outer.init(_meta(like)))
        leaves = packet.tensors[part]
        return outer.init(like), inner.init(torch.zeros(leaves.shape, dtype=leaves.dtype, device=like.device))

    def compress(x: Tensor, state: Chained) -> tuple[Packet, Chained]:
        packet, outer_state = outer.compress(x, state[0])
        whole, inner_state = finish(packet, state[1])
        return whole, (outer_state, inner_state)

    def finish(packet: Packet, state: Any) -> tuple[Packet, Any]:
        refined, after = inner.compress(packet.tensors[part], state)
        tensors = {name: t for name, t in packet.tensors.items() if name != part}
        tensors |= {f"{part}/{name}": t for name, t in refined.tensors.items()}
        return Packet(tensors, packet.header | {f"{part}/": refined.header}), after

    def carry(x: Tensor, residual: Tensor, state: Chained) -> tuple[Packet, Tensor, Chained]:
        assert outer.carry is not None
        assert outer.add is not None
        packet, left, outer_state = outer.carry(x, residual, state[0])
        whole, inner_state = finish(packet, state[1])
        error = packet.tensors[part] - joined(whole).tensors[part]
        outer.add(Packet(packet.tensors | {part: error}, packet.header), left, 1.0)
        return whole, left, (outer_state, inner_state)

    def joined(packet: Packet) -> Packet:
        header = packet.header.get(f"{part}/")
        if not isinstance(header, dict):
            raise PacketError(f"packet: it lacks the header of its refined {part!r}")
        prefix = f"{part}/"
        refined = {n.removeprefix(prefix): t for n, t in packet.tensors.items() if n.startswith(prefix)}
        rest = {n: t for n, t in packet.tensors.items() if not n.startswith(prefix)}
        inside = Packet(refined, header)
        shape, numel = promised(inside)
        # What a compressor leaves is never more than the tensor; without this a few bytes could ask for any memory.
        if len(shape) != 1 or numel > promised(packet)[1]:
            raise PacketError(f"packet: its refined {part!r} promises shape {list(shape)}, more than the whole tensor")
        values = inner.decompress(inside)
        need(Packet({part: values}), part, (values.dtype,))
        return Packet(rest | {part: values}, {k: v for k, v in packet.header.items() if k != prefix})

    add = outer.add

    return Compressor(
        init,
        compress,
        lambda packet: outer.decompress(joined(packet)),
        summable=outer.summable and inner.summable,
        name=f"chain({outer.name}, {inner.name})",
        refines=f"{part}/{inner.refines}" if inner.refines else None,
        sparse=outer.sparse or inner.sparse,
        momentum=outer.momentum or inner.momentum,
        no_feedback=outer.no_feedback or inner.no_feedback,
        sized=outer.sized and inner.sized,
        carry=carry if outer.carry and add else None,
        add=(lambda packet, into, weight: add(joined(packet), into, weight)) if add else None,
    )


def _meta(like: Tensor) -> Tensor:
    return torch.empty_like(like, device="meta")
