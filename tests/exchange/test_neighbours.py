"""A few random others: as many as the budget says, when the schedule says, known to those who send."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.compress import half, topk
from laconic.errors import ClashError, ConfigError
from laconic.exchange import everyone, neighbours
from laconic.exchange.neighbours import SCHEDULES, sample
from laconic.links import memory


@given(budget=st.floats(0, 7), seed=st.integers(0, 99), round=st.integers(0, 10**6), rank=st.integers(0, 7))
def test_a_sample_has_the_budgets_whole_part_or_one_more_and_nobody_twice(budget, seed, round, rank):
    others = [r for r in range(8) if r != rank]
    heard = sample(others, budget, seed, round, rank)
    assert len(heard) in (int(budget), int(budget) + 1)
    assert set(heard) <= set(others)
    assert len(set(heard)) == len(heard)
    assert heard == sample(others, budget, seed, round, rank)


@pytest.mark.parametrize("budget", [0.2, 1.0, 2.7])
def test_over_ten_thousand_draws_the_mean_number_of_others_is_the_budget(budget):
    others = list(range(1, 8))
    counts = [len(sample(others, budget, 0, number, 0)) for number in range(10_000)]
    assert sum(counts) / len(counts) == pytest.approx(budget, rel=0.03)


def run(build, size=4, rounds=6, dims=20):
    start = torch.randn(size, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def work(link):
        talk, x, seen = build(), [start[link.rank]], []
        state = talk.init(x)
        for _ in range(rounds):
            before = link.meter.bytes_out
            x, state = talk.run(x, state, link)
            seen.append((x[0], link.meter.bytes_out - before))
        return seen

    return start, memory.run(size, work)


def test_each_takes_the_plain_mean_of_its_own_and_what_it_hears():
    start, seen = run(lambda: neighbours(budget=1.4), rounds=3)
    now = start
    for number in range(3):
        lists = [sample([r for r in range(4) if r != rank], 1.4, 0, number, rank) for rank in range(4)]
        now = torch.stack([now[[rank, *heard]].mean(0) for rank, heard in enumerate(lists)])
        for rank in range(4):
            torch.testing.assert_close(seen[rank][number][0], now[rank])


def test_a_budget_of_everyone_is_everyones_mean_to_the_bit():
    _, ours = run(lambda: neighbours(budget=3))
    _, theirs = run(everyone)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(one, other, strict=True))


def test_without_a_budget_nothing_is_sent_and_nothing_moves():
    start, seen = run(lambda: neighbours(budget=0))
    for rank, worker in enumerate(seen):
        assert all(torch.equal(x, start[rank]) and sent == 0 for x, sent in worker)


def dense(schedule, **settings):
    """In which of ten rounds everyone heard everyone."""
    _, seen = run(lambda: neighbours(budget=0, schedule=schedule, rounds=10, **settings), rounds=10)
    return [number for number in range(10) if all(worker[number][1] > 0 for worker in seen)]


def test_the_dense_rounds_are_where_the_schedule_puts_them():
    assert dense("truncate", start=0.7) == [7, 8, 9]
    assert dense("truncate", start=1.0) == []
    assert dense("truncate_v2", start=0.2, window=0.3) == [2, 3, 4]
    assert dense("linear")[0] == 0
    assert dense("fixed") == []


@given(start=st.floats(0, 0.8), window=st.floats(0, 0.2), rounds=st.integers(1, 500))
def test_an_early_and_a_late_window_of_one_width_have_the_same_number_of_dense_rounds(start, window, rounds):
    inside = [SCHEDULES["truncate_v2"](at, rounds, 0.0, 1.0, start, window) for at in range(rounds)]
    assert sum(inside) == min(round(window * rounds), rounds - round(start * rounds))


def test_an_early_and_a_late_window_of_one_width_send_the_same_bytes():
    def total(start):
        build = lambda: neighbours(budget=0, schedule="truncate_v2", rounds=20, start=start, window=0.2)  # noqa: E731
        return sum(sent for worker in run(build, rounds=20)[1] for _, sent in worker)

    assert total(0.1) == total(0.7) > 0


def test_schedules_go_from_one_end_to_the_other():
    at = lambda name, s: SCHEDULES[name](round(20 * s), 20, 1.0, 9.0, 0.5, 0.1)  # noqa: E731
    assert [at("fixed", s) for s in (0, 1)] == [1, 1]
    assert [at("linear", s) for s in (0, 0.5, 1)] == [9, 5, 1]
    assert [at("cosine", s) for s in (0, 0.5, 1)] == pytest.approx([9, 5, 1])
    assert at("exponential", 0) == at("late", 1) == 9
    assert at("exponential", 1) == at("late", 0) == pytest.approx(1, abs=0.06)
    assert at("late", 0.5) < at("late", 0.9)


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: neighbours(budget=-0.1), ConfigError, "budget must be at least 0"),
        (lambda: neighbours(schedule="trunkate"), ConfigError, "did you mean 'truncate'"),
        (lambda: neighbours(schedule="late"), ConfigError, "so say how many rounds it has"),
        (lambda: neighbours(start=1.2), ConfigError, r"start must be in \[0, 1\]"),
        (lambda: neighbours(topk()), ClashError, "sends whole weights"),
        (
            lambda: neighbours(budget=4).among(4),
            ConfigError,
            "to hear from 4 others a round, and in .* some have only 3",
        ),
        (lambda: neighbours(graph="ring", budget=2.5).among(6), ConfigError, "some have only 2"),
        (lambda: neighbours(graph="one-peer").among(4), ConfigError, "changes from round to round"),
        (lambda: neighbours(graph="0-1,2-3").among(4), ConfigError, "not connected"),
    ],
)
def test_budgets_and_schedules_that_cannot_be_are_refused(build, error, says):
    with pytest.raises(error, match=says):
        build()


def test_what_is_said_has_the_mean_budget():
    assert neighbours().among(8) == "graph complete: 0.2 random others a round on average, at most 1"
    assert neighbours(half(), graph="ring", budget=1.5).among(8).startswith("graph ring: 1.5 random others")
