"""NoLoCo: local steps, then an outer step with one random group, and no collective anywhere."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from laconic.errors import ClashError, ConfigError
from laconic.exchange.base import Exchange
from laconic.exchange.pairs import pairs
from laconic.sync.base import Params, Sync, decay_free, momentum_free
from laconic.sync.rounds import FragmentState, Outer, RoundsState, rounds
from laconic.sync.timetable import timetable


def noloco(
    exchange: Exchange | None = None,
    every: int = 50,
    lr: float = 0.7,
    momentum: float = 0.5,
    mixing: float | None = None,
    fragments: int = 1,
    overlap: int = 0,
    own: float | None = None,
    pattern: str = "strided",
) -> Sync:
    """Take ``every`` steps alone, then step on what the group moved, pulled towards the group's mean.

    In the paper's letters, with means over the group: ``delta <- alpha delta + beta mean(D) + gamma (mean(phi) -
    phi)``, ``phi <- phi + delta``, ``theta <- phi``; D = theta - phi, alpha = ``momentum``, beta = ``lr``, gamma =
    ``mixing`` (by default ``lr``). Workers' weights differ, by an amount that shrinks with the inner learning rate.

    ``fragments`` of the model leave in turn; each is applied ``overlap`` steps later, the worker keeping ``own`` of its
    own weights (in :func:`diloco` that is ``mixing``).

    Wire:   one message of the weights to each of the group's others, once every ``every`` steps; twice that if
            ``mixing`` is not ``lr`` (if it is, only the sum of phi and D matters).
    Law:    the mean over workers follows heavy-ball DiLoCo; with one group of everyone it is exactly that.
    Raises: ConfigError for settings outside the region in which workers stay together (:func:`radius`): with pairs,
            ``0 < mixing < 2 (1 - momentum^2)``; ClashError for an exchange that leaves out parts of the weights, and
            for an overlap of a whole round.
    Source: Kolehmainen et al. 2025, arXiv:2506.10911; the region: derived, ``docs/methods/noloco.md``.
    """
    talk = exchange if exchange is not None else pairs()
    pull = lr if mixing is None else mixing
    plan = timetable("noloco", every, fragments, overlap, own, pattern, share="own")
    momentum_free("noloco", talk)
    decay_free("noloco", talk)
    if talk.sparse:
        raise ClashError(f"noloco: sends whole weights, and {talk.name} would leave most of them out; use int8 or half")
    if plan.late:
        raise ClashError(
            "noloco: with overlap = every the weights that came would be of another round than those they are mixed "
            "with; use an overlap under every, or co2()"
        )
    _region(talk, lr, momentum, pull, plan.mixing)

    def send(fragment: FragmentState, params: Params) -> list[Tensor]:
        pairs = zip(params, fragment.anchor, strict=True)
        fast = [p.detach().to(a.dtype, copy=overlap > 0) for p, a in pairs]  # a snapshot, if steps follow meanwhile
        if pull == lr:  # beta mean(D) + beta (mean(phi) - phi) = beta (mean(theta) - phi)
            return fast
        return [*(f - a for f, a in zip(fast, fragment.anchor, strict=True)), *fragment.anchor]

    def step(fragment: FragmentState, heard: list[Tensor], state: RoundsState) -> FragmentState:
        anchor = fragment.anchor
        if pull == lr:
            push = [lr * (m - a) for m, a in zip(heard, anchor, strict=True)]
        else:
            moved, slow = heard[: len(anchor)], heard[len(anchor) :]
            push = [(lr * d).add_(m - a, alpha=pull) for d, m, a in zip(moved, slow, anchor, strict=True)]
        velocity = [(momentum * v).add_(p) for v, p in zip(fragment.velocity, push, strict=True)]
        return fragment._replace(anchor=[a + v for a, v in zip(anchor, velocity, strict=True)], velocity=velocity)

    def like(anchor: list[Tensor]) -> list[Tensor]:
        return anchor if pull == lr else [*anchor, *anchor]

    outer = Outer(step, lambda anchor: [a.new_zeros(a.shape) for a in anchor], send, like)
    return rounds("noloco", talk, outer, plan)


def radius(group: int, lr: float, momentum: float, pull: float, own: float = 0.0) -> float:
    """By how much a round multiplies the squared distance of many workers from their mean, in the long run.

    The state of a worker's distance is (phi, delta, D); a round maps it by a matrix, and adds what the ``group - 1``
    others of a fresh random group bring, who are independent of it. Under 1 the workers stay together.
    """
    part = 1 / group
    delta = np.array([-pull * (1 - part), momentum, lr * part])
    mine = np.stack([np.array([1.0, 0, 0]) + delta, delta, own * (np.array([0, 0, 1.0]) - delta)])
    theirs = np.outer([1, 1, -own], [pull * part, 0, lr * part])
    both = np.kron(mine, mine) + (group - 1) * np.kron(theirs, theirs)
    return float(max(abs(np.linalg.eigvals(both))))


def _region(talk: Exchange, lr: float, momentum: float, pull: float, own: float) -> None:
    if not 0 <= momentum < 1 or not lr > 0:
        raise ConfigError(f"noloco: needs 0 <= momentum < 1 and lr > 0, got momentum={momentum}, lr={lr}")
    if not pull > 0:
        raise ConfigError(f"noloco: mixing must be in (0, ...), got {pull:g}; without a pull the workers drift apart")
    if lr >= 2 * (1 + momentum):
        raise ConfigError(
            f"noloco: lr must be under 2 (1 + momentum) = {2 * (1 + momentum):g}, got {lr:g}; beyond it the workers' "
            "mean runs away"
        )
    if talk.group is None or talk.group < 2:  # one group of everyone: nothing to pull together
        return
    if own == 0:
        share = (talk.group - 1) / talk.group
        bound = 2 * (1 - momentum**2) / (1 + momentum - 2 * momentum * share)
        if pull < bound:
            return
        raise ConfigError(
            f"noloco: mixing must be in (0, {bound:g}) at momentum {momentum:g} in groups of {talk.group}, got "
            f"{pull:g}; beyond it the workers drift apart for ever"
        )
    found = radius(talk.group, lr, momentum, pull, own)
    if found > 1 - 1e-9:  # at own=1 exactly 1: nothing of the others' ever arrives
        raise ConfigError(
            f"noloco: with own={own:g}, lr={lr:g}, momentum={momentum:g} and mixing={pull:g} the workers drift apart: "
            f"each round multiplies their squared distance by {found:.3g}; use own=0, or less of one of the others"
        )
