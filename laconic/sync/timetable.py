"""When each part of a model leaves, and when its answer is applied: fragments in turn, each behind some steps."""

from __future__ import annotations

import re
from typing import NamedTuple

from laconic.compress.base import count
from laconic.errors import ClashError, ConfigError, unknown
from laconic.sync.base import positive

PATTERNS = ("strided", "sequential")


class Timetable(NamedTuple):
    """Each of ``fragments`` leaves once in ``every`` steps; its answer is applied ``overlap`` steps later.

    ``mixing`` is the worker's own share of its weights when an answer is applied. ``eager``: its own part of a change
    is applied at once, and the others' when they have come, a whole round later.
    """

    every: int
    fragments: int
    overlap: int
    mixing: float
    pattern: str
    eager: bool = False

    @property
    def late(self) -> bool:
        """Whether an answer is applied only when its fragment leaves again: a round starts from what is shared."""
        return self.overlap == self.every

    @property
    def one(self) -> bool:
        """Whether what is shared is all of one age, and is what workers train on from."""
        return self.fragments == 1 and self.mixing == 0

    @property
    def text(self) -> str:
        """What of it is out of the ordinary, for a method's name."""
        words = [f"fragments={self.fragments}"] if self.fragments > 1 else []
        words += [f"overlap={self.overlap}"] if self.overlap else []
        words += [f"mixing={self.mixing:g}"] if self.mixing else []
        words += [f"pattern={self.pattern}"] if self.fragments > 1 and self.pattern != PATTERNS[0] else []
        return "".join(f", {word}" for word in [*words, *(["eager"] if self.eager else [])])

    def offset(self, number: int) -> int:
        """The step after which a fragment (from 0) leaves first; the last one's is ``every``."""
        return (number + 1) * self.every // self.fragments

    def sends(self, step: int, number: int) -> bool:
        """Whether a fragment leaves after this step."""
        offset = self.offset(number)
        return step >= offset and (step - offset) % self.every == 0


def timetable(
    what: str,
    every: int,
    fragments: int = 1,
    overlap: int = 0,
    mixing: float | None = None,
    pattern: str = "strided",
    eager: bool = False,
    share: str = "mixing",
) -> Timetable:
    """A timetable, its settings checked. ``mixing`` is by default none, and half where some steps overlap.

    Raises: ConfigError for settings out of range; ClashError for some that do not go together.
    """
    positive(what, "every", every)
    positive(what, "fragments", fragments)
    count(what, overlap, "overlap", 0)
    if fragments > every:
        raise ConfigError(f"{what}: {fragments} fragments cannot each be sent once in every={every} steps")
    if overlap > every:
        raise ConfigError(
            f"{what}: overlap must be at most every = {every} steps, or a fragment is sent before the last one has "
            f"come back; got {overlap}"
        )
    own = mixing if mixing is not None else 0.5 if 0 < overlap < every else 0.0
    if not 0 <= own <= 1:
        raise ConfigError(f"{what}: {share} must be in [0, 1], got {own}; it is the share of the worker's own")
    if pattern not in PATTERNS:
        raise unknown(f"{what} pattern", pattern, PATTERNS)
    if eager and overlap != every:
        raise ClashError(
            f"{what}: eager is for answers that are a whole round late, and overlap={overlap} brings them sooner; set "
            f"overlap={every}, or leave eager out"
        )
    if overlap == every and own:
        raise ClashError(
            f"{what}: with overlap = every a change is applied a round after it was made, and {share}={own:g} would "
            f"send it again meanwhile, so that it counts twice; set {share}=0"
        )
    return Timetable(every, fragments, overlap, own, pattern, eager)


def deal(names: list[str], fragments: int, pattern: str, what: str = "streaming") -> list[list[int]]:
    """Deal parameters to fragments, whole blocks at a time; every parameter goes to exactly one.

    A block is what shares the first number in its names (``blocks.3.`` ...). What comes before the first block
    (embeddings) goes with it, what comes after the last (final norm, head) with that. Without numbered blocks,
    each top-level module is one.

    Raises: ConfigError if there are more fragments than blocks.
    """
    if fragments == 1:
        return [list(range(len(names)))]
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
            f"{what}: {fragments} fragments, but the model has {len(blocks)} blocks; use at most that many"
        )
    dealt: list[list[int]] = [[] for _ in range(fragments)]
    for place, members in enumerate(blocks.values()):
        dealt[place % fragments if pattern == "strided" else place * fragments // len(blocks)] += members
    return dealt
