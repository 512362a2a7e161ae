"""gloo's ring all-reduce on a simulated link: what a sum over torch's process group costs where delays matter.

It differs from the ring of :meth:`laconic.links.base.Link.all_reduce` in two ways. A sender waits for its receiver to
say that it is ready, which takes a latency of its own before each segment. And each worker's part goes in two segments,
so that one is on its way while the other is waited for: large sums lose little by the wait, small ones twice the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from laconic.links.base import only
from laconic.packet import Packet

if TYPE_CHECKING:
    from laconic.links.simulated import SimulatedLink

SEGMENTS = 2  # of each worker's part, on their way in turns
LARGEST = 1 << 20  # bytes of a segment
READY = 99  # the channel on which receivers say that they are
SUMMED = (torch.float32, torch.float64, torch.float16)  # gloo refuses bfloat16 and wraps int8 sums


def all_reduce(link: SimulatedLink, tensor: Tensor) -> Tensor:
    """The sum of everyone's ``tensor``, in place.

    Wire:   ``2 (size-1)/size`` times the tensor's bytes out of each worker, and a word before each segment.
    Law:    with ``L`` seconds of latency and nothing to send, ``4 (size-1) L``, where the plain ring takes half.
    Source: gloo's ``allreduce.cc`` (ring) and its TCP pairs, which send to a buffer once it has been announced.
    """
    size, rank = link.size, link.rank
    flat = tensor.detach().reshape(-1)
    each = max(SEGMENTS, -(-flat.numel() * flat.element_size() // (size * LARGEST)))
    parts = list(flat.clone().tensor_split(size * each))
    right, left = (rank + 1) % size, (rank - 1) % size
    sending = link.lane("gloo")

    def give(part: Tensor) -> None:
        link.recv_any([right], channel=READY)
        link.send([Packet({"x": part})], right)

    def take(place: int, adding: bool) -> None:
        if parts[place].numel():
            came = only(link.recv(left), parts[place])
            parts[place] = parts[place] + came if adding else came

    last = None
    for lead, adding in ((0, True), (1, False)):  # reduce-scatter, then all-gather
        turns = [
            (((rank + lead - step) % size) * each + piece, ((rank + lead - step - 1) % size) * each + piece)
            for step in range(size - 1)
            for piece in range(each)
        ]
        for turn, (out, into) in enumerate(turns):
            if turn >= SEGMENTS:
                take(turns[turn - SEGMENTS][1], adding)
            if parts[into].numel():
                link.word(left, READY)
            if parts[out].numel():
                last = sending.start(give, parts[out])
        for _, into in turns[-SEGMENTS:]:
            take(into, adding)
    if last is not None:
        last.result()
    return tensor.copy_(torch.cat(parts).reshape(tensor.shape))
