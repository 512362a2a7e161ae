"""Adaptive: a level that hides behind the computation, in virtual time."""

import contextlib
import time

import pytest
import torch

from laconic.compress import chunked_topk, error_feedback, half, identity, int8, random_k, topk
from laconic.errors import ClashError, ConfigError, PacketError
from laconic.exchange import adaptive, everyone
from laconic.exchange.adaptive import SLACK, Mark, fitting, slowest, smoothed
from laconic.links import memory, simulated
from laconic.links.base import Link
from laconic.links.meter import Meter
from laconic.links.network import parse
from laconic.packet import Packet, message_nbytes
from laconic.state import freeze, thaw
from tests.links import workers
from tests.tiny import equal

GRID = (0.01, 0.03, 0.1, 0.3)
SHAPES = [(60, 80), (40, 50), (9,)]


class Clock:
    """A clock that stands still until somebody spends time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Still(Meter):
    """A meter of virtual seconds: compressing takes none."""

    def compressing(self):
        return contextlib.nullcontext()


class Slow(Link):
    """A link in virtual time: each message takes ``latency + bytes / rate`` out of its sender, who waits for it."""

    def __init__(self, link, clock, rate, latency=0.0):
        super().__init__(link.rank, link.size)
        self.meter = Still()
        self.under, self.clock, self.rate, self.latency = link, clock, rate, latency

    def send(self, message, to):
        nbytes = message_nbytes(message)
        seconds = self.latency + nbytes / self.rate
        self.clock.now += seconds
        self.meter.seconds_waiting += seconds
        self.meter.sent(nbytes)
        self.under.send(message, to)

    def recv(self, source, timeout=None):
        return self.under.recv(source, timeout)


def noise(rank, step):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def driven(rates, compute=1.0, workers=2, latency=0.0, room=0.5, every=4, grid=GRID, each=None):
    """Run a round at each rate (a list, or one for each worker); each round's level, seconds and result, by worker."""

    def work(link):
        clock = Clock()
        mine = compute[link.rank] if isinstance(compute, list) else compute
        own = rates[link.rank] if isinstance(rates[0], list) else rates
        slow = Slow(link, clock, own[0], latency)
        talk = adaptive(topk, grid, room, every, clock=clock)
        state = talk.init(noise(0, 0))
        out = []
        for step, rate in enumerate(own):
            slow.rate = rate
            clock.now += mine
            begin, level = clock.now, state.level
            mean, state = talk.run(noise(link.rank, step), state, slow)
            if each is not None:
                state = each(step, state)
            out.append((level, clock.now - begin, mean))
        return out, state

    return memory.run(workers, work)


def levels(results):
    return [level for level, _, _ in results[0][0]]


def seconds_at(level, rate, latency=0.0):
    """One round's seconds in a plain exchange at this level, nothing measured."""
    talk = everyone(error_feedback(topk(GRID[level])))

    def work(link):
        clock = Clock()
        slow = Slow(link, clock, rate, latency)
        talk.run(noise(link.rank, 0), talk.init(noise(0, 0)), slow)
        return clock.now

    return max(memory.run(2, work))


@pytest.mark.parametrize("rate", [1e3, 5e3, 2e4, 4e4, 1e6])
@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_it_settles_at_the_highest_level_that_hides_up_to_its_slack(rate, latency):
    seen = levels(driven([rate] * 60, latency=latency))
    end = seen[-1]
    assert len(set(seen[30:])) == 1, "it stays where it is"
    assert seconds_at(end, rate, latency) <= 0.5 or end == 0
    if end + 1 < len(GRID):  # the next one would not surely hide
        ratio = seconds_at(end + 1, rate) / seconds_at(end, rate)
        assert seconds_at(end, rate, latency) * ratio > 0.95 * SLACK * 0.5


def test_it_rises_when_the_link_gets_faster_and_falls_when_it_gets_slower():
    seen = levels(driven([5e3] * 40 + [1e6] * 40 + [5e3] * 60))
    assert seen[39] < seen[79] == len(GRID) - 1
    assert seen[139] == seen[39]


def test_it_falls_also_when_the_workers_compute_faster():
    assert levels(driven([4e4] * 40, compute=4.0))[-1] > levels(driven([4e4] * 40, compute=0.5))[-1]


def test_the_slowest_link_and_the_slowest_worker_decide_for_all_alike():
    fast, slow = [1e6] * 40, [5e3] * 40
    mixed = driven([fast, slow, fast], workers=3)
    assert all([level for level, _, _ in out] == levels(mixed) for out, _ in mixed)
    assert all(equal(a[2], b[2]) for (one, _), (two, _) in [mixed[:2]] for a, b in zip(one, two, strict=True))
    assert levels(mixed) == levels(driven([slow, slow, slow], workers=3))
    lazy = driven([4e4] * 40, compute=[0.5, 4.0])
    assert levels(lazy) == levels(driven([4e4] * 40, compute=[4.0, 4.0]))


def test_the_same_measurements_give_the_same_levels():
    rates = [2e4 if step % 7 else 1e4 for step in range(50)]
    assert levels(driven(rates)) == levels(driven(rates))


def test_changes_of_level_lose_nothing_of_the_error_memory():
    results = driven([5e3] * 20 + [1e6] * 20 + [5e3] * 20, workers=3)
    assert len(set(levels(results))) >= 3
    for i in (0, 1):
        came = sum(noise(r, s)[i] for r in range(3) for s in range(60)) / 3
        sent = sum(mean[i] for _, _, mean in results[0][0])
        kept = sum(state.inner.inner[i].residual for _, state in results) / 3
        assert float((sent + kept - came).norm() / came.norm()) < 1e-12


@pytest.mark.parametrize("density", [0.03, 1.0])
def test_with_one_level_it_is_that_one_to_the_bit_and_says_nothing_more(density):
    plain = everyone(error_feedback(topk(density)))

    def work(link, talk):
        state = talk.init(noise(0, 0))
        means = []
        for step in range(9):
            mean, state = talk.run(noise(link.rank, step), state, link)
            means += mean
        return means, link.meter.bytes_out

    one, other = (memory.run(2, lambda link, t=t: work(link, t))[0] for t in (adaptive(grid=(density,)), plain))
    assert equal(one[0], other[0])
    assert one[1] == other[1]


def test_a_run_that_resumes_keeps_its_level_and_measures_anew():
    """The clock of another process starts elsewhere; its readings must not be taken for ours."""

    def resume(step, state):
        if step != 30:
            return state
        skeleton, tensors = freeze(state)
        read = thaw(skeleton, {n: t.clone() for n, t in tensors.items()})
        return read._replace(mark=Mark(12345, read.mark.round, 9e9, 9e9, 9 << 40))

    straight, again = driven([2e4] * 60), driven([2e4] * 60, each=resume)
    assert levels(again) == levels(straight)
    assert all(equal(a[2], b[2]) for a, b in zip(straight[0][0], again[0][0], strict=True))
    skeleton, tensors = freeze(straight[0][1])
    assert thaw(skeleton, tensors)._replace(inner=None) == straight[0][1]._replace(inner=None)


def test_in_buckets_the_exchanges_of_all_of_them_count():
    """Two buckets on one link, with one clock: alone each would hide at the level at which both together do not."""

    def work(link, buckets):
        clock = Clock()
        slow = Slow(link, clock, 2.5e4)
        talk = adaptive(topk, GRID, 0.5, 4, clock=clock)
        states = [talk.init(noise(0, 0)) for _ in range(buckets)]
        for step in range(60):
            clock.now += 1.0
            for i in range(buckets):
                _, states[i] = talk.run(noise(link.rank, step), states[i], slow)
        return [state.level for state in states]

    alone, both = (memory.run(2, lambda link, n=n: work(link, n))[0] for n in (1, 3))
    assert max(both) < alone[0]


@pytest.mark.parametrize("a", [0.0, 0.2, 2.0])
@pytest.mark.parametrize("rate", [10.0, 100.0, 1000.0])
def test_where_seconds_are_latency_plus_bytes_a_raised_level_fits_and_nothing_goes_to_and_fro(a, rate):
    prices = (10, 30, 100, 300)
    seconds = lambda level: a + prices[level] / rate  # noqa: E731
    for start in range(4):
        seen = [start]
        for _ in range(8):
            seen.append(fitting(seen[-1], seconds(seen[-1]), 1.0, prices))
            if seen[-1] > seen[-2]:
                assert seconds(seen[-1]) <= 1.0
        assert len(set(seen[4:])) == 1
        assert seconds(seen[-1]) <= 1.0 or seen[-1] == 0


def test_an_exponential_mean_begins_with_the_first_value():
    assert smoothed(0.0, 4.0, 0.25) == 4.0
    assert smoothed(4.0, 8.0, 0.25) == 5.0


@pytest.mark.parametrize("said", [None, [1.0], [1.0, "x"], [1.0, -1.0], [True, 1.0], {"a": 1}])
def test_measurements_that_are_none_are_refused(said):
    def work(link):
        if link.rank == 1:
            link.send([Packet({}, {} if said is None else {"seconds": said})], 0)
            return link.recv(0) is not None
        with pytest.raises(PacketError, match="adaptive"):
            slowest(link, 1.0, 2.0)
        return True

    assert memory.run(2, work) == [True, True]


@pytest.mark.parametrize("kind", [int8, half, identity, topk(0.1), lambda density: int8()])
def test_a_compressor_without_a_density_is_refused(kind):
    with pytest.raises(ClashError, match=r"has no density to set|sends no more at a higher level"):
        adaptive(kind)


@pytest.mark.parametrize("kind", [topk, random_k, chunked_topk])
def test_compressors_with_a_density_are_taken(kind):
    assert adaptive(kind).name.startswith("adaptive(everyone(error_feedback(")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"grid": ()}, "densities that rise"),
        ({"grid": (0.1, 0.01)}, "densities that rise"),
        ({"room": 0.0}, "room must be positive"),
        ({"every": 1}, "every must be"),
        ({"smoothing": 0.0}, "smoothing must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        adaptive(**settings)


def found(link, compute):
    """The levels after each of 24 rounds of 0.2 million entries, each behind a tenth of a second of computation."""
    talk = adaptive(topk, GRID, 0.5, 4)
    given = [torch.randn(400, 500, generator=torch.Generator().manual_seed(link.rank))]
    state, seen = talk.init(given), []
    for _ in range(24):
        compute(0.1)
        _, state = talk.run(given, state, link)
        seen.append(GRID[state.level])
    return seen


@pytest.mark.parametrize(("rate", "level"), [("3mbit,2ms", 0.01), ("30mbit,2ms", 0.1), ("300mbit,2ms", 0.3)])
def test_it_finds_the_level_that_the_rate_carries(rate, level):
    """By arithmetic: 0.01, 0.1 and 0.3 of the entries take 28, 28 and 8 ms at these rates; one level more, over 45."""
    for seen in simulated.run(parse(rate, 2), lambda link: found(link, link.compute)):
        assert set(seen[12:]) == {level}


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(1000).sum()


def on_a_real_link(rate):
    with workers.connect("paced", network=parse(rate, 2)) as link:
        return found(link, busy)


@pytest.mark.processes
def test_on_a_paced_link_too_and_workers_agree():
    one, other = workers.fine(workers.run(2, on_a_real_link, "30mbit,2ms"))
    assert one == other
    assert 0.1 in one[12:]  # three measurements, of which what else the machine does may spoil some
