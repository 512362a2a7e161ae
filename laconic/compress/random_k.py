"""Random-k: send the same randomly chosen entries from every worker, so that no places are sent."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laconic import kernels
from laconic.compress.base import FLOATS, Compressor, counts, finite, promised, share, whole
from laconic.errors import ConfigError, PacketError
from laconic.packet import Packet, check_shape, need
from laconic.state import checkpointed


@checkpointed
class RandomKState(NamedTuple):
    """How many tensors have been sent: the choice of entries is a function of the seed and this."""

    step: int


def random_k(density: float = 0.01, scaled: bool = False, seed: int = 0, run: int = 64) -> Compressor:
    """Keep ``k = ceil(density * numel)`` entries that the shared ``seed`` and the step choose.

    Every worker chooses the same, so packets are summable and carry no places. The entries are runs of ``run``
    neighbours, as many as memory hands over at once, at places that are an arithmetic sequence with a random start and
    stride: each entry is chosen with probability k/numel. ``run=1`` scatters them one by one, and takes longer.

    Wire:   k values in the tensor's dtype.
    Error:  ``E|x - decompress(compress(x))|^2 = (1 - k/numel) |x|^2``; biased, so wrap it in :func:`error_feedback`.
            ``scaled`` multiplies by numel/k instead: unbiased, to be used without feedback.
    Raises: ConfigError unless ``0 < density <= 1`` and ``run >= 1``; NotANumber if what is sent holds NaN or infinity:
            what is not sent is not looked at. With feedback everything is.
    Source: Stich et al. 2018, arXiv:1809.07599; Wangni et al. 2018, arXiv:1710.09854. The runs: as blocks, Xie et al.
            2020, arXiv:2007.13221 (CSER's random block sparsifier).
    """
    counts("random_k", seed=seed, run=run)
    share("random_k", density)
    if run < 1:
        raise ConfigError(f"random_k: run must be at least 1, got {run}")

    def init(like: Tensor) -> RandomKState:
        return RandomKState(0)

    def pack(values: Tensor, x: Tensor, state: RandomKState) -> tuple[Packet, RandomKState]:
        header = {"shape": list(x.shape), "seed": seed, "step": state.step, "run": run}
        return Packet({"values": values}, header), RandomKState(state.step + 1)

    def compress(x: Float[Tensor, "*shape"], state: RandomKState) -> tuple[Packet, RandomKState]:
        flat = x.detach().reshape(-1)
        values = _gathered(flat, math.ceil(density * flat.numel()), seed, state.step, run)
        if scaled and values.numel():
            values = values * (x.numel() / values.numel())
        finite("random_k", values)
        return pack(values, x, state)

    def carry(x: Tensor, residual: Tensor, state: RandomKState) -> tuple[Packet, Tensor, RandomKState]:
        flat = x.detach().reshape(-1)
        left = torch.add(flat, residual.reshape(-1), out=kernels.empty_like(flat))
        finite("random_k", left)
        places = chosen(left.numel(), math.ceil(density * left.numel()), seed, state.step, left.device, run)
        packet, after = pack(left.index_select(0, places), x, state)
        return packet, left.index_fill_(0, places, 0).reshape(x.shape), after

    return Compressor(
        init,
        compress,
        _scatter,
        summable=True,
        name="random_k",
        refines="values",
        sparse=True,
        no_feedback="(scaled) sends more than it was given" if scaled else "",
        delta=None if scaled else lambda numel: math.ceil(density * numel) / max(1, numel),
        omega=(lambda numel: numel / max(1, math.ceil(density * numel)) - 1 if numel else 0.0) if scaled else None,
        carry=None if scaled else carry,
        add=_add,
    )


def _entries(packet: Packet) -> tuple[Tensor, Tensor]:
    numel = promised(packet)[1]
    values = need(packet, "values", FLOATS)
    k = values.numel()
    if k > numel:
        raise PacketError(f"packet: {k} values for a tensor of {numel} entries")
    step, seed = whole(packet, "step", 0, 1 << 62), whole(packet, "seed", -(1 << 62), 1 << 62)
    return chosen(numel, k, seed, step, values.device, whole(packet, "run", 1, 1 << 62)), values


def _scatter(packet: Packet) -> Float[Tensor, "*shape"]:
    shape, numel = promised(packet)
    places, values = _entries(packet)
    return values.new_zeros(numel).scatter_(0, places, values).reshape(shape)


def _add(packet: Packet, into: Tensor, weight: float) -> None:
    places, values = _entries(packet)
    check_shape(packet, into)
    into.view(-1).index_add_(0, places.to(into.device), values.to(into) * weight)


class _Runs(NamedTuple):
    """``runs`` of ``size`` entries from ``start`` on; ``first``, ``first + stride``, ... of them are taken."""

    size: int
    runs: int
    start: int
    first: int
    stride: int


def _runs(numel: int, seed: int, step: int, run: int) -> _Runs:
    draw = random.Random(f"random_k/{seed}/{step}")
    size = min(run, numel)
    count = numel // size
    start, first, stride = draw.randrange(numel), draw.randrange(count), draw.randrange(1, count + 1)
    while math.gcd(stride, count) != 1:
        stride += 1
    return _Runs(size, count, start, first, stride)


def chosen(numel: int, k: int, seed: int, step: int, device: torch.device, run: int = 1) -> Tensor:
    """The ``k`` places of ``numel`` that (seed, step) choose, all different, in runs of ``run``.

    Whole runs begin at every ``run``-th entry after a random start, and end where the tensor began; the sequence visits
    some of them. The last may be cut short, and what is too short for a run comes last of all.
    """
    if not k:
        return torch.empty(0, dtype=torch.int64, device=device)
    size, count, start, first, stride = _runs(numel, seed, step, run)
    used = min(count, -(-k // size))
    places = (torch.arange(used, device=device) * stride + first) % count * size + start
    if size > 1:
        places = (places[:, None] + torch.arange(size, device=device)).reshape(-1)[:k]
        if k > places.numel():
            rest = torch.arange(count * size, count * size + k - places.numel(), device=device)
            places = torch.cat((places, rest + start))
    return torch.where(places < numel, places, places - numel)


def _gathered(flat: Tensor, k: int, seed: int, step: int, run: int) -> Tensor:
    """``flat`` at the places that :func:`chosen` names; a run is copied as one, where no place of its own is needed."""
    numel = flat.numel()
    if not k or min(run, numel) == 1 or k > numel // min(run, numel) * min(run, numel):
        return flat.index_select(0, chosen(numel, k, seed, step, flat.device, run))
    size, count, start, first, stride = _runs(numel, seed, step, run)
    used = -(-k // size)
    starts = ((torch.arange(used, device=flat.device) * stride + first) % count * size + start) % numel
    step_ = flat.stride(0)
    every = flat.as_strided((numel - size + 1, size), (step_, step_))
    values = every.index_select(0, starts.clamp_(max=numel - size))
    over, inside = divmod(numel - start, size)
    if inside and over < count:  # one run begins at the end and ends at the beginning; is it among them?
        turn = (over - first) * pow(stride, -1, count) % count
        if turn < used:
            values[turn] = torch.cat((flat[numel - inside :], flat[: size - inside]))
    return values.reshape(-1)[:k]
