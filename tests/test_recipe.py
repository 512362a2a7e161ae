"""Recipes: what is written is read back, and what cannot be is refused in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import ClashError, ConfigError
from laconic.recipe import Recipe, read_recipe, read_settings

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda text: text != "none")
NUMBER = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False))
VALUE = st.one_of(TEXT, NUMBER, st.booleans(), st.none(), st.lists(st.one_of(TEXT, NUMBER), max_size=3))
NAME = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True)


@given(
    recipe=st.builds(
        Recipe,
        workload=TEXT,
        method=st.just("diloco(everyone(), every=5)"),  # its settings are checked when it is built, not when it is read
        settings=st.dictionaries(NAME | st.sampled_from(["lr", "links", "seed"]), VALUE, max_size=4),
        options=st.dictionaries(NAME, VALUE, max_size=3),
        workers=st.integers(-3, 99),
        link=TEXT,
        links=st.lists(TEXT, max_size=2).map(tuple),
        on=TEXT,
        seconds=st.none() | st.floats(0, 1e6),
        tokens=st.none() | st.integers(0, 10**12),
        steps=st.none() | st.integers(0, 10**12),
        seed=st.integers(0, 2**31),
        lr=st.none() | st.floats(0, 1),
        clip=st.none() | st.floats(0, 9),
        threads=st.integers(0, 9),
        timeout=st.floats(1, 9),
        save_every=st.integers(1, 9),
    )
)
def test_a_recipe_reads_back_as_it_was_written(recipe, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml())
    assert read_recipe(path) == recipe


def test_a_setting_that_is_switched_off_stays_off_in_the_file_that_the_workers_read(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe("adult", "dgc", settings=read_settings(["clip=none"])).to_toml())
    assert read_recipe(path).settings == {"clip": None}


def test_a_setting_that_is_also_a_field_of_the_recipe_stands_apart(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('workload = "adult"\nmethod = "diloco"\nlr = 0.1\nevery = 50\n[settings]\nlr = 0.7\n')
    assert read_recipe(path) == Recipe("adult", "diloco", settings={"every": 50, "lr": 0.7}, lr=0.1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("workers = ", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        ("workers = 2.0", "workers must be a whole number, got 2.0"),
        ("steps = true", "steps must be a whole number, got True"),
        ('seconds = "long"', "seconds must be a number, got 'long'"),
        ("workload = 3", "workload must be text in quotes, got 3"),
        ('links = "1:5mbit"', r'links must be a list of texts, such as \["1:5mbit"\]'),
        ("options = 3", "options must be a table"),
        ("wrokers = 3", "unknown key .* 'wrokers'; did you mean 'workers'"),
        ('method = "diloco"\nevry = 3', "unknown key .* 'evry'; did you mean 'every'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_a_sentence(text, told, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=told):
        read_recipe(path)


def test_a_file_that_is_not_there_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"workers": 0}, "workers must be at least 1"),
        ({"on": "pacd"}, "did you mean 'paced'"),
        ({"steps": None}, "say when the run ends"),
        ({"seconds": 3.0}, "ends by one of seconds, tokens and steps, and seconds and steps are given"),
        ({"steps": 0}, "steps must be positive, got 0"),
        ({"steps": None, "seconds": float("inf")}, "seconds must be positive, got inf"),
        ({"steps": None, "seconds": float("nan")}, "seconds must be positive, got nan"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"timeout": 0.0}, "timeout must be positive"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"link": "20"}, "is not a rate; write bits a second"),
        ({"link": "20mbit,30"}, "is not a time; write it with its unit"),
        ({"links": ("1:5mbit",)}, "say the others' with link"),
        ({"cluster": "aws10", "links": ("0-1:5mbit",)}, "says what every link is, and link-of 0-1:5mbit what one is"),
        ({"workers": 10**12}, "workers must be at most 100000"),
        ({"link": "20mbit", "links": ("2:5mbit",)}, "worker 2 of 2; they count from 0"),
        ({"link": "20mbit", "on": "group"}, "on=group uses the network as it is"),
        ({"method": "dilco"}, "did you mean 'diloco'"),
        ({"method": "topk(0.1)"}, "is not a whole method: wrap it"),
        ({"settings": {"densty": 1}}, "unknown setting of ddp 'densty'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_in_a_sentence(changes, told):
    with pytest.raises(ConfigError, match=told):
        Recipe("adult", steps=3).replace(**changes).checked()


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        ("every_step(ring(topk()))", {}, "ring: needs summable packets, and topk's are not; use everyone"),
        ("diloco(pairs())", {}, "diloco: needs the same result on every worker.*use noloco"),
        ("noloco", {"compress": "topk"}, "noloco: sends whole weights.*use int8 or half"),
        ("every_step(everyone(), every=3)", {}, "unknown setting of every_step 'every'"),
    ],
)
def test_two_choices_that_clash_are_both_named_and_a_way_out_with_them(method, settings, told):
    with pytest.raises((ClashError, ConfigError), match=told):
        Recipe("adult", method, settings=settings, steps=3).checked()


def test_settings_are_read_as_numbers_truths_lists_and_text():
    pairs = ["every=50", "lr=0.7", "feedback=false", "clip=none", "compress=['topk(0.1)', 'int8']", "form=nesterov"]
    assert read_settings(pairs) == {
        "every": 50,
        "lr": 0.7,
        "feedback": False,
        "clip": None,
        "compress": ["topk(0.1)", "int8"],
        "form": "nesterov",
    }


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (["every"], "--set 'every': write name=value"),
        (["=5"], "--set '=5': write name=value"),
        (["a b=5"], "write name=value"),
        (["every=5", "every=6"], "every is set twice"),
    ],
)
def test_a_setting_that_is_none_is_refused_in_a_sentence(pairs, told):
    with pytest.raises(ConfigError, match=told):
        read_settings(pairs)


@pytest.mark.parametrize("options", [{"model": {"width": 3}}, {"a key": 1}, {"when": [1, {"x": 2}]}])
def test_options_that_are_tables_or_have_odd_names_are_read_back(options, tmp_path):
    (tmp_path / "r.toml").write_text(Recipe("adult", options=options, steps=1).to_toml())
    assert read_recipe(tmp_path / "r.toml").options == options


@pytest.mark.parametrize(("field", "value", "says"), [("seed", 1 << 63, "under 2"), ("timeout", 1e20, "at most 1e")])
def test_what_no_generator_or_clock_can_hold_is_refused(field, value, says):
    with pytest.raises(ConfigError, match=says):
        Recipe("adult", steps=1).replace(**{field: value}).checked()
