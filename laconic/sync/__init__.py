"""When, and what: one sync a file. A name in ``__all__`` is public and has a spelling in recipes."""

from laconic.sync.accordion_batch import accordion_batch
from laconic.sync.base import Sync
from laconic.sync.diloco import diloco
from laconic.sync.every_step import every_step
from laconic.sync.hcef import hcef
from laconic.sync.local_steps import local_steps
from laconic.sync.noloco import noloco
from laconic.sync.one_byte import one_byte
from laconic.sync.streaming import streaming

__all__ = ["Sync", "accordion_batch", "diloco", "every_step", "hcef", "local_steps", "noloco", "one_byte", "streaming"]
