"""Two phases: each worker combines a part of every tensor for all, so that packets that cannot be added go less far."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.aggregate.mean import Rule, mean
from laconic.compress.base import Compressor, needs_feedback, needs_values
from laconic.compress.error_feedback import error_feedback
from laconic.compress.identity import identity
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.exchange.base import Exchange, Tensors
from laconic.exchange.everyone import EveryoneState, _combine, _weight, everyone
from laconic.links.base import Link
from laconic.packet import Message, Packet, check_shape
from laconic.state import checkpointed

LEAST = 1024  # entries under which a part is not worth a packet of its own


@checkpointed
class Cut(NamedTuple):
    """One tensor: ``first`` is the owner of its first part, ``out`` a compressor's state for each part, and ``back``
    one for the part that this worker combines, ``None`` if it has none.
    """

    first: int
    out: list[Any]
    back: Any


@checkpointed
class TwoPhaseState(NamedTuple):
    """``size`` is the number of workers that tensors are cut for; before the first round 0, and ``None`` for a cut."""

    size: int
    cuts: list[Cut | None]


def two_phase(
    compressor: Compressor | None = None,
    combine: Rule | None = None,
    feedback: bool = True,
    small: Compressor | None = None,
) -> Exchange:
    """Combine every worker's tensors, a part of each at every worker: for dense codes, such as int8's.

    Each tensor is cut into a part a worker. Everyone sends part j to its owner, who decompresses all in rank order,
    combines them (a rule sees one part at a time), compresses the result and sends it to all. With ``feedback`` the
    owner adds to the next result what its packet dropped, unless ``compressor`` does so itself or cannot have it.
    Tensors of fewer than two dimensions go by ``small``, by default uncompressed. With at most two workers a second
    phase would save nothing and round once more: they use :func:`everyone`.

    Wire:   one all-to-all and one all-gather, ``2 (n-1)/n`` times the packets' bytes out of each of n workers, where
            an all-gather alone takes ``n-1`` times.
    Law:    with error feedback in both phases, sum of results + mean of the workers' residuals + the owners' residuals
            == sum of mean inputs. Uncompressed, the mean.
    Raises: ClashError for a compressor that sends momentum, or changes to be added up; ConfigError if the number of
            workers has changed since the state was made.
    Source: Tang et al. 2021, arXiv:2102.02888 (1-bit Adam), the compressed all-reduce, with ``error_feedback(sign())``.
    """
    main = compressor if compressor is not None else identity()
    rule = combine if combine is not None else mean()
    minor = small if small is not None else identity()
    for part in (main, minor):
        needs_values("two_phase", part, f"use everyone({part.name})")
        if part.momentum:
            raise ClashError(f"two_phase: {part.name} sends momentum, which owners would add twice; use everyone(...)")
    gathered = everyone(main, rule, minor)

    def choose(tensor: Tensor) -> Compressor:
        return main if tensor.dim() > 1 else minor

    def init(tensors: Tensors) -> TwoPhaseState:
        for tensor in tensors:  # the parts are not known yet, but what refuses the whole does so now
            choose(tensor).init(torch.empty_like(tensor, device="meta"))
        return TwoPhaseState(0, [None] * len(tensors))

    def begin(tensor: Tensor, index: int, link: Link) -> Cut:
        if link.size <= 2:
            return Cut(0, [choose(tensor).init(tensor)], None)
        parts = _parts(tensor, index, choose(tensor), link.size)
        mine = parts.get(link.rank)
        back = None if mine is None else _answering(choose(tensor), mine, feedback).init(mine)
        return Cut(index, [choose(tensor).init(part) for part in parts.values()], back)

    def run(tensors: Tensors, state: TwoPhaseState, link: Link) -> tuple[list[Tensor], TwoPhaseState]:
        if state.size not in (0, link.size):
            raise ConfigError(
                f"two_phase: its state is of {state.size} workers, and there are {link.size} now; begin with a new one"
            )
        both = zip(tensors, state.cuts, strict=True)
        cuts = [cut if cut is not None else begin(t, i, link) for i, (t, cut) in enumerate(both)]
        if link.size <= 2:
            combined, after = gathered.run(tensors, EveryoneState([cut.out[0] for cut in cuts]), link)
            return combined, TwoPhaseState(link.size, [Cut(0, [one], None) for one in after.inner])

        # Who combines what: on every worker the same, from the tensors' shapes alone.
        parts = [_parts(t, cut.first, choose(t), link.size) for t, cut in zip(tensors, cuts, strict=True)]
        owned = [[i for i, each in enumerate(parts) if rank in each] for rank in range(link.size)]
        lead = [Packet({}, {"weight": rule.weight})] if rule.weighted else []
        messages: list[Message] = [list(lead) for _ in range(link.size)]
        with link.meter.compressing():
            for i, tensor in enumerate(tensors):
                out = []
                for (owner, part), before in zip(parts[i].items(), cuts[i].out, strict=True):
                    packet, after = choose(tensor).compress(part, before)
                    messages[owner].append(packet)
                    out.append(after)
                cuts[i] = cuts[i]._replace(out=out)
        heard = link.all_to_all(messages)

        mine, answer = owned[link.rank], []
        with link.meter.compressing():
            weights = [_weight(message, len(mine), rule) for message in heard]
            bodies = [message[-len(mine) :] if mine else [] for message in heard]
            for place, i in enumerate(mine):
                part, packets = parts[i][link.rank], [body[place] for body in bodies]
                for packet in packets:
                    check_shape(packet, part)
                result = _combine(rule, choose(tensors[i]), packets, weights, part)
                packet, back = _answering(choose(tensors[i]), part, feedback).compress(result, cuts[i].back)
                answer.append(packet)
                cuts[i] = cuts[i]._replace(back=back)
        answered = link.all_gather(answer)

        with link.meter.compressing():
            for rank, message in enumerate(answered):
                for i, packet in zip(owned[rank], _so_many(message, len(owned[rank]), rank), strict=True):
                    check_shape(packet, parts[i][rank])
                    # Mine decompressed too, as all the others have it.
                    parts[i][rank] = choose(tensors[i]).decompress(packet).to(tensors[i])
            combined = [_join(t, each) for t, each in zip(tensors, parts, strict=True)]
        return combined, TwoPhaseState(link.size, list(cuts))

    name = f"two_phase({main.name})" if rule.name == "mean" else f"two_phase({main.name}, {rule.name})"
    return Exchange(init, run, equal=True, name=name, sparse=main.sparse)


def _answering(compressor: Compressor, part: Tensor, feedback: bool) -> Compressor:
    """What an owner answers by: with feedback, unless there is none to have for a part of that size."""
    try:
        needs_feedback("two_phase", compressor, part.numel())
    except ClashError:
        return compressor
    return error_feedback(compressor) if feedback and compressor.name != "identity" else compressor


def _parts(tensor: Tensor, first: int, compressor: Compressor, workers: int) -> dict[int, Tensor]:
    """The parts of a tensor by their owners, in order; whole blocks each, and none that is empty.

    A part is not so short that its header would outweigh it, so a short tensor has fewer parts than there are workers;
    ``first`` turns the owners round, or worker 0 would combine all that is short.
    """
    flat = tensor.detach().reshape(-1)
    step = -(-LEAST // compressor.block) * compressor.block
    edges = [min(flat.numel(), -(-flat.numel() * j // (workers * step)) * step) for j in range(workers + 1)]
    return {(first + j) % workers: flat[start:stop] for j, (start, stop) in enumerate(pairwise(edges)) if stop > start}


def _join(tensor: Tensor, parts: dict[int, Tensor]) -> Tensor:
    return torch.cat(list(parts.values())).reshape(tensor.shape) if parts else torch.zeros_like(tensor)


def _so_many(message: Message, wanted: int, source: int) -> Message:
    if len(message) != wanted:
        raise PacketError(f"worker {source} answered {len(message)} packets, wanted {wanted}")
    return message
