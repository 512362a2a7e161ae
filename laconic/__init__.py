"""laconic trains neural networks on the machines people really have: joined by slow, uneven or failing links.

The names below are the public ones; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "attach": "laconic.attached",
    "Attached": "laconic.attached",
    "Packet": "laconic.packet",
    "Compressor": "laconic.compress.base",
    "Link": "laconic.links.base",
    "Exchange": "laconic.exchange.base",
    "Sync": "laconic.sync.base",
    "METHODS": "laconic.methods",
    "build": "laconic.methods",
    "LaconicError": "laconic.errors",
    "ConfigError": "laconic.errors",
    "PeerLost": "laconic.errors",
    "PeerTimeout": "laconic.errors",
}
_ROOMS = ("aggregate", "bench", "compress", "errors", "exchange", "links", "methods", "sync", "workloads")

__all__ = [
    "METHODS",
    "Attached",
    "Compressor",
    "ConfigError",
    "Exchange",
    "LaconicError",
    "Link",
    "Packet",
    "PeerLost",
    "PeerTimeout",
    "Sync",
    "aggregate",
    "attach",
    "bench",
    "build",
    "compress",
    "errors",
    "exchange",
    "links",
    "methods",
    "sync",
    "workloads",
]

if TYPE_CHECKING:
    from laconic import aggregate, bench, compress, errors, exchange, links, methods, sync, workloads
    from laconic.attached import Attached, attach
    from laconic.compress.base import Compressor
    from laconic.errors import ConfigError, LaconicError, PeerLost, PeerTimeout
    from laconic.exchange.base import Exchange
    from laconic.links.base import Link
    from laconic.methods import METHODS, build
    from laconic.packet import Packet
    from laconic.sync.base import Sync


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"laconic.{name}")
    raise AttributeError(f"module 'laconic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
