"""Nodes of MoDeST in virtual time, without link, thread or clock; crashes are noticed at once, or only by silence."""

from __future__ import annotations

import heapq
import itertools

import torch

from laconic.exchange.views import everybody
from laconic.packet import Packet
from laconic.sync.modest_node import Adopt, Node, Over, Send, Terms


def number(model):
    """The one value of a model."""
    return float(model[0].tensors["x"])


def made(value):
    return [Packet({"x": torch.tensor([value], dtype=torch.float64)})]


def mean(models):
    return made(sum(map(number, models)) / len(models))


class World:
    """So many nodes; ``train(rank, round, value)`` is what a worker makes of a model in ``seconds(rank)``."""

    def __init__(
        self, size, terms=None, *, absent=(), seconds=lambda rank: 1.0, latency=0.01, train=lambda r, k, x: x + r + k
    ):
        self.terms = terms if terms is not None else Terms(4)
        self.now, self.dead, self.released, self.stopped = 0.0, set(), set(), set()
        self.seconds, self.latency, self.train = seconds, latency, train
        self.events, self.count = [], itertools.count()
        self.sent, self.kept, self.words = 0, 0, 0  # models that crossed, models to oneself, and messages without one
        self.rounds = {}  # round -> {rank: (moment, value)}
        self.among = {}  # round -> the samples that its models named
        view = everybody(size, absent)
        self.nodes = [Node(rank, dict(view), self.terms, mean, made(0.0)) for rank in range(size)]
        present = [rank for rank in self.nodes[0]._order(1) if rank not in absent]
        first = sorted(present[: self.terms.sample]) if 0 not in absent else []
        for node in self.nodes:
            if node.me in absent:
                continue
            if node.me in first:
                node.begin(1, first, 0.0)
                self.adopt(node, Adopt(1, first, made(0.0)))
            else:
                node.idle(1, 0.0)
            self.carry_out(node)

    def at(self, moment, act):
        heapq.heappush(self.events, (moment, next(self.count), act))

    def after(self, seconds, act):
        self.at(self.now + seconds, act)

    def run(self, until=None, enough=lambda: False, most=200_000):
        """Let happen what happens until a moment, or until there is enough of it."""
        for _ in range(most):
            if enough() or not self.events or (until is not None and self.events[0][0] > until):
                return self
            self.now, _, act = heapq.heappop(self.events)
            act()
        raise AssertionError(f"{most} events, and no end")

    def upto(self, round):
        """Until ``round`` is trained: from the first who does, as long as it takes to tell the others."""
        self.run(enough=lambda: round in self.rounds, until=self.now + 1e6)
        assert round in self.rounds, "nothing happened any more"
        return self.run(until=self.now + 3 * self.latency)

    def crash(self, *ranks, noticed=False):
        """They do and answer nothing any more; the others are told if it is ``noticed``."""
        self.dead |= set(ranks)
        for node in self.nodes:
            if noticed and node.me not in self.dead:
                for rank in ranks:
                    self.do(node, lambda node=node, rank=rank: node.lost(rank, self.now))

    def do(self, node, act):
        if node.me not in self.dead and node.me not in self.stopped:
            act()
            self.carry_out(node)

    def carry_out(self, node):
        for action in node.out:
            if isinstance(action, Send):
                self.sent += bool(action.model)
                self.words += not action.model
                to, view = self.nodes[action.to], action.view and dict(action.view)
                if action.to in self.dead:
                    continue
                hear = lambda a=action, to=to, view=view: to.hear(node.me, dict(a.words), a.model, view, self.now)  # noqa: E731
                self.after(self.latency, lambda to=to, hear=hear: self.do(to, hear))
            elif isinstance(action, Adopt):
                self.adopt(node, action)
            elif isinstance(action, Over):
                (self.stopped if action.stopped else self.released).add(node.me)
        node.out = []
        deadline = node.deadline
        if deadline is not None:
            self.at(max(self.now, deadline), lambda: self.do(node, lambda: self.tick(node)))

    def tick(self, node):
        if node.deadline is not None and node.deadline <= self.now:
            node.tick(self.now)

    def adopt(self, node, action):
        value = number(action.model)
        self.rounds.setdefault(action.round, {})[node.me] = (self.now, value)
        self.among.setdefault(action.round, set()).add(tuple(action.among))
        if not action.among:
            return
        result = made(self.train(node.me, action.round, value))
        done = lambda: node.trained(result, self.now) if node.adopted == action.round else None  # noqa: E731
        self.after(self.seconds(node.me), lambda: self.do(node, done))
