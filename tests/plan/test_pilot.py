"""What a pilot's curves say."""

import pytest

from laconic.bench import compare
from laconic.errors import ConfigError
from laconic.plan import pilot
from laconic.plan.pilot import PLAIN, factor_of, first, learnt, most
from laconic.plan.ranking import Way
from laconic.recipe import Recipe
from tests.here import MINE

FALLING = [(0.0, 3.0), (100.0, 2.0), (200.0, 1.0)]
TWICE = [(0.0, 3.0), (200.0, 2.0), (400.0, 1.0)]
DILOCO = Way("diloco every=10", "diloco", {"every": 10})


def test_a_curve_that_takes_twice_the_tokens_needs_twice_as_many():
    assert factor_of(TWICE, FALLING) == pytest.approx(2)
    assert factor_of(TWICE[:2], FALLING) == pytest.approx(2)  # at the lowest loss that both have reached
    assert factor_of(FALLING, TWICE[:2]) == pytest.approx(0.5)
    assert factor_of([(0.0, 3.0), (100.0, 3.5)], FALLING) is None
    assert factor_of(FALLING, FALLING[:1]) is None


def test_where_a_curve_comes_down_to_a_loss_is_found_between_its_points():
    assert first(FALLING, 1.5) == pytest.approx(150)
    assert first(FALLING, 0.5) is None


def test_what_did_not_come_to_a_synchronisation_teaches_nothing():
    curves = {PLAIN.name: FALLING, DILOCO.name: TWICE}
    assert learnt([PLAIN, DILOCO], curves, {PLAIN.name: 100, DILOCO.name: 9}) == {}
    found = learnt([PLAIN, DILOCO], curves, {PLAIN.name: 100, DILOCO.name: 50})
    assert found[DILOCO.name].rounds == pytest.approx(5)  # (2 - 1) in five synchronisations


def test_a_pilot_has_time_for_so_many_ways_and_always_for_ddp():
    assert most(20, [DILOCO, PLAIN, *(Way(str(i), "diloco", {}) for i in range(5))])[:2] == [PLAIN, DILOCO]
    assert len(most(20, [Way(str(i), "diloco", {}) for i in range(9)])) == 4
    with pytest.raises(ConfigError, match="ddp and one other way need 10 s"):
        most(9, [DILOCO])


def pretend(monkeypatch, seen=None, every=10, failed=()):
    """A comparison that needs no time; ways that failed are not in it."""

    def run(recipe, ways, folder, **given):
        if seen is not None:
            seen.update(recipe=recipe, ways=ways)
        for way, curve in zip(ways, (FALLING, TWICE), strict=True):
            (folder / way.name).mkdir(parents=True)
            lines = [f'{{"tokens": {x}, "eval_loss": {y}}}\n' for x, y in curve]
            (folder / way.name / "evals.jsonl").write_text("".join(lines))
        own = {"ddp": {}, DILOCO.name: {"every": every}}
        methods = [
            {"name": w.name, "steps": 50, "settings": own[w.name], "runs": [{"folder": w.name}]}
            for w in ways
            if w.name not in failed
        ]
        return {"methods": methods, "failed": [f"{name}: the disk is full" for name in failed]}

    monkeypatch.setattr(compare, "compare", run)


def test_a_pilot_trains_on_links_without_limits_for_its_share_of_the_time(monkeypatch, tmp_path):
    seen = {}
    pretend(monkeypatch, seen)
    found = pilot.run(Recipe(MINE, workers=2, link="20mbit", steps=1), [DILOCO], 30)
    assert (seen["recipe"].seconds, seen["recipe"].link, seen["recipe"].steps) == (15, "", None)
    assert [way.name for way in seen["ways"]] == ["ddp", DILOCO.name]
    assert found[DILOCO.name].source == "pilot: 2.00 times in 50 steps"


def test_a_pilot_whose_ddp_fails_says_so_and_one_whose_other_way_fails_goes_on(monkeypatch):
    recipe = Recipe(MINE, workers=2, link="20mbit", steps=1)
    pretend(monkeypatch, failed=["ddp"])
    with pytest.raises(
        ConfigError, match="ddp, against which the others are held, could not be trained: ddp: the disk"
    ):
        pilot.run(recipe, [DILOCO], 30)
    pretend(monkeypatch, failed=[DILOCO.name])
    assert pilot.run(recipe, [DILOCO], 30) == {}


def test_a_period_that_was_made_shorter_for_the_pilot_is_counted_as_it_ran(monkeypatch):
    pretend(monkeypatch, every=5)
    found = pilot.run(Recipe(MINE, workers=2, link="20mbit", steps=1), [DILOCO], 30)
    assert found[DILOCO.name].rounds == pytest.approx(10)  # (2 - 1) in ten synchronisations
