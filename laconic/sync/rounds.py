"""Rounds: parts of the model leave by a timetable, and what comes back moves the weights that are shared.

What every method of local steps has in common. A method adds an :class:`Outer`: what it sends of a part, and what it
makes of the answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.errors import ConfigError
from laconic.exchange.base import Exchange
from laconic.links.background import Handle
from laconic.links.base import Link
from laconic.packet import Message, Packet, raw_bytes
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, decay_free, drift, master, named
from laconic.sync.timetable import Timetable, deal


@checkpointed
class Flight(NamedTuple):
    """An exchange under way: what was sent, the step at which to apply the answer, and the answer to come.

    A checkpoint keeps what was sent and not the answer: after a restart it is sent again, by every worker.
    """

    sent: list[Tensor]
    due: int
    handle: Handle | None


@checkpointed
class FragmentState(NamedTuple):
    """``members`` are indices of parameters, ``anchor`` the weights that outer steps move, ``velocity`` their momentum.

    ``rounds`` counts outer steps, and ``moved`` is how far the last one went, where the method asks.
    """

    members: list[int]
    anchor: list[Tensor]
    velocity: list[Tensor]
    exchange: Any
    rounds: int
    moved: float
    flight: Flight | None


@checkpointed
class RoundsState(NamedTuple):
    """``step`` counts inner steps; ``rate`` is the inner learning rate and ``peak`` the highest so far.

    ``agreed``: the workers have found that their states go together. A checkpoint leaves it out.
    """

    step: int
    rate: float
    peak: float
    fragments: list[FragmentState]
    agreed: Agreed | None


class Agreed:
    """The word that all workers' states go together: of this process alone."""

    transient = True


class Outer(NamedTuple):
    """What a method sends of a fragment, and what it does with the answer.

    ``step(fragment, heard, state)`` is the fragment with its anchor, velocity and ``moved`` as ``heard`` leaves them;
    ``state`` tells the learning rate. ``send(fragment, own)`` are the tensors that leave, ``like(anchor)`` tensors
    like these, ``velocity(anchor)`` the velocity at first.
    """

    step: Callable[[FragmentState, list[Tensor], RoundsState], FragmentState]
    velocity: Callable[[list[Tensor]], list[Tensor]]
    send: Callable[[FragmentState, Params], list[Tensor]] = lambda fragment, own: drift(fragment.anchor, own)
    like: Callable[[list[Tensor]], list[Tensor]] = lambda anchor: anchor


def rounds(what: str, talk: Exchange, outer: Outer, plan: Timetable) -> Sync:
    """The sync that takes ``outer`` steps by ``plan``; named ``what``.

    Where the exchange gives all the same, anchors and velocities are the same on every worker. That is checked once
    before the first round, and once after a checkpoint was loaded: a worker that took up the state of another round
    would drift away from the others without a word.

    Raises: ClashError for an exchange that cannot be told of a decay while it is under way.
    """
    if plan.overlap:
        decay_free(what, talk)
    how = How(talk, outer, plan)
    shared = talk.equal and not plan.eager

    def init(params: Mapping[str, Tensor] | Params) -> RoundsState:
        tensors = named(params)
        values = list(tensors.values())
        fragments = []
        for members in deal(list(tensors), plan.fragments, plan.pattern, what):
            anchor = [master(values[i]) for i in members]
            exchange = talk.init(outer.like(anchor))
            fragments.append(FragmentState(members, anchor, outer.velocity(anchor), exchange, 0, 0.0, None))
        return RoundsState(0, 1.0, 0.0, fragments, None)

    def after_step(params: Params, state: RoundsState, link: Link) -> tuple[Updates, RoundsState]:
        if state.agreed is None and talk.equal and link.size > 1:
            link.start(agree, what, state, shared, link).result()
        step = state.step + 1
        updates: Updates = {}
        fragments = [taken_up(how, fragment, link) for fragment in state.fragments]
        leaving: dict[int, list[Tensor]] = {}
        for number, fragment in enumerate(fragments):
            if plan.sends(step, number):
                leaving[number] = outer.send(fragment, [params[i] for i in fragment.members])
                if not plan.late:  # before anything is waited for
                    fragments[number] = launch(how, fragment, leaving[number], step + plan.overlap, link)
        for number, fragment in enumerate(fragments):
            fresh = leaving.get(number)
            if due(fragment, step) or (plan.eager and fresh is not None):
                fragments[number] = land(how, fragment, fresh, state, link)
                updates |= taken(how, fragments[number], params)
            elif plan.late and fresh is not None:
                updates |= taken(how, fragment, params)  # no answer yet: this round starts where the first one did
            if plan.late and fresh is not None:
                fragments[number] = launch(how, fragments[number], fresh, step + plan.overlap, link)
        return updates, state._replace(step=step, fragments=fragments, agreed=Agreed())

    def finish(params: Params, state: RoundsState, link: Link) -> tuple[Updates, RoundsState]:
        """Apply what is still under way."""
        updates: Updates = {}
        fragments = []
        for fragment in [taken_up(how, fragment, link) for fragment in state.fragments]:
            if fragment.flight is None:
                fragments.append(fragment)
            else:
                fragments.append(land(how, fragment, None, state, link))
                updates |= taken(how, fragments[-1], params)
        return updates, state._replace(fragments=fragments)

    def model(params: Params, state: RoundsState) -> list[Tensor]:
        return state.fragments[0].anchor

    def decayed(state: RoundsState) -> RoundsState:
        assert talk.decayed is not None, "only then is it told"
        return state._replace(fragments=[f._replace(exchange=talk.decayed(f.exchange)) for f in state.fragments])

    def learning(state: RoundsState, rate: float) -> RoundsState:
        return state._replace(rate=rate, peak=max(rate, state.peak))

    # No ``model`` where parts are of different ages, up to a whole period: a worker's own weights, mixed with them all
    # the time, are ahead of them by most of one. docs/methods/streaming-diloco.md has both measured.
    return Sync(
        init,
        None,
        after_step,
        model if plan.one else None,
        equal=shared and plan.one and (plan.late or not plan.overlap),
        name=f"{what}({talk.name}, every={plan.every}{plan.text})",
        decayed=None if talk.decayed is None else decayed,
        exchange=talk,
        learning=learning,
        finish=finish if plan.overlap else None,
    )


class How(NamedTuple):
    """What a method is made of."""

    talk: Exchange
    outer: Outer
    plan: Timetable


def launch(how: How, fragment: FragmentState, sent: list[Tensor], until: int, link: Link) -> FragmentState:
    """The fragment, with ``sent`` on its way and the answer due after step ``until``."""
    assert fragment.flight is None or fragment.flight.handle is None, "one flight of a fragment at a time"
    handle = link.start(how.talk.run, sent, fragment.exchange, link)
    return fragment._replace(flight=Flight(sent, until, handle))


def taken_up(how: How, fragment: FragmentState, link: Link) -> FragmentState:
    """The fragment, with what a checkpoint says was under way sent again."""
    flight = fragment.flight
    if flight is None or flight.handle is not None:
        return fragment
    return launch(how, fragment, flight.sent, flight.due, link)


def land(
    how: How, fragment: FragmentState, fresh: list[Tensor] | None, state: RoundsState, link: Link
) -> FragmentState:
    """The fragment after its outer step; waits for the answer. ``fresh`` is what leaves next, where it does now."""
    flight, exchanged = fragment.flight, fragment.exchange
    heard: list[Tensor] = []
    if flight is not None:
        assert flight.handle is not None, "what is under way was started"
        heard, exchanged = flight.handle.result()
    if how.plan.eager:  # my own part of this round, and of the last one what the others moved
        parts = [] if flight is None else [heard, [s / -link.size for s in flight.sent]]
        parts += [] if fresh is None else [[s / link.size for s in fresh]]
        heard = [sum(each[1:], each[0]) for each in zip(*parts, strict=True)]
    after = how.outer.step(fragment, heard, state)
    return after._replace(exchange=exchanged, rounds=fragment.rounds + 1, flight=None)


def taken(how: How, fragment: FragmentState, params: Params) -> Updates:
    """What the worker trains on from: what is shared, mixed with its own."""
    share = how.plan.mixing
    pairs = zip(fragment.members, fragment.anchor, strict=True)
    return {i: a.lerp(params[i].detach().to(a.dtype), share) if share else a for i, a in pairs}


def due(fragment: FragmentState, step: int) -> bool:
    """Whether an answer is to be applied after this step."""
    return fragment.flight is not None and step >= fragment.flight.due


def agree(what: str, state: RoundsState, shared: bool, link: Link) -> None:
    """Find that all workers are in the same round, and hold the same there where they should.

    Raises: ConfigError naming a worker that is not.
    """
    mine = {"step": state.step, "due": [f.flight.due if f.flight else 0 for f in state.fragments]}
    if shared:
        mine |= {"prints": [f"{fingerprint([*f.anchor, *f.velocity]):08x}" for f in state.fragments]}
    heard: list[Message] = link.all_gather([Packet({}, mine)])
    for rank, message in enumerate(heard):
        theirs = message[0].header if len(message) == 1 else {}
        if any(theirs.get(key) != mine[key] for key in mine):
            where = f"is at step {theirs.get('step')}, worker {link.rank} at step {state.step}"
            if theirs.get("step") == state.step:
                where = (
                    f"is at step {state.step} like worker {link.rank}, with other shared weights or another velocity"
                )
            raise ConfigError(
                f"{what}: worker {rank} {where}; a state of another round does not go together with the others': load "
                "the same checkpoint's on every worker, or start all anew"
            )


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """A checksum of all bits, 0 for tensors without any (``meta``)."""
    found = 0
    for tensor in tensors:
        if tensor.device.type != "meta" and tensor.numel():
            found = zlib.crc32(raw_bytes(tensor.detach().reshape(-1).cpu().contiguous().view(torch.uint8)), found)
    return found


def still(anchor: list[Tensor], momentum: float) -> list[Tensor]:
    """A velocity of zero; no tensors at all where there is no momentum."""
    return [a.new_zeros(a.shape) for a in anchor] if momentum else []
