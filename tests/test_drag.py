"""Workers that are held back: how much, and what is refused."""

import time

import pytest

from laconic import drag
from laconic.drag import Drag, factors
from laconic.errors import ConfigError
from laconic.recipe import Recipe, read_recipe


def test_each_worker_has_its_factor_and_1_by_default():
    assert factors(["1:4", "3:1.5x"], 4) == [1.0, 4.0, 1.0, 1.5]
    assert factors([], 2) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("slow", "says"),
    [
        (["4"], "write WORKER:FACTOR"),
        (["1:x"], "write WORKER:FACTOR"),
        (["1:1.2.3"], "write WORKER:FACTOR"),
        (["2:4"], "worker 2 of 2"),
        (["1:0.5"], "no worker can be made faster"),
        (["1:4", "1:2"], "named twice"),
    ],
)
def test_what_names_no_worker_and_factor_is_refused(slow, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        Recipe("adult", workers=2, slow=tuple(slow), steps=3).checked()


def test_a_recipe_keeps_it(tmp_path):
    recipe = Recipe("adult", workers=2, slow=("1:4",), steps=3)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert read_recipe(tmp_path / "recipe.toml") == recipe


def test_it_idles_for_so_many_times_what_was_computed_and_not_for_its_own_idling(monkeypatch):
    computed, idled = [10.0], []
    monkeypatch.setattr(time, "thread_time", lambda: computed[0])
    monkeypatch.setattr(time, "sleep", idled.append)
    held = drag.Drag(4.0)
    for seconds in (0.5, 0.0, 2.0):
        computed[0] += seconds
        held.pull()
    assert idled == [1.5, 0.0, 6.0]
    Drag(1.0).pull()
    assert len(idled) == 3
