"""What crosses a link: named tensors and a small header, and the bytes they become.

A message is a list of packets. ``docs/wire.md`` draws the layout; golden files in ``tests/golden`` pin it.
Nothing here trusts its input: :func:`from_bytes` checks the frame, the checksum and every declared size
before it makes a tensor, and makes none that is larger than the bytes it was given.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

from laconic.errors import PacketError

MAGIC = b"LCNC"
VERSION = 2
FRAME = struct.Struct("<4sHHIIQ")  # magic, version, reserved, number of packets, CRC-32 of the body, body bytes
ALIGN = 8  # every tensor starts on a multiple of this, so that it can be read where it lies
MAX_MESSAGE = 1 << 36

DIGITS = 300  # of a whole number in a header: such a number is a finite float too
DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "b": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_TEXT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, eq=False)
class Packet:
    """Named tensors and a JSON header: the smallest thing that crosses a link.

    ``nbytes`` is what the packet takes on the wire, header and alignment included; it is known without
    encoding the tensors, and on ``meta`` too. Treat both as read-only: tensors may share memory.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def encoded(self) -> bytes:
        """The header and the tensors' names, dtypes and shapes, as they cross.

        Raises: PacketError for a tensor whose dtype has no code on the wire.
        """
        for name, tensor in self.tensors.items():
            if tensor.dtype not in CODES:
                raise PacketError(f"packet: {name!r} has dtype {tensor.dtype}, which has no code on the wire")
        layout = [[name, CODES[t.dtype], list(t.shape)] for name, t in self.tensors.items()]
        return _TEXT.encode([self.header, layout]).encode()

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        lead = _padded(4 + len(self.encoded))
        return lead + sum(_padded(t.numel() * t.element_size()) for t in self.tensors.values())

    def to(self, device: torch.device) -> Packet:
        """This packet with its tensors on ``device``; itself if they are."""
        if all(tensor.device == device for tensor in self.tensors.values()):
            return self
        return Packet({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.header)

    def __repr__(self) -> str:
        tensors = ", ".join(f"{name}: {CODES[t.dtype]}{list(t.shape)}" for name, t in self.tensors.items())
        return f"Packet({tensors}; {self.header}; {self.nbytes} bytes)"


Message = list[Packet]


def message_nbytes(message: Sequence[Packet]) -> int:
    """Bytes of a whole message on the wire: the frame and every packet."""
    return FRAME.size + sum(packet.nbytes for packet in message)


def to_bytes(message: Sequence[Packet]) -> Tensor:
    """The message as one ``uint8`` tensor on the CPU, ``message_nbytes(message)`` long.

    Raises: PacketError for a tensor whose dtype has no code on the wire.
    """
    size = message_nbytes(message)
    buffer = torch.zeros(size, dtype=torch.uint8) if size < 4096 else torch.empty(size, dtype=torch.uint8)
    at = FRAME.size
    for packet in message:
        header = packet.encoded
        lead = _padded(4 + len(header))
        buffer[at : at + lead] = torch.frombuffer(
            bytearray((struct.pack("<I", len(header)) + header).ljust(lead, b"\0")), dtype=torch.uint8
        )
        at += lead
        for tensor in packet.tensors.values():
            nbytes = tensor.numel() * tensor.element_size()
            if nbytes:
                buffer[at : at + nbytes] = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
            buffer[at + nbytes : at + _padded(nbytes)] = 0
            at += _padded(nbytes)
    body = raw_bytes(buffer)[FRAME.size :]
    frame = FRAME.pack(MAGIC, VERSION, 0, len(message), zlib.crc32(body), len(body))
    buffer[: FRAME.size] = torch.frombuffer(bytearray(frame), dtype=torch.uint8)
    return buffer


def from_bytes(buffer: Tensor | bytes | bytearray) -> Message:
    """Read a message back; its tensors lie inside ``buffer`` and are not copied.

    Raises: PacketError, saying what was wrong, for what is damaged, of another format, or holds less or more than it
            says. The padding between tensors is under the checksum, and not looked at.
    """
    if not isinstance(buffer, Tensor):
        buffer = torch.frombuffer(bytearray(buffer), dtype=torch.uint8) if len(buffer) else torch.empty(0).byte()
    if buffer.numel() < FRAME.size:
        raise PacketError(f"message: {buffer.numel()} bytes are fewer than the {FRAME.size} of a frame")
    raw = raw_bytes(buffer)
    magic, version, reserved, count, checksum, nbytes = FRAME.unpack(raw[: FRAME.size])
    if magic != MAGIC or reserved:
        raise PacketError(f"message: it starts with {bytes(magic)!r}, not {MAGIC!r}; is the other end laconic?")
    if version != VERSION:
        raise PacketError(f"message: wire format {version} came, this is {VERSION}; run one laconic version everywhere")
    body = raw[FRAME.size :]
    if nbytes != len(body):
        raise PacketError(f"message: {nbytes} bytes were declared, {len(body)} came")
    if zlib.crc32(body) != checksum:
        raise PacketError("message: its checksum does not match; the bytes changed on the way")
    message, at = [], FRAME.size
    for _ in range(count):
        packet, at = _read_packet(buffer, raw, at)
        message.append(packet)
    if at != len(raw):
        raise PacketError(f"message: {len(raw) - at} bytes follow the last packet")
    return message


def raw_bytes(buffer: Tensor) -> memoryview:
    """The memory of a ``uint8`` tensor on the CPU."""
    return memoryview(buffer.numpy())  # type: ignore[arg-type]


def check_shape(packet: Packet, like: Tensor) -> None:
    """Refuse a packet that would not decompress to the shape of ``like``, before anything is allocated for it.

    Raises: PacketError.
    """
    shape = shape_of(packet)  # 6.0 and True are no sizes, though they equal some
    if shape != tuple(like.shape):
        raise PacketError(f"packet: it promises shape {list(shape)}, the tensor here has {list(like.shape)}")


def need(packet: Packet, name: str, dtypes: Sequence[torch.dtype], numel: int | None = None) -> Tensor:
    """The flat tensor ``name`` of a packet, checked to have one of ``dtypes`` and, if given, ``numel`` elements.

    Raises: PacketError.
    """
    tensor = packet.tensors.get(name)
    if tensor is None:
        raise PacketError(f"packet: it lacks {name!r}, and has {sorted(packet.tensors)}")
    if tensor.dtype not in dtypes or tensor.dim() != 1 or (numel is not None and tensor.numel() != numel):
        wanted = " or ".join(CODES[d] for d in dtypes)
        raise PacketError(
            f"packet: {name!r} is {CODES[tensor.dtype]}{list(tensor.shape)}, wanted {wanted}"
            + (f"[{numel}]" if numel is not None else ", flat")
        )
    return tensor


def shape_of(packet: Packet) -> tuple[int, ...]:
    """The shape a packet promises, checked to be a list of sizes.

    Raises: PacketError.
    """
    shape = packet.header.get("shape")
    if not _sizes(shape):
        raise PacketError(f"packet: its shape is {shape!r}, wanted a list of sizes")
    return tuple(shape)


def _sizes(shape: Any) -> TypeGuard[list[int]]:
    if not isinstance(shape, list) or len(shape) > 64:
        return False
    numel = 1
    for n in shape:  # every message of every worker comes by here
        if type(n) is not int or not 0 <= n < 1 << 48:
            return False
        numel *= n or 1  # a zero among them must not hide strides that overflow
    return numel < 1 << 48


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a number that a header may hold")
    return value


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > DIGITS:  # else what computes with it as a float overflows
        raise ValueError(f"{text[:DIGITS]}… has more digits than a header's number may")
    return int(text)


def _read_packet(buffer: Tensor, raw: memoryview, at: int) -> tuple[Packet, int]:
    left = len(raw) - at
    if left < 4:
        raise PacketError("packet: the message ends before its header")
    (length,) = struct.unpack("<I", raw[at : at + 4])
    if _padded(4 + length) > left:
        raise PacketError(f"packet: its header of {length} bytes runs past the message")
    try:
        text = bytes(raw[at + 4 : at + 4 + length])
        header, layout = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except (ValueError, TypeError, RecursionError) as error:
        raise PacketError(f"packet: its header cannot be read: {error}") from None
    if not isinstance(header, dict) or not isinstance(layout, list):
        raise PacketError("packet: its header is not an object and a layout")
    at += _padded(4 + length)
    tensors: dict[str, Tensor] = {}
    for entry in layout:
        name, code, shape = entry if isinstance(entry, list) and len(entry) == 3 else ("", "", [])
        if not isinstance(name, str) or not isinstance(code, str) or code not in DTYPES or not _sizes(shape):
            raise PacketError(f"packet: {entry!r} does not describe a tensor")
        dtype = DTYPES[code]
        nbytes = math.prod(shape) * dtype.itemsize
        if _padded(nbytes) > len(raw) - at:
            raise PacketError(f"packet: {name!r} of {nbytes} bytes runs past the message")
        tensors[str(name)] = buffer[at : at + nbytes].view(dtype).reshape(shape)
        at += _padded(nbytes)
    return Packet(tensors, header), at
