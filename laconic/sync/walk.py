"""Token walks: the model goes from worker to worker, is trained where it is, and avoids where it has been."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor, count
from laconic.compress.identity import identity
from laconic.errors import ConfigError
from laconic.exchange.graph import whole_values
from laconic.exchange.kernel import base, draw, repelled
from laconic.exchange.tokens import Holding, Token, pass_on
from laconic.exchange.topology import Shape, Topology, shape
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, master, positive

NONE = -1


@checkpointed
class WalkState(NamedTuple):
    """``active`` is the number of the token that is trained here, or NONE."""

    step: int
    active: int
    holding: Holding


def walk(
    compressor: Compressor | None = None,
    graph: str = "ring",
    tokens: int = 1,
    every: int = 1,
    alpha: float = 5.0,
    memory: float = 0.8,
    cooling: float = 0.0,
    pseudo: float = 1.0,
    seed: int = 0,
) -> Sync:
    """Let ``tokens`` models walk over ``graph``, each trained for ``every`` steps where it is.

    The next place is drawn by Metropolis-Hastings, which visits all equally often, times ``(x_j / mu_j)^-alpha``: x is
    the share of visits to j, the n-th visit weighing ``(n + pseudo N)^-memory``. ``cooling``: the learning rate of
    a token's n-th visit is multiplied by ``(n + 1)^-cooling``. Workers without a token take no step; of several at one
    worker the others wait. At the end all get the mean of the tokens.

    Wire:   the weights' bytes and 4 N to one neighbour for each token, once every ``every`` steps, and some 100 bytes
            to each neighbour. At the end ``2 (n-1)/n`` times the weights.
    Law:    with ``alpha=0`` the walk is the base chain; with memory 1, n times the covariance of x tends to
            :func:`laconic.exchange.kernel.sampling_covariance`, which falls as 1/alpha. From its first hop on a token
            whose holder is lost goes on from the copy of whoever sent it there.
    Raises: ConfigError for settings out of range, a graph that is not connected or whose edges go one way, more tokens
            than workers; PeerLost once no neighbour is left.
    Source: Doshi, Hu and Eun 2023, arXiv:2305.05097 (SRRW); Hu, Doshi and Eun 2024, arXiv:2401.09665 (SA-SRRW).
    """
    positive("walk", "tokens", tokens)
    positive("walk", "every", every)
    count("walk", seed, "seed", None)
    inner = compressor if compressor is not None else identity()
    whole_values("walk", inner)
    _check(alpha, memory, cooling, pseudo)
    plan = shape(graph, seed)

    def init(params: Any) -> WalkState:
        return WalkState(0, NONE, Holding({}, {}, {}, {}, {}))

    def after_backward(grads: Params, state: WalkState, link: Link) -> tuple[list[Tensor] | None, WalkState]:
        state = state if state.holding.epochs else dealt(plan, tokens, link)
        return (list(grads) if state.active != NONE else None), state

    def rate(state: WalkState) -> float:
        hops = 0 if state.active == NONE else state.holding.here[state.active].hops
        return float((hops + 1) ** -cooling)

    def after_step(params: Params, state: WalkState, link: Link) -> tuple[Updates, WalkState]:
        state = state if state.holding.epochs else dealt(plan, tokens, link)
        state = state._replace(step=state.step + 1)
        if state.step % every or link.size == 1:
            return {}, state
        return link.start(visit_ends, params, state, link).result()

    def visit_ends(params: Params, state: WalkState, link: Link) -> tuple[Updates, WalkState]:
        holding, leaving = state.holding, {}
        here = dict(holding.here)
        staying = None
        if state.active != NONE:
            token = here.pop(state.active)
            to = next_place(token, holding.degrees, link.rank, alpha, seed)
            token = token._replace(hops=token.hops + 1, visits=visited(token, to, link.size, memory, pseudo))
            if to == link.rank:
                staying = token
            else:
                leaving[to] = token._replace(weights=[master(p) for p in params])
        holding = pass_on(holding._replace(here=here), leaving, params, inner, link)
        if staying is not None:
            holding = holding._replace(here=holding.here | {staying.number: staying})
            return {}, WalkState(state.step, staying.number, holding)
        active = min(holding.here, key=lambda number: (holding.here[number].hops, number), default=NONE)
        if active == NONE:
            return {}, WalkState(state.step, NONE, holding)
        token = holding.here[active]
        holding = holding._replace(here=holding.here | {active: token._replace(weights=[])})
        return dict(enumerate(token.weights)), WalkState(state.step, active, holding)

    def finish(params: Params, state: WalkState, link: Link) -> tuple[Updates, WalkState]:
        state = state if state.holding.epochs else dealt(plan, tokens, link)
        sums = [torch.zeros_like(master(p)) for p in params]
        for number, token in state.holding.here.items():
            weights = params if number == state.active else token.weights
            sums = [s.add_(w.detach().to(s.dtype)) for s, w in zip(sums, weights, strict=True)]
        found = torch.tensor([float(len(state.holding.here))], dtype=torch.float64)

        def gather() -> list[Tensor]:
            return [link.all_reduce(t) for t in (found, *sums)]

        number, *totals = link.start(gather).result()
        return {i: total / float(number) for i, total in enumerate(totals)}, state

    sends = "" if inner.name == "identity" else f"{inner.name}, "
    return Sync(
        init,
        after_backward,
        after_step,
        equal=False,
        name=f"walk({sends}{plan.name}, tokens={tokens}, every={every}, alpha={alpha:g})",
        rate=rate if cooling else None,
        finish=finish,
        among=lambda size: _told(plan, tokens, size),
    )


def dealt(plan: Shape, tokens: int, link: Link) -> WalkState:
    """The first state: tokens are dealt out evenly, once it is known over how many workers."""
    me, size = link.rank, link.size
    places = plan.among(size) if size > 1 else Topology(plan.name, 1, ((),))
    mine = [number for number in range(tokens) if number * size // tokens == me]
    here = {number: Token(number, 0, 0, me, torch.full((size,), 1 / size), []) for number in mine}
    degrees = {other: len(places.targets(other, 0)) for other in places.targets(me, 0)}
    holding = Holding(here, {}, {}, dict.fromkeys(range(tokens), 0), degrees)
    return WalkState(0, mine[0] if mine else NONE, holding)


def next_place(token: Token, degrees: dict[int, int], me: int, alpha: float, seed: int) -> int:
    """Where a token moves from ``me``: drawn for the token and the number of its hops."""
    chances = base({**degrees, me: len(degrees)}, me)
    # By the token alone and not by who holds it: whoever issues it again draws what would have been drawn.
    number = random.Random(f"walk/{seed}/{token.number}/{token.epoch}/{token.hops}").random()
    return draw(repelled(chances, token.visits.tolist(), alpha), number)


def visited(token: Token, to: int, size: int, memory: float, pseudo: float) -> Tensor:
    """The shares of visits once ``to`` has one more."""
    weight = (token.hops + 1 + pseudo * size) ** -memory
    visits = token.visits.double() * (1 - weight)
    visits[to] += weight
    return (visits / visits.sum()).float()


def _told(plan: Shape, tokens: int, size: int) -> str:
    places = plan.among(size)
    if not places.both or len(places.rounds) > 1:
        raise ConfigError(
            f"walk: graph {plan.name} has edges one way, or changes from round to round, and a walk has to be "
            "reversible; use ring, torus, complete, random or regular:3"
        )
    if tokens > size > 1:
        raise ConfigError(f"walk: {tokens} tokens among {size} workers, which train one each at a time; use fewer")
    degrees = [len(places.targets(rank, 0)) for rank in range(size)]
    ways = f"{min(degrees)}" if min(degrees) == max(degrees) else f"{min(degrees)} to {max(degrees)}"
    return f"graph {plan.name}: {tokens} token{'s' if tokens > 1 else ''}, with {ways} ways on from each worker"


def _check(alpha: float, memory: float, cooling: float, pseudo: float) -> None:
    if not 0 <= alpha < float("inf"):
        raise ConfigError(f"walk: alpha must be at least 0, got {alpha}")
    if not 0.5 < memory <= 1:
        raise ConfigError(f"walk: memory must be in (0.5, 1], got {memory}; outside of it the visits do not settle")
    if cooling and not 0.5 < cooling <= 1:
        raise ConfigError(f"walk: cooling must be 0 (off) or in (0.5, 1], got {cooling}")
    if cooling and cooling < memory:
        raise ConfigError(
            f"walk: cooling must not be under memory={memory:g}, got {cooling:g}: alpha does nothing where the weights "
            "settle before the visits do"
        )
    if not 0 < pseudo < float("inf"):
        raise ConfigError(f"walk: pseudo must be positive, got {pseudo}; each place has some visits to begin with")
