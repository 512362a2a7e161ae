"""Packets made wrong on purpose: structure first, then bytes, and sealed again so that the checksum lets them through.

Everything is drawn from a ``random.Random``: a seeded one, hypothesis's, or one that a fuzzing engine drives.
"""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import torch

from laconic.packet import ALIGN, DTYPES, FRAME, MAGIC, VERSION, Packet

EDGES = (
    *(-1, 0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 128, 255, 256, 1 << 15, (1 << 31) - 1, 1 << 31, 1 << 47),
    *(1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 64, -(1 << 63), 10**30),
)
ODDITIES = (
    None,
    True,
    False,
    0.5,
    6.0,
    -0.0,
    1e300,
    "",
    "x",
    "f32",
    "bf16",
    "i8",
    [],
    [[]],
    [0],
    [6, 4],
    [24],
    {},
    {"shape": [24]},
)
SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 24, 64, 255, 1 << 20, 1 << 40)
FILLS = (0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF)


class Parts(NamedTuple):
    """A packet taken apart: its header, and name, dtype, shape and bytes of each tensor."""

    header: dict[str, Any]
    tensors: list[list[Any]]


def taken_apart(packet: Packet) -> Parts:
    """A packet's parts, none of them shared with it."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    tensors: list[list[Any]] = []
    for name, t in packet.tensors.items():
        raw = t.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if t.numel() else b""
        tensors.append([name, codes[t.dtype], list(t.shape), raw])
    return Parts(copy.deepcopy(packet.header), tensors)


def body_of(parts: Parts) -> bytes:
    """The bytes behind the frame; a tensor's need not fit its shape."""
    header = json.dumps([parts.header, [t[:3] for t in parts.tensors]], separators=(",", ":")).encode()
    pieces = [struct.pack("<I", len(header)) + header, *(t[3] for t in parts.tensors)]
    return b"".join(piece + bytes(-len(piece) % ALIGN) for piece in pieces)


def sealed(body: bytes, count: int = 1) -> bytes:
    """A message of ``count`` packets with the right length and checksum around any body."""
    return FRAME.pack(MAGIC, VERSION, 0, count, zlib.crc32(body), len(body)) + body


def mutated(rng: Random, seeds: Sequence[Parts]) -> bytes:
    """One of the packets, wrong in one to three places, as a message."""
    return sealed(*wrong(rng, seeds[rng.randrange(len(seeds))], seeds)) if rng.randrange(64) else broken(rng, seeds)


def broken(rng: Random, seeds: Sequence[Parts]) -> bytes:
    """A good message with wrong bytes anywhere, the frame too, and nothing sealed again."""
    message = sealed(body_of(seeds[rng.randrange(len(seeds))]))
    return _wrong_bytes(rng, message, message)


def wrong(rng: Random, parts: Parts, seeds: Sequence[Parts]) -> tuple[bytes, int]:
    """What is behind the frame, wrong in one to three places, and how many packets to say it holds."""
    parts = Parts(copy.deepcopy(parts.header), [list(t) for t in parts.tensors])
    raw_only = rng.randrange(8) == 0
    for _ in range(0 if raw_only else 1 + rng.randrange(3)):
        if parts.tensors and rng.randrange(2):
            _wrong_tensor(rng, parts.tensors)
        else:
            _wrong_header(rng, parts.header)
    body = body_of(parts)
    if raw_only or rng.randrange(8) == 0:
        other = body_of(seeds[rng.randrange(len(seeds))])
        for _ in range(1 + rng.randrange(3)):
            body = _wrong_somewhere(rng, body, other)
    return body, 1 if rng.randrange(64) else rng.randrange(4)


def _wrong_somewhere(rng: Random, body: bytes, other: bytes) -> bytes:
    """Wrong bytes in all of a body, in its header's text (whose length is then told rightly), or behind the header."""
    choice = rng.randrange(4)
    told = struct.unpack("<I", body[:4])[0] if len(body) >= 4 else len(body)
    if choice == 0 or 4 + told > len(body):
        return _wrong_bytes(rng, body, other)
    if choice == 1:
        text = _wrong_bytes(rng, body[4 : 4 + told], other[4:])
        lead = struct.pack("<I", len(text)) + text
        return lead + bytes(-len(lead) % ALIGN) + body[4 + told + -(4 + told) % ALIGN :]
    lead_bytes = 4 + told + -(4 + told) % ALIGN
    return body[:lead_bytes] + _wrong_bytes(rng, body[lead_bytes:], other)


def _value(rng: Random, old: Any) -> Any:
    kind = rng.randrange(4)
    if kind == 0 and type(old) is int:
        return rng.choice((old - 1, old + 1, old * 2, -old, old // 2, old + (1 << 32), old ^ (1 << rng.randrange(64))))
    if kind == 1 and isinstance(old, str):
        return rng.choice((*DTYPES, old[:1], old + "x"))
    if kind == 2:
        return copy.deepcopy(rng.choice(ODDITIES))
    return rng.choice(EDGES)


def _wrong_header(rng: Random, header: dict[str, Any]) -> None:
    places: list[tuple[Any, Any]] = []
    _walk(header, places)
    if not places:
        header["shape"] = [rng.choice(SIZES)]
        return
    inside, key = places[rng.randrange(len(places))]
    old = inside[key]
    choice = rng.randrange(8)
    if choice == 0:
        del inside[key]
    elif choice == 1 and isinstance(inside, dict):
        inside[rng.choice(("x", "shape", "dtype", "low", "step"))] = _value(rng, old)
    elif isinstance(old, list) and choice < 6:
        _wrong_shape(rng, old)
    else:
        inside[key] = _value(rng, old)


def _walk(inside: Any, places: list[tuple[Any, Any]]) -> None:
    for key, value in inside.items() if isinstance(inside, dict) else enumerate(inside):
        places.append((inside, key))
        if isinstance(value, dict | list):
            _walk(value, places)


def _wrong_shape(rng: Random, shape: list[Any]) -> None:
    choice = rng.randrange(5)
    if choice == 0 or not shape:
        shape.insert(rng.randrange(len(shape) + 1), rng.choice(SIZES))
    elif choice == 1:
        shape.reverse()
    elif choice == 2:
        del shape[rng.randrange(len(shape))]
    elif choice == 3 and all(type(n) is int for n in shape):
        shape[rng.randrange(len(shape))] += rng.choice((-1, 1))
    else:
        shape[rng.randrange(len(shape))] = rng.choice(SIZES)


def _wrong_tensor(rng: Random, tensors: list[list[Any]]) -> None:
    place = rng.randrange(len(tensors))
    tensor = tensors[place]
    name, code, shape, raw = tensor
    shape = shape if isinstance(shape, list) else []
    size = DTYPES[code].itemsize if isinstance(code, str) and code in DTYPES else 1
    choice = rng.randrange(12)
    if choice < 3:
        tensor[3] = _other_bytes(rng, raw)
    elif choice == 3:  # longer or shorter, and honest about it
        count = len(raw) // size
        wanted = max(0, rng.choice((count - 1, count + 1, 0, 1, 2 * count + 1, count // 2)))
        tensor[2], tensor[3] = [wanted], (raw * 3 + bytes(8 * (wanted + 1)))[: wanted * size]
    elif choice == 4:  # the same bytes read as another dtype
        tensor[1] = rng.choice(list(DTYPES))
        tensor[2] = [len(raw) // DTYPES[tensor[1]].itemsize]
    elif choice == 5:  # the same number of another dtype
        tensor[1] = rng.choice(list(DTYPES))
        wanted = len(raw) // size * DTYPES[tensor[1]].itemsize
        tensor[3] = (raw * 8 + bytes(8))[:wanted]
    elif choice == 6:  # the same elements in another shape
        tensor[2] = rng.choice(([1, *shape], [*shape, 1], [0, *shape], [], [len(raw) // size, 1]))
    elif choice == 7:
        del tensors[place]
    elif choice == 8:
        tensor[0] = rng.choice((name + "/", name[:-1], "values", "codes", name.upper()))
    elif choice == 9:
        tensors.append(list(tensors[rng.randrange(len(tensors))]))
    elif choice == 10:
        other = tensors[rng.randrange(len(tensors))]
        tensor[1:], other[1:] = other[1:], tensor[1:]
    else:  # a layout that lies
        tensor[1 + rng.randrange(2)] = _value(rng, code)


def _other_bytes(rng: Random, raw: bytes) -> bytes:
    choice = rng.randrange(4)
    if not raw:
        return bytes(rng.randrange(9))
    if choice == 0:
        return bytes([rng.choice(FILLS)]) * len(raw)
    if choice == 1:
        return rng.randbytes(len(raw))
    changed = bytearray(raw)
    for _ in range(1 + rng.randrange(4)):
        at = rng.randrange(len(changed))
        changed[at] = changed[at] ^ (1 << rng.randrange(8)) if choice == 2 else rng.choice(FILLS)
    return bytes(changed)


def _wrong_bytes(rng: Random, body: bytes, other: bytes) -> bytes:
    """Bits turned, bytes cut out, put in, or taken from another message."""
    choice = rng.randrange(6)
    at = rng.randrange(len(body) + 1)
    if choice == 0:
        return body[:at]
    if choice == 1:
        return body[:at] + rng.randbytes(rng.randrange(1, 17)) + body[at:]
    if choice == 2:
        return body[:at] + body[at + rng.randrange(1, 17) :]
    if choice == 3:
        return body[:at] + other[rng.randrange(len(other) + 1) :]
    return _other_bytes(rng, body)
