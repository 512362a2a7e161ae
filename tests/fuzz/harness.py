"""What a receiver does with a message that it does not trust, and what may come of it.

A packet is refused with PacketError, or it decodes to a tensor of the shape that it promises. Anything else is a
:class:`Defect`: another exception, another shape, more memory or time than its size warrants, an ``add`` that does not
agree with ``decompress``, or a compiled loop that does not agree with its plain form.
"""

from __future__ import annotations

import math
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from laconic import kernels
from laconic.compress.base import Compressor, accumulate
from laconic.errors import PacketError
from laconic.packet import Packet, check_shape, from_bytes, shape_of
from tests.fuzz.mutate import Parts, taken_apart

LARGEST = 4096  # entries of the receiver's tensor; what promises more is refused by check_shape, as it would be
HERE = (6, 4)
SECONDS = 2.0  # of the processor, for one packet
ROOM = 1 << 16  # bytes that any decompress may use, whatever the packet's size
TIMES = 512  # and so many for each byte of the message and of the tensor
HEADROOM = 256 << 20  # bytes by which the whole process may grow
SEED_SHAPES = ((6, 4), (7,), (), (0,), (3, 0), (24, 40))
SEED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Defect(AssertionError):
    """A packet did something that no packet may."""


class Target(NamedTuple):
    """A compressor, and good packets of it to start from."""

    name: str
    compressor: Compressor
    seeds: Sequence[Parts]


def target(name: str, build: Callable[[], Compressor], steps: int = 2) -> Target:
    """A compressor with good packets of several shapes, dtypes and steps."""
    compressor = build()
    seeds = []
    for shape in SEED_SHAPES:
        for dtype in SEED_DTYPES[: 4 if shape == HERE else 1]:
            generator = torch.Generator().manual_seed(len(seeds))
            x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            state = compressor.init(x)
            for _ in range(steps):
                packet, state = compressor.compress(x, state)
                seeds.append(taken_apart(packet))
    return Target(name, compressor, seeds)


class End(IntEnum):
    """How far a message came."""

    FRAME = 0  # refused by from_bytes
    SHAPE = 1  # refused by check_shape
    PARTS = 2  # refused by decompress
    DECODED = 3


def feed(compressor: Compressor, raw: bytes, close: bool = True) -> End:
    """Receive a message; how far it came. ``close`` looks at every allocation and at the plain forms too.

    Raises: Defect.
    """
    try:
        message = from_bytes(raw)
    except PacketError:
        return End.FRAME
    except Exception as error:
        raise Defect(f"from_bytes raised {type(error).__name__}: {error}") from error
    return min((_receive(compressor, packet, len(raw), close) for packet in message), default=End.FRAME)


def _receive(compressor: Compressor, packet: Packet, nbytes: int, close: bool) -> End:
    like = _mine(packet)
    try:
        check_shape(packet, like)
    except PacketError:
        return End.SHAPE
    limit = ROOM + TIMES * (nbytes + like.numel() * 8)
    back = _try(compressor, packet, limit if close else None)
    if back is not None:
        if back.shape != like.shape or not back.is_floating_point():
            raise Defect(f"decoded to {back.dtype}{list(back.shape)}, the packet promised {list(like.shape)}")
        if close:
            with kernels.plain():
                other = _try(compressor, packet, limit)
            if other is None or not _same(back, other):
                raise Defect("the compiled loops decode what the plain form refuses or decodes to something else")
    elif close:
        with kernels.plain():
            if _try(compressor, packet, limit) is not None:
                raise Defect("the plain form decodes what the compiled loops refuse")
    _check_add(compressor, packet, like, back)
    return End.PARTS if back is None else End.DECODED


def _mine(packet: Packet) -> Tensor:
    """The tensor that the receiver has: of the promised shape, if a receiver could have one."""
    try:
        shape = shape_of(packet)
    except PacketError:
        return torch.empty(HERE)
    return torch.empty(shape if math.prod(shape) <= LARGEST else HERE)


def _try(compressor: Compressor, packet: Packet, limit: int | None) -> Tensor | None:
    try:
        if limit is None:
            return compressor.decompress(packet)
        with Bounded(limit):
            return compressor.decompress(packet)
    except PacketError:
        return None
    except Defect:
        raise
    except Exception as error:
        raise Defect(f"decompress raised {type(error).__name__}: {error}") from error


def _check_add(compressor: Compressor, packet: Packet, like: Tensor, back: Tensor | None) -> None:
    if compressor.add is None:
        return
    into = torch.ones(like.shape)
    try:
        accumulate(compressor, packet, into, 0.5)
    except PacketError:
        if back is not None:
            raise Defect("add refuses what decompress takes") from None
        return
    except Exception as error:
        raise Defect(f"add raised {type(error).__name__}: {error}") from error
    if back is None:
        raise Defect("add takes what decompress refuses")
    wanted = 1 + 0.5 * back.double()
    near = 4 * max(torch.finfo(back.dtype).eps, torch.finfo(into.dtype).eps)  # either may round once more
    if bool((back.double().abs() < 1e18).all()) and not torch.allclose(into.double(), wanted, rtol=near, atol=near):
        raise Defect("add adds something else than decompress gives")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(0.125), b.nan_to_num(0.125))


class Bounded(TorchDispatchMode):
    """Refuses, inside, any operation of torch that makes a tensor of more than ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        try:
            out = func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise Defect(f"{func} asked for more memory than there is") from error
            raise
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor) and made.device.type != "meta":
                size = made.untyped_storage().nbytes()
                if size > self.limit:
                    raise Defect(f"{func} made {size} bytes, at most {self.limit} are warranted")
        return out


@contextmanager
def limits(seconds: float = SECONDS, headroom: int = HEADROOM) -> Iterator[Callable[[], None]]:
    """Inside, the process may grow by ``headroom`` bytes; each call of what is given begins a packet's seconds."""

    def late(signum: int, frame: Any) -> None:
        raise Defect(f"took more than {seconds} s")

    with Bounded(ROOM):  # torch loads the means for it at its first use
        torch.zeros(1)
    old_limit = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    old_handler = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + headroom, old_limit[1]))
    try:
        yield lambda: signal.setitimer(signal.ITIMER_PROF, seconds)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old_handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
