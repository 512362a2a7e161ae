"""When, and what: one sync a file. A name in ``__all__`` is public and has a spelling in recipes."""

from laconic.sync.accordion_batch import accordion_batch
from laconic.sync.base import Sync
from laconic.sync.co2 import co2
from laconic.sync.diloco import diloco
from laconic.sync.every_step import every_step
from laconic.sync.gossip import gossip
from laconic.sync.hcef import hcef
from laconic.sync.local_steps import local_steps
from laconic.sync.modest import modest
from laconic.sync.noloco import noloco
from laconic.sync.one_byte import one_byte
from laconic.sync.single_merge import single_merge
from laconic.sync.slowmo import slowmo
from laconic.sync.streaming import streaming
from laconic.sync.switch import switch
from laconic.sync.uneven_batches import uneven_batches
from laconic.sync.uneven_steps import uneven_steps
from laconic.sync.walk import walk

__all__ = [
    "Sync",
    "accordion_batch",
    "co2",
    "diloco",
    "every_step",
    "gossip",
    "hcef",
    "local_steps",
    "modest",
    "noloco",
    "one_byte",
    "single_merge",
    "slowmo",
    "streaming",
    "switch",
    "uneven_batches",
    "uneven_steps",
    "walk",
]
