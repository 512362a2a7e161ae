"""NoLoCo: local steps, then an outer step with one random partner, and no collective anywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from laconic.errors import ClashError, ConfigError
from laconic.exchange.base import Exchange
from laconic.exchange.pairs import pairs
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, decay_free, master, momentum_free, named, positive


@checkpointed
class NolocoState(NamedTuple):
    """``step`` counts inner steps; ``slow`` (phi) and ``velocity`` (delta) are each worker's own."""

    step: int
    slow: list[Tensor]
    velocity: list[Tensor]
    exchange: Any


def noloco(
    exchange: Exchange | None = None,
    every: int = 50,
    lr: float = 0.7,
    momentum: float = 0.5,
    mixing: float | None = None,
) -> Sync:
    """Take ``every`` steps alone, then step on what the pair moved, pulled towards the pair's mean.

    In the paper's letters, with means over the pair: ``delta <- alpha delta + beta mean(D) + gamma (mean(phi) - phi)``,
    ``phi <- phi + delta``, ``theta <- phi``; D = theta - phi, alpha = ``momentum``, beta = ``lr``, gamma = ``mixing``
    (by default ``lr``). Workers' weights differ, by an amount that shrinks with the inner learning rate.

    Wire:   one message of the weights to one peer, once every ``every`` steps; twice that if ``mixing`` is not ``lr``
            (if it is, only the sum of phi and D matters).
    Law:    the mean over workers follows heavy-ball DiLoCo; with one group of everyone it is exactly that.
    Raises: ConfigError unless ``0 < mixing < 2 (1 - momentum^2)``, outside which the workers drift apart for ever;
            ClashError for an exchange that leaves out parts of the weights.
    Source: Kolehmainen et al. 2025, arXiv:2506.10911; the region: derived for pairs, ``docs/methods/noloco.md``.
    """
    talk = exchange if exchange is not None else pairs()
    pull = lr if mixing is None else mixing
    positive("noloco", "every", every)
    momentum_free("noloco", talk)
    decay_free("noloco", talk)
    if talk.sparse:
        raise ClashError(f"noloco: sends whole weights, and {talk.name} would leave most of them out; use int8 or half")
    if not 0 <= momentum < 1 or not lr > 0:
        raise ConfigError(f"noloco: needs 0 <= momentum < 1 and lr > 0, got momentum={momentum}, lr={lr}")
    bound = 2 * (1 - momentum**2)
    if not 0 < pull < bound:
        raise ConfigError(
            f"noloco: mixing must be in (0, {bound:g}) at momentum {momentum:g}, got {pull:g}; beyond it the workers "
            "drift apart for ever"
        )

    def init(params: Any) -> NolocoState:
        slow = [master(p) for p in named(params).values()]
        both = slow if pull == lr else [*slow, *slow]
        return NolocoState(0, slow, [s.new_zeros(s.shape) for s in slow], talk.init(both))

    def after_step(params: Params, state: NolocoState, link: Link) -> tuple[Updates, NolocoState]:
        step = state.step + 1
        if step % every:
            return {}, state._replace(step=step)
        fast = [p.detach().to(s.dtype) for p, s in zip(params, state.slow, strict=True)]
        count = len(fast)
        if pull == lr:  # beta mean(D) + beta (mean(phi) - phi) = beta (mean(theta) - phi)
            mean_fast, exchanged = link.start(talk.run, fast, state.exchange, link).result()
            push = [lr * (m - s) for m, s in zip(mean_fast, state.slow, strict=True)]
        else:
            moved = [f - s for f, s in zip(fast, state.slow, strict=True)]
            both, exchanged = link.start(talk.run, [*moved, *state.slow], state.exchange, link).result()
            mean_moved, mean_slow = both[:count], both[count:]
            push = [(lr * d).add_(m - s, alpha=pull) for d, m, s in zip(mean_moved, mean_slow, state.slow, strict=True)]
        velocity = [(momentum * v).add_(p) for v, p in zip(state.velocity, push, strict=True)]
        slow = [s + v for s, v in zip(state.slow, velocity, strict=True)]
        return dict(enumerate(slow)), NolocoState(step, slow, velocity, exchanged)

    def model(params: Params, state: NolocoState) -> list[Tensor]:
        return state.slow

    name = f"noloco({talk.name}, every={every})"
    return Sync(init, None, after_step, model, equal=talk.equal, name=name, exchange=talk)
