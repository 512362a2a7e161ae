"""Streaming DiLoCo: fragments of the model synchronise in turn, each hidden behind the steps that follow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from laconic.compress.base import count
from laconic.errors import ConfigError, unknown
from laconic.exchange.base import Exchange
from laconic.exchange.everyone import everyone
from laconic.links.background import Handle
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import (
    Params,
    Sync,
    Updates,
    decay_free,
    drift,
    master,
    momentum_free,
    named,
    needs_equal,
    positive,
)
from laconic.sync.diloco import outer_step, still

PATTERNS = ("strided", "sequential")


@checkpointed
class Flight(NamedTuple):
    """An exchange under way: what was sent, the step at which to apply the answer, and the answer to come.

    A checkpoint keeps what was sent and not the answer: after a restart it is sent again, by every worker.
    """

    drift: list[Tensor]
    due: int
    handle: Handle | None


@checkpointed
class FragmentState(NamedTuple):
    """``members`` are indices of parameters; ``anchor`` and ``velocity`` are the same on every worker."""

    members: list[int]
    anchor: list[Tensor]
    velocity: list[Tensor]
    exchange: Any
    flight: Flight | None


@checkpointed
class StreamingState(NamedTuple):
    """``step`` counts inner steps."""

    step: int
    fragments: list[FragmentState]


def streaming(
    exchange: Exchange | None = None,
    every: int = 100,
    fragments: int = 3,
    overlap: int = 1,
    mixing: float = 0.5,
    lr: float = 0.4,
    momentum: float = 0.9,
    pattern: str = "strided",
) -> Sync:
    """DiLoCo by fragments: each is sent once every ``every`` steps, one fragment every ``every / fragments``.

    The model's blocks are dealt to the fragments in turn (``strided``) or in runs (``sequential``). A fragment that is
    sent after step t is applied after step ``t + overlap``: the outer step moves its anchor, and the worker's own
    parameters become ``mixing * own + (1 - mixing) * anchor``.

    Wire:   the exchange's for one fragment, every ``every / fragments`` steps: the same total as DiLoCo, at a peak
            of one fragment, hidden while it takes less time than ``overlap`` steps.
    Law:    with ``fragments=1, overlap=0, mixing=0`` it is :func:`diloco`; with ``mixing=1`` the workers train alone.
    Raises: ConfigError for settings out of range, or more fragments than the model has blocks; ClashError as diloco.
    Source: Douillard et al. 2025, arXiv:2501.18512, algorithm 2.
    """
    talk = exchange if exchange is not None else everyone()
    positive("streaming", "every", every)
    positive("streaming", "fragments", fragments)
    needs_equal("streaming", talk, "use noloco(), which is made for pairs")
    momentum_free("streaming", talk)
    decay_free("streaming", talk)
    if fragments > every:
        raise ConfigError(f"streaming: {fragments} fragments cannot each be sent once in every={every} steps")
    count("streaming", overlap, "overlap", 0)
    if not 0 <= overlap <= (every // fragments if fragments > 1 else every) - (overlap > 0):
        raise ConfigError(
            f"streaming: overlap must be under every/fragments = {every / fragments:g} steps, or a fragment is sent "
            f"before the last one has come back; got {overlap}"
        )
    if not 0 <= mixing <= 1:
        raise ConfigError(f"streaming: mixing must be in [0, 1], got {mixing}; it is the share of the worker's own")
    if pattern not in PATTERNS:
        raise unknown("streaming pattern", pattern, PATTERNS)
    step_outward = outer_step("streaming", lr, momentum)

    def init(params: Mapping[str, Tensor] | Params) -> StreamingState:
        tensors = named(params)
        values = list(tensors.values())
        states = []
        for members in deal(list(tensors), fragments, pattern):
            anchor = [master(values[i]) for i in members]
            states.append(FragmentState(members, anchor, still(anchor, momentum), talk.init(anchor), None))
        return StreamingState(0, states)

    def after_step(params: Params, state: StreamingState, link: Link) -> tuple[Updates, StreamingState]:
        step = state.step + 1
        updates: Updates = {}
        states = []
        for number, before in enumerate(state.fragments):
            fragment = before
            own = [params[i] for i in fragment.members]
            if sends(step, number):
                moved = drift(fragment.anchor, own)
                fragment = fragment._replace(flight=Flight(moved, step + overlap, None))
            if fragment.flight is not None and fragment.flight.handle is None:
                handle = link.start(talk.run, fragment.flight.drift, fragment.exchange, link)
                fragment = fragment._replace(flight=fragment.flight._replace(handle=handle))
            if fragment.flight is not None and step >= fragment.flight.due:
                moved, exchanged = fragment.flight.handle.result()  # type: ignore[union-attr]
                anchor, velocity = step_outward(fragment.anchor, fragment.velocity, moved)
                fragment = FragmentState(fragment.members, anchor, velocity, exchanged, None)
                for i, a, p in zip(fragment.members, anchor, own, strict=True):
                    updates[i] = a if mixing == 0 else a.lerp(p.detach().to(a.dtype), mixing)
            states.append(fragment)
        return updates, StreamingState(step, states)

    def sends(step: int, number: int) -> bool:
        offset = (number + 1) * every // fragments
        return step >= offset and (step - offset) % every == 0

    # No ``model``: the anchors are of different ages, up to a whole period, and a worker's own weights, mixed with them
    # all the time, are ahead of them by most of one. docs/methods/streaming-diloco.md has both measured.
    name = f"streaming({talk.name}, every={every}, fragments={fragments})"
    return Sync(init, None, after_step, equal=False, name=name, exchange=talk)


def deal(names: list[str], fragments: int, pattern: str) -> list[list[int]]:
    """Deal parameters to fragments, whole blocks at a time; every parameter goes to exactly one.

    A block is what shares the first number in its names (``blocks.3.`` ...). What comes before the first block
    (embeddings) goes with it, what comes after the last (final norm, head) with that. Without numbered blocks,
    each top-level module is one.

    Raises: ConfigError if there are more fragments than blocks.
    """
    numbers = [re.search(r"(?:^|\.)(\d+)\.", name) for name in names]
    found = [name[: number.end()] if number else "" for number, name in zip(numbers, names, strict=True)]
    if any(found):
        keys: list[str] = []
        for key in found:
            keys.append(key or (keys[-1] if keys else next(filter(None, found))))
    else:
        keys = [name.split(".")[0] for name in names]
    blocks: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        blocks.setdefault(key, []).append(i)
    if fragments > len(blocks):
        raise ConfigError(
            f"streaming: {fragments} fragments, but the model has {len(blocks)} blocks; use at most that many"
        )
    dealt: list[list[int]] = [[] for _ in range(fragments)]
    for place, members in enumerate(blocks.values()):
        dealt[place % fragments if pattern == "strided" else place * fragments // len(blocks)] += members
    return dealt
