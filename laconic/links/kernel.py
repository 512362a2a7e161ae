"""What the kernel knows of a TCP connection: how it is cut into segments, and what was sent twice (Linux)."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import NamedTuple

INFO = struct.Struct("<5xB10xI180xQQ")  # options, snd_mss, bytes_sent and bytes_retrans of Linux's struct tcp_info
STAMPS = 1  # of the options: each segment carries timestamps
ETHERNET, TCP, STAMP_BYTES = 14, 20, 12
IP = {socket.AF_INET: 20, socket.AF_INET6: 40}


class Connection(NamedTuple):
    """Bytes of payload in a full segment, of the headers around it, and of payload sent in all and sent again.

    All are 0 where the kernel does not tell.
    """

    segment: int
    headers: int
    sent: int
    resent: int

    @property
    def frames(self) -> float:
        """Bytes on an Ethernet wire for each byte of payload, in full segments; 1 where it is not known."""
        return 1 + self.headers / self.segment if self.segment else 1.0


def connection(of: socket.socket) -> Connection:
    """What the kernel says of a connected socket."""
    info = b""
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or closed
        info = of.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < INFO.size:
        return Connection(0, 0, 0, 0)
    options, segment, sent, resent = INFO.unpack_from(info)
    headers = ETHERNET + IP.get(of.family, 0) + TCP + (STAMP_BYTES if options & STAMPS else 0)
    return Connection(segment, headers, sent, resent)


def keep_little_unsent(of: socket.socket, nbytes: int) -> None:
    """Let a sender wait once so many bytes have not left yet, so that it can stop soon; where the kernel can."""
    with contextlib.suppress(OSError, AttributeError):
        of.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, nbytes)
