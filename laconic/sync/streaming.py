"""Streaming DiLoCo: fragments of the model synchronise in turn, each hidden behind the steps that follow."""

from __future__ import annotations

from laconic.exchange.base import Exchange
from laconic.sync.base import Sync
from laconic.sync.diloco import outward
from laconic.sync.timetable import timetable


def streaming(
    exchange: Exchange | None = None,
    every: int = 100,
    fragments: int = 3,
    overlap: int = 1,
    mixing: float | None = None,
    lr: float = 0.4,
    momentum: float = 0.9,
    pattern: str = "strided",
    form: str = "nesterov",
    warmup_rounds: int = 0,
    eager: bool = False,
) -> Sync:
    """DiLoCo by fragments: each is sent once every ``every`` steps, one fragment every ``every / fragments``.

    The model's blocks are dealt to the fragments in turn (``strided``) or in runs (``sequential``). A fragment that is
    sent after step t is applied after step ``t + overlap``: the outer step moves its anchor, and the worker's own
    parameters become ``mixing * own + (1 - mixing) * anchor``. From an overlap of ``every / fragments`` on several
    fragments are under way at once; they travel one after the other.

    With ``overlap = every`` a fragment starts its next round from the anchor as it then is, and what it moved in the
    last one is applied a round later; ``eager`` applies a worker's own part of it at once.

    Wire:   the exchange's for one fragment, every ``every / fragments`` steps: the same total as DiLoCo, at a peak
            of one fragment, hidden while it takes less time than ``overlap`` steps.
    Law:    with ``fragments=1, overlap=0, mixing=0`` it is :func:`diloco`; with ``mixing=1`` the workers train alone.
    Raises: ConfigError for settings out of range, or more fragments than the model has blocks; ClashError as diloco.
    Source: Douillard et al. 2025, arXiv:2501.18512, algorithm 2; eager: Kale et al. 2025, arXiv:2502.12996.
    """
    plan = timetable("streaming", every, fragments, overlap, mixing, pattern, eager)
    return outward("streaming", exchange, plan, lr, momentum, form, warmup_rounds)
