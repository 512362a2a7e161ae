"""torch's process groups: native collectives (gloo, NCCL) for dense sums, TCP for packets.

Packets go by :class:`~laconic.links.tcp.TcpLink`, whatever the backend: their sizes differ from worker to worker
and from step to step, which collectives refuse, and a closed connection names a dead peer at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from laconic.errors import ConfigError, PeerLost, PeerTimeout, unknown
from laconic.links.base import PATIENCE
from laconic.links.gloo_ring import SUMMED
from laconic.links.rendezvous import rendezvous
from laconic.links.tcp import TcpLink

BACKENDS = ("gloo", "nccl")
TCP_INFO_BYTES_SENT = struct.Struct("<200xQ")  # tcpi_bytes_sent of Linux's struct tcp_info


class ProcessGroupLink(TcpLink):
    """A link over a process group of ``torch.distributed``: ``group``, or the default one, made if there is none yet.

    The meter counts packets where they are handed to TCP, and gloo's collectives by the kernel's own count of the
    bytes that left gloo's connections; where the kernel does not tell (not Linux, NCCL, or a group that was there
    before), a collective counts as the bytes of a ring, and ``exact`` is False.
    """

    def __init__(
        self, rank: int, size: int, store: Any, backend: str, *, timeout: float = PATIENCE, group: Any = None
    ) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        before = _tcp_sockets()
        self._made = not dist.is_initialized()
        self.group = group
        if self._made:
            dist.init_process_group(
                backend,
                store=PrefixStore("group", store),
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout),
            )
        self.backend = _known(dist.get_backend(group))
        warm = torch.zeros(size, device=self.device)
        dist.all_reduce(warm, group=group)  # so that every connection of the group exists when they are counted
        self._sockets = (_tcp_sockets() - before) if self._made and self.backend == "gloo" else frozenset()
        self._counted = self._bytes_sent()
        self.exact = bool(self._sockets)
        super().__init__(rank, size, store, timeout=timeout)

    @property
    def device(self) -> torch.device:
        """Where tensors must lie for the native collectives."""
        return torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The group's own all-reduce, in place; the ring over TCP for a dtype that gloo cannot sum.

        Raises: PeerLost, naming who does not answer; PeerTimeout, naming who answers but has not come to this sum.
        """
        import torch.distributed as dist

        if self.size == 1:
            return tensor
        if tensor.device.type != self.device.type or (self.backend == "gloo" and tensor.dtype not in SUMMED):
            return super().all_reduce(tensor)
        self._round += 1
        try:
            with self._waiting():
                dist.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            missing = self.roll_call()
            late = min((p.rank for p in self._peers.values() if p.round < self._round), default=None)
            if not missing and late is not None:
                raise PeerTimeout(
                    f"worker {self.rank}: worker {late} answers but has not come to the all-reduce "
                    f"that the others began {self.timeout:g} s ago",
                    late,
                ) from error
            if not missing:
                raise
            peer, why = min(missing.items())
            raise PeerLost(f"worker {self.rank}: worker {peer} is gone: {why}", peer) from error
        ring = 2 * (self.size - 1) * tensor.numel() * tensor.element_size() // self.size
        before, self._counted = self._counted, self._bytes_sent()
        # Since the last count, not since the call: what still lies in the kernel when a call returns leaves later.
        out = self._counted - before if self.exact else ring
        self.meter.sent(out, 2 * (self.size - 1))
        self.meter.received(ring, 2 * (self.size - 1))
        return tensor

    def close(self) -> None:
        """Leave the group, if this link made it."""
        import torch.distributed as dist

        super().close()
        if self._made and dist.is_initialized():
            self._made = False
            dist.destroy_process_group()

    def _bytes_sent(self) -> int:
        return sum(_bytes_sent(fd) for fd in self._sockets)


def process_group(backend: str | None = None, *, timeout: float = PATIENCE, group: Any = None) -> ProcessGroupLink:
    """This worker's link over torch's process group; rank and rendezvous from torchrun's environment.

    ``group`` is one of its groups, that of a mesh's slow dimension say: the link then joins that group's members, in
    their order, and has the group's backend.

    ``backend`` is ``"gloo"`` (CPU) or ``"nccl"`` (CUDA); by default what the machine has. A peer that is silent for
    ``timeout`` seconds, or whose connection closes, is named in the error.

    Raises: ConfigError without torchrun's environment, for an unknown backend, for NCCL without a GPU, and for a group
            of another backend, of several, or without this worker.
    """
    if backend is not None and backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if backend == "nccl" and not torch.cuda.is_available():
        raise ConfigError("process_group: nccl needs a CUDA device and there is none here; use gloo")
    if group is not None:
        return _within(group, backend, timeout)
    import torch.distributed as dist

    if dist.is_initialized():
        backend = _known(dist.get_backend(), backend)
    rank, size, store = rendezvous(timeout)
    if backend is None:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return ProcessGroupLink(rank, size, store, backend, timeout=timeout)


def _within(group: Any, backend: str | None, timeout: float) -> ProcessGroupLink:
    import torch.distributed as dist

    rank = dist.get_rank(group)
    if rank < 0:
        raise ConfigError("process_group: this worker is not in the group; give each worker a group that it is in")
    own = _known(dist.get_backend(group), backend)
    members = dist.get_process_group_ranks(group)
    _, _, store = rendezvous(timeout, members=members)
    return ProcessGroupLink(rank, len(members), store, own, timeout=timeout, group=group)


def _known(own: str, wanted: str | None = None) -> str:
    """A group's backend, if it is one for all devices, and the one that is wanted."""
    if own not in BACKENDS:
        raise ConfigError(
            f"process_group: the group's backend is {own!r}, and a link needs gloo or nccl alone; name one when the "
            'group is made: torch.distributed.init_process_group("nccl"), before a mesh is'
        )
    if wanted not in (None, own):
        raise ConfigError(f"process_group: the group's backend is {own}, not {wanted}; leave backend out")
    return own


def _tcp_sockets() -> frozenset[int]:
    """File descriptors of this process's connected TCP sockets; none where there is no /proc."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:") and _bytes_sent(int(name)) >= 0:
                    found.add(int(name))
    return frozenset(found)


def _bytes_sent(fd: int) -> int:
    """Bytes of payload that the kernel has sent on a TCP socket, retransmissions included; -1 if it will not say."""
    duplicate = os.dup(fd)
    with socket.socket(fileno=duplicate) as view:
        if view.type != socket.SOCK_STREAM or view.family not in (socket.AF_INET, socket.AF_INET6):
            return -1
        try:
            view.getpeername()
            info = view.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            return -1
    return int(TCP_INFO_BYTES_SENT.unpack_from(info)[0]) if len(info) >= TCP_INFO_BYTES_SENT.size else -1
