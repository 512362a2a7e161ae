"""MoDeST's protocol at one worker: what it does when it hears something, when time passes, when it has trained.

Nothing here touches a link, a clock or a thread: events come in with the moment they happened at, and what is to be
done goes out. :mod:`laconic.sync.modest` carries it out; a test may as well, in virtual time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from laconic.exchange.views import Entry, View, heard, merge, order
from laconic.packet import Packet
from laconic.sync.liveness import Probe

Model = list[Packet]
Words = dict[str, Any]
AGGREGATORS, PARTICIPANTS, ANYONE, REST = "aggregators", "participants", "anyone", "rest"
KINDS = ("ping", "pong", "trained", "model", "ack", "nack", "join", "leave", "end", "want", "last")
CARRIERS = ("trained", "model")  # what carries the sender's view


class Terms(NamedTuple):
    """The settings, as counts and seconds; ``quota(k)`` is how many of k models a round needs."""

    sample: int
    aggregators: int = 1
    success: float = 1.0
    window: int = 50
    ping_timeout: float = 5.0
    resend: float = 1.0
    patience: float = 300.0
    least: int = 3
    seed: int = 0

    def quota(self, count: int) -> int:
        """Models out of ``count`` that make a round."""
        return max(1, math.floor(self.success * count + 1e-9))

    @property
    def grace(self) -> float:
        """Seconds by which an aggregator may miss its time: it looks for living participants before it answers."""
        return 4 * self.ping_timeout


class Send(NamedTuple):
    """To be sent: some words, a model perhaps, and the view with it if the kind carries one."""

    to: int
    words: Words
    model: Model
    view: View | None


class Adopt(NamedTuple):
    """For the worker: train on from this model, in ``round``, together with ``among``."""

    round: int
    among: list[int]
    model: Model


class Over(NamedTuple):
    """For the worker: wait no longer. ``stopped``: nor will anybody be served any more."""

    stopped: bool


@dataclass
class Attempt:
    """My trained model, until an aggregator of ``round`` has acknowledged it."""

    round: int
    model: Model
    among: list[int]
    number: int = 1
    sent: set[int] = field(default_factory=set)
    due: float = math.inf


@dataclass
class Table:
    """What has come for one round that I aggregate; ``among``: those from whom a model may come."""

    due: float
    models: dict[int, Model] = field(default_factory=dict)
    among: set[int] = field(default_factory=set)
    size: int = 0
    number: int = 1


@dataclass
class Search:
    """A probe, and what it is for."""

    purpose: str
    round: int
    probe: Probe
    thanks: list[int]


class Node:
    """One worker's part in the protocol; ``out`` fills with what is to be done.

    ``mean(models)`` is what an aggregator makes of them; ``held`` the newest model that is known here, of ``round``.
    """

    def __init__(
        self, me: int, view: View, terms: Terms, mean: Callable[[list[Model]], Model], held: Model, round: int = 1
    ) -> None:
        self.me, self.view, self.terms, self._mean = me, view, terms, mean
        self.held: tuple[int, Model] = (round, held)
        self.round = round  # the newest that is known of
        self.adopted = 0  # of the model that is, or was last, trained here
        self.among: list[int] = []
        self.training = False
        self.out: list[Send | Adopt | Over] = []
        self.gone: set[int] = set()  # whose connection has closed
        self.left = False
        self._attempt: Attempt | None = None
        self._tables: dict[int, Table] = {}
        self._completed = 0
        self._searches: list[Search] = []
        self._pending: list[View] = []
        self._watch: float | None = None
        self._answers: dict[int, tuple[bool, int, int]] = {}
        self._ended: int | None = None  # the round at which somebody's loop has ended
        self._enders: list[int] = []  # whose loop has ended
        self._stays: list[int] = []  # and who serves on, until all have
        self._last: list[int] = []  # who trained last
        self._asked: int | None = None
        self._finishing = self._stopped = self._released = False
        self._silent: set[int] = set()
        self._roll = math.inf
        self._own: deque[tuple[Words, Model]] = deque()

    @property
    def counter(self) -> int:
        """How often I have announced myself."""
        return self.view[self.me].counter

    # -- what happens ----------------------------------------------------------------------------------------

    def begin(self, round: int, among: Iterable[int], now: float) -> None:
        """I train in ``round`` without having been told to: the first of all rounds, or where a run goes on."""
        self.adopted, self.among, self.training = round, sorted(among), True
        self._settle(now)

    def idle(self, round: int, now: float) -> None:
        """I wait, and what I hold is the model of ``round``."""
        self.adopted = round
        self._settle(now)

    def trained(self, model: Model, now: float) -> None:
        """My worker has ended its local steps."""
        self.training = False
        if self._ended is not None:
            self._release()
        else:
            self._attempt = Attempt(self.adopted + 1, model, self.among)
            self._seek(now)
        self._settle(now)

    def hear(self, source: int, words: Words, model: Model, view: View | None, now: float) -> None:
        """A message came."""
        if self.left:
            return
        kind, round = words["kind"], words["round"]
        if kind not in ("join", "leave", "nack"):  # whose counters are news, each taken in its own way
            self.view = heard(self.view, source, max(self.round, round), words["counter"])
        self.round = max(self.round, round)
        if view is not None:
            self.view = merge(self.view, view)
        getattr(self, f"_on_{kind}")(source, words, model, now)
        self._settle(now)

    def lost(self, peer: int, now: float) -> None:
        """A peer's connection has closed: it is asked no more, and nothing is awaited from it."""
        self.gone.add(peer)
        for search in list(self._searches):
            search.probe.lost(peer)
            self._go_on(search, now)
        for round in list(self._tables):
            self._check(round, now)
        if self._attempt is not None and peer in self._attempt.sent:
            self._attempt.sent.discard(peer)
            if not self._attempt.sent:
                self._attempt.number += 1
                self._seek(now)
        if self._asked == peer:
            self._release()
        if self._watch is not None:
            self._watch = min(self._watch, now + self.terms.ping_timeout)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        for search in list(self._searches):
            for peer in search.probe.late(now):
                self._say(peer, "ping", self.round)
            self._go_on(search, now)
        for round in list(self._tables):
            self._check(round, now)
        if self._attempt is not None and now >= self._attempt.due:  # the attempt is lost
            self._attempt.number += 1
            self._seek(now)
        if self._watch is not None and now >= self._watch:
            self._watch = None
            self._answers = {}
            self._search(ANYONE, self.round, [p for p in self._members() if p != self.me], len(self.view), now)
        if now >= self._roll:
            self._roll = math.inf
            waited = self._unfinished()
            self._search(REST, self.round, waited, len(waited), now)
        self._settle(now)

    @property
    def deadline(self) -> float | None:
        """When :meth:`tick` has something to do, if nothing is heard before."""
        moments = [search.probe.deadline for search in self._searches if not search.probe.ended]
        moments += [table.due for table in self._tables.values()]
        moments += [self._roll] if self._roll < math.inf else []
        moments += [self._attempt.due] if self._attempt is not None and self._attempt.due < math.inf else []
        moments += [self._watch] if self._watch is not None else []
        return min(moments, default=None)

    # -- coming and going ------------------------------------------------------------------------------------

    def join(self, now: float) -> None:
        """Announce that I take part from now on; nobody asks me in the round that is being sampled."""
        self._announce("join", True)
        self._settle(now)

    def leave(self, now: float) -> None:
        """Announce that I take part no more; who waits for my aggregation is told to go elsewhere."""
        self._announce("leave", False)
        for round, table in self._tables.items():
            for peer in sorted((table.among | set(table.models)) - {self.me}):
                self._say(peer, "nack", round)
        self._tables, self._searches, self._attempt, self._watch = {}, [], None, None
        self.left = True
        self.out.append(Over(stopped=True))

    def end(self, now: float) -> None:
        """My worker's loop has ended. The first to end tell all, let go who waits, and serve until all have ended.

        Who has been told tells only them, and those who trained last and may be among them.
        """
        self.training, self._attempt, self._watch = False, None, None
        self._finishing, first = True, not self._stays
        self._ended = max(self.adopted, self._ended or 0)
        told = set(self.view) if first else {*self._stays, *self._last}
        for peer in sorted(told - {self.me} - self.gone):
            self._say(peer, "end", self.adopted, stays=first, among=self.among)
        if first:
            self._roll = now + self.terms.ping_timeout
        else:
            self._stop()
        self._settle(now)

    def _stop(self) -> None:
        self._stopped, self._roll = True, math.inf
        self.out.append(Over(stopped=True))

    def _announce(self, kind: str, member: bool) -> None:
        mine = Entry(self.round, self.counter + 1, member)
        self.view = self.view | {self.me: mine}
        others = [peer for peer in self._members() if peer != self.me]
        drawn = random.Random(f"{kind}/{self.terms.seed}/{self.me}/{mine.counter}").sample(
            others, min(len(others), 10 * self.terms.sample)
        )
        for peer in drawn:
            self._say(peer, kind, self.round)

    # -- messages --------------------------------------------------------------------------------------------

    def _on_ping(self, source: int, words: Words, model: Model, now: float) -> None:
        self._say(source, "pong", self.round, busy=self._busy(), held=self.held[0])
        if self._watch is not None:  # somebody is looking for a sample: the run goes on
            self._watch = now + self._patience()

    def _on_pong(self, source: int, words: Words, model: Model, now: float) -> None:
        self._answers[source] = (bool(words["busy"]), int(words["held"]), int(words["round"]))
        for search in list(self._searches):
            search.probe.answered(source)
            if search.purpose == ANYONE and words["busy"]:
                self._searches.remove(search)
            else:
                self._go_on(search, now)

    def _on_trained(self, source: int, words: Words, model: Model, now: float) -> None:
        round = words["round"]
        if round <= self._completed:
            self._say(source, "ack", round)
            return
        table = self._tables.setdefault(round, Table(now + self.terms.patience))
        table.models.setdefault(source, model)
        table.among |= {source, *words["among"]}
        table.size = max(table.size, len(words["among"]))
        table.number = max(table.number, words["number"])
        self._check(round, now)

    def _on_model(self, source: int, words: Words, model: Model, now: float) -> None:
        round = words["round"]
        if round > self.held[0]:
            self.held = (round, model)
        if round > self.adopted and not self._finishing:
            self.adopted, self.among, self.training = round, words["among"], True
            self._attempt = None
            self.out.append(Adopt(round, words["among"], model))

    def _on_ack(self, source: int, words: Words, model: Model, now: float) -> None:
        if self._attempt is not None and self._attempt.round <= words["round"]:
            self._attempt = None

    def _on_nack(self, source: int, words: Words, model: Model, now: float) -> None:
        self._on_leave(source, words, model, now)
        if self._attempt is not None and self._attempt.round == words["round"]:
            self._attempt.sent.discard(source)
            if not self._attempt.sent:
                self._seek(now)

    def _on_join(self, source: int, words: Words, model: Model, now: float) -> None:
        self._pending.append({source: Entry(max(self.round, words["round"]), words["counter"], True)})

    def _on_leave(self, source: int, words: Words, model: Model, now: float) -> None:
        self.view = merge(self.view, {source: Entry(words["round"], words["counter"], False)})

    def _on_end(self, source: int, words: Words, model: Model, now: float) -> None:
        self._enders.append(source)
        if not words["stays"]:  # it has told me as one who has told it, or will be told by another
            return
        self._stays.append(source)
        self._last = words["among"]
        self._ended = max(words["round"], self._ended or 0)
        if self._ended > self.adopted or not self.training:
            self._release()

    def _on_want(self, source: int, words: Words, model: Model, now: float) -> None:
        self._say(source, "last", self.held[0], model=self.held[1])

    def _on_last(self, source: int, words: Words, model: Model, now: float) -> None:
        self._asked = None
        if words["round"] > self.adopted and not self._finishing:
            self.adopted, self.among, self.training, self._attempt = words["round"], [], False, None
            self.held = max(self.held, (words["round"], model), key=lambda held: held[0])
            self.out.append(Adopt(words["round"], [], model))
        self._let_go()

    def _let_go(self) -> None:
        if not self._released:
            self._released = True
            self.out.append(Over(stopped=False))

    def _release(self) -> None:
        """Let my worker go, with the newest model."""
        assert self._ended is not None, "somebody's loop has ended"
        if self._finishing or (self._asked is not None and self._asked not in self.gone):
            return  # the answer is under way
        self._asked = None
        others = [peer for peer in self._stays if peer not in self.gone]
        if self.adopted >= self._ended or not others:
            self._let_go()
        else:
            self._asked = others[0]
            self._say(others[0], "want", self.round)

    # -- a round ---------------------------------------------------------------------------------------------

    def _seek(self, now: float) -> None:
        """Look for living aggregators, to send my model to."""
        assert self._attempt is not None, "there is a model to send"
        self._attempt.due, self._attempt.sent = math.inf, set()
        round = self._attempt.round
        self._search(AGGREGATORS, round, self._order(round), self.terms.aggregators, now)

    def _check(self, round: int, now: float) -> None:
        """Aggregate, if enough models have come, or no others will, or it is time."""
        table = self._tables[round]
        count, quota = len(table.models), self.terms.quota(table.size)
        if count < quota and table.among - set(table.models) - self.gone:
            if now < table.due:
                return
            if count < min(self.terms.least, quota) and table.number == 1:
                del self._tables[
                    round
                ]  # too few to speak for a round: who sent will try again, and then they are enough
                return
        self._completed = round
        self.held = (round, self._mean([table.models[peer] for peer in sorted(table.models)]))
        self._tables = {later: other for later, other in self._tables.items() if later > round}
        self._publish(round, sorted(table.models), now)

    def _publish(self, round: int, thanks: list[int], now: float) -> None:
        """Look for living participants, to send what is held to."""
        self.round, self._completed = max(self.round, round), round
        self._search(PARTICIPANTS, round, self._order(round), self.terms.sample, now, thanks)

    def _found(self, search: Search, now: float) -> None:
        if search.purpose == AGGREGATORS:
            attempt = self._attempt
            if attempt is None or attempt.round != search.round:
                return
            attempt.sent, attempt.due = set(search.probe.alive), now + self.terms.patience + self.terms.grace
            shuffled = search.probe.alive[:]
            random.Random(f"load/{self.me}/{attempt.round}/{attempt.number}").shuffle(shuffled)
            for peer in shuffled:
                words = {"among": attempt.among, "number": attempt.number}
                self._say(peer, "trained", attempt.round, model=attempt.model, **words)
            self._flush()
        elif search.purpose == PARTICIPANTS:
            among = sorted(search.probe.alive)
            for peer in among:
                self._say(peer, "model", search.round, model=self.held[1], among=among)
            self._flush()
            for peer in search.thanks:
                self._say(peer, "ack", search.round)
        elif search.purpose == ANYONE:
            self._revive(search.probe.alive, now)
        else:
            self._roll = now + self.terms.ping_timeout
            self._silent |= set(self._unfinished()) - set(search.probe.alive)

    def _flush(self) -> None:
        """Only now are newcomers asked: had they been at once, some would have drawn them for this round, some not."""
        for view in self._pending:
            self.view = merge(self.view, view)
        self._pending = []

    # -- when nobody is left who would go on -----------------------------------------------------------------

    def _revive(self, alive: list[int], now: float) -> None:
        """Everyone waits: whoever holds the newest model publishes it as the next round's."""
        told = {self.me: (False, self.held[0], self.round)} | {peer: self._answers[peer] for peer in alive}
        round = max(known for _, _, known in told.values()) + 1
        place = {peer: i for i, peer in enumerate(self._order(round))}
        first = max(told, key=lambda peer: (told[peer][1], -place.get(peer, len(self.view)), -peer))
        if first == self.me:
            self.held = (round, self.held[1])
            self._publish(round, [], now)

    def _busy(self) -> bool:
        """Whether I will go on by myself."""
        mine = any(search.purpose in (AGGREGATORS, PARTICIPANTS) for search in self._searches)
        return bool(self.training or self._attempt is not None or self._tables or mine)

    def _patience(self) -> float:
        """Seconds of silence after which who waits asks whether anyone still trains."""
        return 2 * (self.terms.patience + self.terms.grace)

    def _settle(self, now: float) -> None:
        """Do what was said to myself, and set the watch."""
        while self._own:
            words, model = self._own.popleft()
            getattr(self, f"_on_{words['kind']}")(self.me, words, model, now)
        if self._busy() or self._finishing or self.left or self._ended is not None:
            self._watch = None
        elif self._watch is None and not self._searches:
            self._watch = now + self._patience()
        if self._finishing and not self._stopped and not self._unfinished():
            self._stop()

    # -- helpers ---------------------------------------------------------------------------------------------

    def _members(self) -> list[int]:
        return [rank for rank, entry in self.view.items() if entry.member]

    def _unfinished(self) -> list[int]:
        """Whose loops go on, as far as is known."""
        return [p for p in self._members() if p != self.me and p not in {*self._enders, *self.gone, *self._silent}]

    def _order(self, round: int) -> list[int]:
        return order(self.view, round, self.terms.window, self.me, self.terms.seed)

    def _search(
        self, purpose: str, round: int, among: list[int], wanted: int, now: float, thanks: list[int] | None = None
    ) -> None:
        probe = Probe(among, wanted, self.me, self.gone, self.terms.ping_timeout, self.terms.resend)
        self._searches = [s for s in self._searches if (s.purpose, s.round) != (purpose, round)]
        search = Search(purpose, round, probe, thanks or [])
        self._searches.append(search)
        self._go_on(search, now)

    def _go_on(self, search: Search, now: float) -> None:
        for peer in search.probe.ask(now):
            self._say(peer, "ping", self.round)
        if search.probe.ended and search in self._searches:
            self._searches.remove(search)
            self._found(search, now)

    def _say(self, to: int, kind: str, round: int, model: Model | None = None, **words: Any) -> None:
        said = {"kind": kind, "round": round, "counter": self.counter, **words}
        if to == self.me:
            self._own.append((said, model or []))
        elif to not in self.gone:
            self.out.append(Send(to, said, model or [], self.view if kind in CARRIERS else None))
