"""Every exception laconic raises, drawn as a tree.

::

    LaconicError
    ├── ConfigError        a setting: what was wanted, what came, what would work
    │   └── ClashError     two settings that cannot go together
    ├── WorkloadError      a workload's own function failed or returned the wrong thing
    │   └── NotANumber     a loss or a gradient is NaN or infinite; names worker, step and parameter
    ├── PacketError        bytes that do not decode to what they promise
    ├── PeerError          a peer; carries its rank
    │   ├── PeerTimeout    silent for the stated time: asking again may help
    │   └── PeerLost       gone: asking again does not help
    ├── RunFailed          a run that was started ended before its time; the text is the first worker's own error
    ├── ProbeFailed        the same of a probe
    └── TestbedError       hosts that could not be made, or have ended
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LaconicError(Exception):
    """The root of every error laconic raises on purpose."""


class ConfigError(LaconicError, ValueError):
    """A setting is wrong; raised before training starts wherever that is possible."""


class ClashError(ConfigError):
    """Two settings are each right and cannot go together."""


class WorkloadError(LaconicError):
    """A function of the workload failed, or returned something that cannot be trained."""


class NotANumber(WorkloadError):
    """A loss or a gradient is NaN or infinite."""


class PacketError(LaconicError, ValueError):
    """Bytes from a peer do not decode to what they promise."""


class PeerError(LaconicError):
    """Something about one peer; ``peer`` is its rank."""

    def __init__(self, message: str, peer: int) -> None:
        super().__init__(message)
        self.peer = peer


class PeerTimeout(PeerError):
    """A peer was silent for the stated time; asking again may help."""


class PeerLost(PeerError):
    """A peer is gone; asking again does not help."""


class RunFailed(LaconicError):
    """A run ended before its time; the text is the first worker's own error."""


class ProbeFailed(LaconicError):
    """A probe ended before its time; the text is the first worker's own error."""


class TestbedError(LaconicError):
    """The testbed could not be made, or has ended; the text says which step and what the kernel said."""

    __test__ = False  # for pytest: no test case


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError(f"unknown {kind} {name!r}; {hint}There are: {', '.join(known)}")
