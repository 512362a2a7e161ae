"""MoDeST: in each round a few workers train and one of them averages, drawn afresh; nobody is a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.compress.base import Compressor, accumulate, count, finite, needs_values
from laconic.compress.identity import identity
from laconic.errors import ClashError, ConfigError, PeerTimeout
from laconic.exchange.views import Entry, everybody, order
from laconic.links.base import Link
from laconic.state import checkpointed
from laconic.sync.base import Params, Sync, Updates, master, named, positive
from laconic.sync.modest_node import Model, Node, Terms
from laconic.sync.modest_service import LONG, Service, next_word

SAMPLE = 10  # the paper's
WINDOW = 50  # rounds after which who was not active is asked no more
SHARE = 10  # and no fewer than this many times n/s, or the living would be forgotten between two samples


@checkpointed
class ModestState(NamedTuple):
    """``round`` is that of ``anchor``, the last model of all that came here; ``step`` counts local steps since.

    ``asked``: this worker trains in that round. ``over``: somebody's loop has ended, so that it waits no more.
    ``members`` are the view and with whom this round is trained, as JSON; ``size`` is how many workers there are, once
    known.
    """

    round: int
    step: int
    asked: bool
    over: bool
    size: int
    members: str
    anchor: list[Tensor]
    service: Service | None


class Plan(NamedTuple):
    """The settings of :func:`modest`."""

    code: Compressor
    every: int
    sample: int | None
    aggregators: int
    success: float
    window: int | None
    ping_timeout: float
    resend: float
    patience: float
    least: int
    absent: tuple[int, ...]
    seed: int

    def terms(self, size: int) -> Terms:
        """The protocol's settings among so many workers.

        Raises: ConfigError for a sample larger than the group.
        """
        times = (self.ping_timeout, self.resend, self.patience)
        if size == 1:  # alone there is nobody to draw from
            return Terms(1, 1, self.success, self.window or WINDOW, *times, self.least, self.seed)
        sample = min(SAMPLE, size) if self.sample is None else self.sample
        if sample > size:
            raise ConfigError(f"modest: a sample of {sample} out of {size} workers; use sample={size} or less")
        if self.aggregators > sample:
            raise too_many(self.aggregators, sample)
        if any(rank >= size for rank in self.absent) or len(set(self.absent)) >= size:
            raise ConfigError(
                f"modest: absent={list(self.absent)} among {size} workers; ranks count from 0, and one must be there"
            )
        window = max(WINDOW, -(-SHARE * size // sample)) if self.window is None else self.window
        return Terms(sample, self.aggregators, self.success, window, *times, self.least, self.seed)

    def packed(self, tensors: Sequence[Tensor]) -> Model:
        """A model as it crosses."""
        return [self.code.compress(t, self.code.init(t))[0] for t in tensors]

    def opened(self, model: Model, like: Sequence[Tensor]) -> list[Tensor]:
        """A model as it came."""
        pairs = zip(model, like, strict=True)
        return [self.code.decompress(packet).to(device=t.device, dtype=t.dtype) for packet, t in pairs]

    def mean(self, models: list[Model], like: Sequence[Tensor]) -> Model:
        """The mean of models in the order given, which is the workers': the same bits wherever it is taken."""
        means = []
        for i, tensor in enumerate(like):
            total = torch.zeros_like(tensor)
            for model in models:
                accumulate(self.code, model[i].to(tensor.device), total)
            means.append(total.div_(len(models)))
        return self.packed(means)


def modest(
    compressor: Compressor | None = None,
    every: int = 5,
    sample: int | None = None,
    aggregators: int = 1,
    success: float = 1.0,
    window: int | None = None,
    ping_timeout: float = 5.0,
    resend: float = 1.0,
    patience: float = 300.0,
    least: int = 3,
    absent: Sequence[int] = (),
    seed: int = 0,
) -> Sync:
    """In each round ``sample`` workers take ``every`` steps from one model; ``aggregators`` of them average what came.

    ``sample`` is 10 by default, or everyone where there are fewer.

    Who they are follows from the round, by a hash, and from who answers: there is no server, and workers that crash are
    passed over. A round is complete once ``success`` of the models have come; after ``patience`` seconds with at least
    ``least``; or at once when who is missing has closed its connection. A worker waits inside the step until it is
    asked again, and answers others all the while, also while it trains, on a thread of its own. ``absent`` workers take
    no part until their first step, by which they join; ``window`` is how many rounds a worker may be silent before it
    is asked no more (by default 50, or ten times n over the sample).

    Workers take unequal numbers of steps: end a loop by ``sync.rounds``, and then call ``sync.finish()``.

    What is pure and what is not: the state is a value as any sync's, but the protocol under way cannot be. It is held
    by a service, begun at the first step and ended by ``finish`` or ``drain``, which all workers call. When a step
    raises, what the service has told others stays told.

    Wire:   ``2 aggregators sample`` models a round in the whole network, whatever its size, less those that go from a
            worker to itself; with each a view, of 16 bytes a worker; pings. When a loop ends, one model to each worker
            that has not the newest.
    Law:    without churn, with a sample of everyone, one aggregator and success 1, it is :func:`local_steps`.
    Raises: ConfigError for settings out of range, and for a sample larger than the group (``attach`` and ``laconic
            train`` ask before the first step); ClashError for a compressor that leaves values out, or has a memory.
    Source: de Vos et al. 2023, arXiv:2302.13837.
    """
    code = compressor if compressor is not None else identity()
    plan = Plan(
        code,
        every,
        sample,
        aggregators,
        success,
        window,
        ping_timeout,
        resend,
        patience,
        least,
        tuple(absent),
        seed,
    )
    check(plan)

    def among(size: int) -> str:
        drawn = plan.terms(size)
        return f"{drawn.sample} of {size} workers train in a round, and {drawn.aggregators} of them average"

    def init(params: Any) -> ModestState:
        anchor = [master(p) for p in named(params).values()]
        return ModestState(0, 0, False, False, 0, "", anchor, None)

    def after_backward(grads: Params, state: ModestState, link: Link) -> tuple[list[Tensor] | None, ModestState]:
        state, _ = served(plan, state, link)
        return list(grads) if state.asked else None, state  # who is not asked has nothing to train yet

    def after_step(params: Params, state: ModestState, link: Link) -> tuple[Updates, ModestState]:
        state, service = served(plan, state, link)
        if state.over and not state.asked:
            return {}, state
        state, news = newest(plan, state, link, 0.0)
        if not news and state.asked:
            state = state._replace(step=state.step + 1)
            if state.step < every:
                return {}, state
            own = [master(p) for p in params]
            for tensor in own:
                finite("modest", tensor)
            service.tell(link, "mine", state.round, plan.packed(own))
            state = state._replace(asked=False, step=0)
        while not news and not state.asked and not state.over:
            state, news = newest(plan, state, link, LONG)
        return news, state

    def ended(params: Params, state: ModestState, link: Link) -> tuple[Updates, ModestState]:
        """Tell all that this worker's loop has ended, and serve them until theirs have."""
        if state.service is None:
            return {}, state
        service, news = state.service, Updates()
        if not service.handle.done():
            service.tell(link, "finish")
        while not service.handle.done():
            words, model = next_word(service, link, LONG)
            if words["kind"] == "adopt" and words["round"] > state.round:
                state, news = adopted(plan, state, words, model)
            elif words["kind"] == "stopped":
                break
        view, (_, with_whom) = service.handle.result(), json.loads(state.members)
        return news, state._replace(service=None, over=False, members=json.dumps([view, with_whom]))

    def model(params: Params, state: ModestState) -> list[Tensor]:
        return state.anchor

    return Sync(
        init,
        after_backward,
        after_step,
        model,
        equal=False,
        name=f"modest({code.name}, every={every}, sample={sample or SAMPLE})",
        rounds=lambda state: max(0, state.round - 1),
        taken=lambda state: taken(plan, state),
        among=among,
        ended=ended,
    )


def leave(state: ModestState, link: Link) -> None:
    """Take no part any more: who waits for this worker is told. Its training loop is to end."""
    if state.service is not None:
        state.service.tell(link, "leave")


def served(plan: Plan, state: ModestState, link: Link) -> tuple[ModestState, Service]:
    """The state with a service under way, and that service: begun where there is none."""
    if state.service is not None:
        return state, state.service
    terms = plan.terms(link.size)
    known, with_whom = json.loads(state.members) if state.members else (None, [])
    if known is None:
        view = everybody(link.size, plan.absent if link.size > 1 else ())
    else:
        view = {int(rank): Entry(*entry) for rank, entry in known.items()}
    asked, round = state.asked, state.round
    if not round:
        here = [rank for rank in order(view, 1, terms.window, link.rank, plan.seed) if view[rank].member]
        round, with_whom = 1, here[: terms.sample]
        asked = link.rank in with_whom
    like = state.anchor
    node = Node(link.rank, view, terms, lambda models: plan.mean(models, like), plan.packed(like), round)
    if asked:
        node.begin(round, with_whom, link.now())
    else:
        node.idle(round, link.now())
    if not view[link.rank].member:
        node.join(link.now())
    service = Service(link, node, [torch.empty_like(a, device="meta") for a in like])
    members = json.dumps([view, with_whom])
    began = state._replace(round=round, asked=asked, over=False, size=link.size, members=members, service=service)
    return began, service


def newest(plan: Plan, state: ModestState, link: Link, patience: float) -> tuple[ModestState, Updates]:
    """The newest model that has come for this worker, once anything has or ``patience`` seconds have passed."""
    service, news = state.service, Updates()
    assert service is not None, "it is begun before it is asked"
    try:
        while True:
            words, model = next_word(service, link, patience)
            patience = 0.0
            if words["kind"] == "adopt" and words["round"] > state.round:
                state, news = adopted(plan, state, words, model)
            elif words["kind"] in ("over", "stopped"):
                state = state._replace(over=True)
                if words["kind"] == "stopped":  # I have left
                    service.handle.result()
    except PeerTimeout:
        return state, news


def adopted(plan: Plan, state: ModestState, words: dict[str, Any], model: Model) -> tuple[ModestState, Updates]:
    """The state that has taken the model of a round, and the new weights."""
    anchor = plan.opened(model, state.anchor)
    members = json.dumps([words["view"], words["among"]])
    asked = bool(words["among"])  # nobody: the last model of all, in which nobody trains
    after = state._replace(round=words["round"], step=0, asked=asked, anchor=anchor, members=members)
    return after, dict(enumerate(anchor))


def taken(plan: Plan, state: ModestState) -> float:
    """Steps of a worker on average: a sample of all takes ``every`` in each round."""
    share = plan.terms(state.size).sample / state.size if state.size else 1.0
    return share * (max(0, state.round - 1) * plan.every + state.step)


def too_many(aggregators: int, sample: int) -> ConfigError:
    """The error for more aggregators than a sample has."""
    return ConfigError(
        f"modest: {aggregators} aggregators of a sample of {sample}; they are part of it, use aggregators={sample} or "
        "less"
    )


def check(plan: Plan) -> None:
    """Check the settings that do not depend on how many workers there are.

    Raises: ConfigError, ClashError.
    """
    for name in ("every", "aggregators", "least"):
        positive("modest", name, getattr(plan, name))
    for name in ("sample", "window"):
        if getattr(plan, name) is not None:
            positive("modest", name, getattr(plan, name))
    count("modest", plan.seed, "seed", None)
    for rank in plan.absent:
        count("modest", rank, "absent", 0)
    if plan.sample is not None and plan.aggregators > plan.sample:
        raise too_many(plan.aggregators, plan.sample)
    if not 0 < plan.success <= 1:
        raise ConfigError(
            f"modest: success must be in (0, 1], got {plan.success}; it is the share of models that make a round"
        )
    for name in ("ping_timeout", "resend", "patience"):
        if not 0 < getattr(plan, name) < LONG:
            raise ConfigError(f"modest: {name} must be positive, in seconds, got {getattr(plan, name)}")
    needs_values("modest", plan.code, "it sends whole models, to others each time; use half, int8 or nothing")
    name = plan.code.name
    if plan.code.sparse or plan.code.momentum:
        raise ClashError(f"modest: sends whole models, and {name} would leave most of them out; use half or int8")
    if name.startswith("error_feedback"):
        raise ClashError(
            f"modest: what {name} keeps back belongs to one stream, and each model goes to other workers; use half, "
            "int8 or nothing"
        )
