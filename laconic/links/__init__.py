"""Over what: a worker's end of the network, in one process, simulated, on process groups, or held to a rate."""

from __future__ import annotations

from laconic.links import memory, simulated
from laconic.links.base import Link
from laconic.links.meter import Meter
from laconic.links.network import Connection, Network, parse
from laconic.links.paced import paced
from laconic.links.process_group import process_group

__all__ = ["Connection", "Link", "Meter", "Network", "memory", "paced", "parse", "process_group", "simulated"]
