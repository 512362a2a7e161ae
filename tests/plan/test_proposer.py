"""The proxy that proposes what to measure next: it finds the best in few runs, and learns what fails."""

import itertools
import math
import random

import pytest

from laconic.errors import ConfigError
from laconic.plan.proposer import Proxy, Space, Trial, propose, search, spearman

TEN = Space({f"knob{i}": (0, 1, 2, 3) for i in range(10)})
BUDGET = 40


def separable(seed, knobs=10, spread=0.1):
    """A product of what each knob does, and its largest value."""
    draw = random.Random(seed)
    parts = [[draw.uniform(-spread, spread) for _ in range(4)] for _ in range(knobs)]
    best = math.exp(sum(map(max, parts)))
    return lambda named: math.exp(sum(parts[int(name[4:])][value] for name, value in named.items())), best


def at_random(measure, seed):
    draw = random.Random(f"random/{seed}")
    return max(measure({name: draw.choice(values) for name, values in TEN.knobs.items()}) for _ in range(BUDGET))


def test_of_a_million_choices_40_runs_come_within_3_percent_of_the_best_and_40_at_random_do_not():
    reached = by_chance = 0
    for seed in range(10):
        measure, best = separable(seed)
        reached += (search(TEN, measure, BUDGET, seed=seed).best.value or 0) >= 0.97 * best
        by_chance += at_random(measure, seed) >= 0.97 * best
    assert reached >= 9
    assert by_chance == 0


def test_knobs_that_only_work_together_are_found_too():
    space = Space({name: range(5) for name in "abc"})

    def measure(named):
        return 2.0 if named["a"] == 3 and named["b"] == 1 else 1 + 0.1 * named["c"]

    best = search(space, measure, 60, seed=1).best
    assert best.value == 2.0


def test_with_nothing_measured_the_order_is_the_predictions():
    space = Space({"a": range(4), "b": range(5)}, predicted=lambda named: 1 + 7 * named["a"] + named["b"])
    every = list(itertools.product(range(4), range(5)))
    by_prediction = sorted(every, key=lambda choice: -(1 + 7 * choice[0] + choice[1]))
    assert propose(space, [], 20) == by_prediction
    promise = Proxy(space, []).promise(every)
    assert sorted(every, key=lambda choice: -promise[every.index(choice)]) == by_prediction


def test_a_prediction_that_is_off_by_one_factor_stays_the_order_and_a_wrong_one_is_corrected():
    space = Space({"a": range(6)}, predicted=lambda named: 1.0 + named["a"])
    right = [Trial((a,), 10.0 * (1 + a)) for a in (0, 2)]
    assert propose(space, right, 3, explore=0) == [(5,), (4,), (3,)]
    found = search(space, lambda named: 1.0 / (1 + named["a"]), 6, seed=0)
    assert found.best.choice == (0,)


def test_where_choices_fail_few_are_proposed_after_the_fifth_round():
    for seed in range(4):
        draw = random.Random(f"fails/{seed}")
        measure, _ = separable(seed, knobs=6)
        space = Space({f"knob{i}": (0, 1, 2, 3) for i in range(6)})
        one, other = draw.sample(range(6), 2)
        asked = []

        def limited(named, one=one, other=other, measure=measure, asked=asked):
            fits = named[f"knob{one}"] + named[f"knob{other}"] <= 3  # as memory would have it
            asked.append(fits)
            return measure(named) if fits else None

        search(space, limited, 60, seed=seed)
        late = asked[20:]
        assert late.count(False) < 0.2 * len(late), seed


def test_it_is_a_function_of_the_trials_and_the_seed():
    measure, _ = separable(5)
    assert search(TEN, measure, 16, seed=3).trials == search(TEN, measure, 16, seed=3).trials
    assert search(TEN, measure, 16, seed=3).trials != search(TEN, measure, 16, seed=4).trials


def test_nothing_is_proposed_twice_and_what_is_left_is_proposed_to_the_end():
    space = Space({"a": range(3), "b": range(2)})
    found = search(space, lambda named: 1.0 + named["a"], 50, seed=0)
    assert sorted(trial.choice for trial in found.trials) == sorted(itertools.product(range(3), range(2)))
    some = Space({"a": range(3), "b": range(2)}, choices=[(0, 0), (2, 1)])
    assert sorted(propose(some, [], 4)) == [(0, 0), (2, 1)]


def test_it_stops_when_the_best_has_not_improved_for_so_many_rounds():
    found = search(Space({"a": range(100)}), lambda named: 1.0, 100, patience=3, seed=0)
    assert len(found.trials) == 4 * 4


def test_how_well_rankings_agree():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 1, 1], [3, 2, 1]) == 0


def test_its_ranking_of_what_was_not_run_gets_better_with_the_runs():
    measure, _ = separable(2)
    trials, draw = search(TEN, measure, BUDGET, seed=2).trials, random.Random(1)
    others = [tuple(draw.randrange(4) for _ in range(10)) for _ in range(300)]
    truth = [measure(TEN.named(choice)) for choice in others]
    early, late = (spearman(Proxy(TEN, trials[:n]).promise(others), truth) for n in (8, BUDGET))
    assert late > 0.9
    assert late > early + 0.1


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ConfigError, match="b has values"):
        propose(Space({"a": (1,), "b": ()}), [])
    with pytest.raises(ConfigError, match="none of 3 choices ran"):
        search(Space({"a": range(3)}), lambda named: None, 9)
