"""The named methods: each complete, each described, each refusing what it cannot do."""

import inspect
import re

import pytest

from laconic.errors import ClashError, ConfigError
from laconic.methods import CHOICES, METHODS, build, get
from laconic.sync import Sync, diloco

every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every
def test_it_answers_the_six_questions_and_names_its_source_and_its_bytes(method):
    assert tuple(method.choices) == CHOICES
    assert all(answer.strip() for answer in method.choices.values())
    assert method.wire
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|torch's|ideal", method.source)


@every
def test_its_docstring_has_a_summary_and_a_word_on_every_setting(method):
    assert method.summary.endswith(".")
    explained = method.make.__doc__.split("\n\n", 1)[1] if method.defaults else ""
    for setting in method.defaults:
        assert re.search(rf"\b{setting}\b", explained), f"{method.name}: nothing about {setting}"


@every
def test_it_is_made_with_its_defaults_and_every_setting_has_one(method):
    assert isinstance(build(method.name), Sync)
    assert inspect.Parameter.empty not in method.defaults.values()
    assert isinstance(build(method.name, method.defaults), Sync)


@every
def test_a_setting_it_does_not_have_is_refused(method):
    with pytest.raises(ConfigError, match=f"unknown setting of {method.name} 'evry'"):
        build(method.name, {"evry": 5})


@pytest.mark.parametrize("method", [m for m in METHODS.values() if "compress" in m.defaults], ids=lambda m: m.name)
def test_its_compressor_can_be_given_as_text_a_list_or_a_compressor(method):
    for compress in ("int8", ["identity", "int8"], build.__globals__["half"]("bf16")):
        assert re.search("int8|half", build(method.name, {"compress": compress}).name)


@pytest.mark.parametrize("method", [m for m in METHODS.values() if "combine" in m.defaults], ids=lambda m: m.name)
def test_its_rule_can_be_given_as_text_and_must_be_one(method):
    build(method.name, {"combine": "mean"})
    with pytest.raises(ConfigError, match="is not a rule"):
        build(method.name, {"combine": "topk"})


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown method 'diloko'; did you mean 'diloco'"):
        get("diloko")


def test_a_nesting_or_a_sync_stands_in_for_a_name():
    sync = diloco(every=7)
    assert build(sync) is sync
    assert build("diloco(every=7)").name == sync.name
    with pytest.raises(ConfigError, match=r"settings \['every'\] are for named methods"):
        build("diloco(every=7)", {"every": 5})
    with pytest.raises(ConfigError, match=r"is not a whole method: wrap it in every_step"):
        build("everyone(topk())")


def test_feedback_wraps_what_is_chosen_and_can_be_switched_off():
    assert "error_feedback(int8)" in build("ddp", {"compress": "int8"}).name
    assert "error_feedback" not in build("ddp", {"compress": "int8", "feedback": False}).name
    assert "error_feedback" not in build("ddp").name


def test_choices_that_clash_are_refused_when_the_method_is_made():
    with pytest.raises(ClashError, match="noloco: sends whole weights"):
        build("noloco", {"compress": "topk"})
    with pytest.raises(ClashError, match="plain mean of a few workers' weights"):
        build("noloco", {"combine": "weighted_mean(2)"})
    with pytest.raises(ClashError, match="adds momentum"):
        build("diloco", {"compress": "momentum_correction(topk)"})


def test_a_setting_that_compress_makes_idle_is_refused():
    with pytest.raises(ClashError, match="density would have no effect"):
        build("topk", {"density": 0.05, "compress": "int8"})
