"""Gossip: local steps, and a mixing of the weights with neighbours, beside the step that follows."""

from __future__ import annotations

from typing import Any, NamedTuple

from laconic.compress.base import count
from laconic.errors import ClashError, ConfigError
from laconic.exchange.base import Exchange
from laconic.exchange.graph import graph
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, decay_free, master, momentum_free, named, positive
from laconic.sync.rounds import Flight


@checkpointed
class GossipState(NamedTuple):
    """``step`` counts inner steps; ``flight`` holds the weights that were sent, until their mixture is applied."""

    step: int
    exchange: Any
    flight: Flight | None


def gossip(exchange: Exchange | None = None, every: int = 1, overlap: int = 1) -> Sync:
    """Mix the weights once every ``every`` steps: ``x_i + (mixture - x_i as it was sent)``.

    With ``overlap=1`` the mixture of the weights before a step is added to what the step moved: D-PSGD as published,
    its gradient taken at the point before the mixing, so that mixing runs beside the step. ``overlap=0`` mixes what the
    step made, and waits; more steps hide a slower link. Whatever the inner optimizer, its step is what is moved.

    Wire:   the exchange's, once every ``every`` steps.
    Law:    where the exchange keeps the mean, the mean of the workers moves by the mean of their steps; with everyone's
            exact mean, ``every=1``, ``overlap=0`` and plain SGD it is data-parallel training.
    Raises: ConfigError for an overlap longer than the period; ClashError for an exchange that leaves out parts of the
            weights or adds momentum.
    Source: Lian et al. 2017, arXiv:1705.09056; with push_sum(): Assran et al. 2019, arXiv:1811.10792.
    """
    return mixed("gossip", exchange if exchange is not None else graph(), every, overlap)


def mixed(what: str, talk: Exchange, every: int, overlap: int) -> Sync:
    """:func:`gossip` for a sync that is called ``what``."""
    positive(what, "every", every)
    count(what, overlap, "overlap", 0)
    if overlap > every:
        raise ConfigError(
            f"{what}: overlap must be at most every={every} steps, or weights are sent before the last have come back; "
            f"got {overlap}"
        )
    momentum_free(what, talk)
    decay_free(what, talk)
    if talk.sparse:
        raise ClashError(f"{what}: sends whole weights, and {talk.name} would leave most of them out; use int8 or half")

    def init(params: Any) -> GossipState:
        return GossipState(0, talk.init([master(p) for p in named(params).values()]), None)

    def after_step(params: Params, state: GossipState, link: Link) -> tuple[Updates, GossipState]:
        step, flight, exchanged = state.step + 1, state.flight, state.exchange
        updates: Updates = {}
        if flight is not None and flight.handle is None:  # after a restart
            flight = flight._replace(handle=link.start(talk.run, flight.sent, exchanged, link))
        if flight is not None and step >= flight.due:
            updates, exchanged = landed(params, flight)
            flight = None
        if step % every == 0:
            sent = [updates[i] if updates else master(p) for i, p in enumerate(params)]
            handle = link.start(talk.run, sent, exchanged, link)
            if overlap:
                flight = Flight(sent, step + overlap, handle)
            else:
                mixed, exchanged = handle.result()
                updates = dict(enumerate(mixed))
        return updates, GossipState(step, exchanged, flight)

    def finish(params: Params, state: GossipState, link: Link) -> tuple[Updates, GossipState]:
        if state.flight is None:
            return {}, state
        flight = state.flight
        if flight.handle is None:
            flight = flight._replace(handle=link.start(talk.run, flight.sent, state.exchange, link))
        updates, exchanged = landed(params, flight)
        return updates, GossipState(state.step, exchanged, None)

    mixes = "" if overlap == 1 else f", overlap={overlap}"
    name = f"{what}({talk.name}, every={every}{mixes})"
    return Sync(init, None, after_step, equal=talk.equal and not overlap, name=name, exchange=talk, finish=finish)


def landed(params: Params, flight: Flight) -> tuple[Updates, Any]:
    """The weights, moved by what mixing changed in those that were sent; and the exchange's new state."""
    mixed, exchanged = flight.handle.result()  # type: ignore[union-attr]
    pairs = zip(params, mixed, flight.sent, strict=True)
    return {i: (m - s).add_(p.detach().to(s.dtype)) for i, (p, m, s) in enumerate(pairs)}, exchanged
