"""State as JSON and tensors, and back: exactly, and nothing that was not registered."""

import json
from typing import Any, NamedTuple

import pytest
import torch

from laconic.compress.error_feedback import ErrorFeedbackState
from laconic.errors import ConfigError, PacketError
from laconic.state import checkpointed, freeze, like, placed, thaw
from laconic.sync.rounds import Flight


class Unregistered(NamedTuple):
    x: int


def sample():
    return {
        "numbers": [1, -2.5, True, None, "text", 1 << 60],
        "pair": (ErrorFeedbackState(torch.arange(3.0), (1, [])), ()),
        "nested": {"a": [torch.tensor(7), {"b": torch.zeros(0, 2)}]},
    }


def test_a_state_comes_back_from_json_and_tensors_as_it_was():
    skeleton, tensors = freeze(sample())
    back = thaw(json.loads(json.dumps(skeleton)), tensors)
    assert type(back["pair"]) is tuple
    assert type(back["pair"][0]) is ErrorFeedbackState
    assert back["numbers"] == sample()["numbers"]
    assert [type(n) for n in back["numbers"]] == [int, float, bool, type(None), str, int]
    assert torch.equal(back["pair"][0].residual, torch.arange(3.0))
    assert back["pair"][0].inner == (1, [])
    assert freeze(back)[0] == skeleton
    assert set(freeze(back)[1]) == set(tensors)


def test_each_tensor_has_a_name_that_says_where_it_was():
    assert set(freeze(sample())[1]) == {"state.pair.0.residual", "state.nested.a.0", "state.nested.a.1.b"}


def test_a_kind_that_could_not_be_read_back_is_refused_when_it_is_written():
    with pytest.raises(TypeError, match="Unregistered is not @checkpointed"):
        freeze([Unregistered(1)])


@pytest.mark.parametrize("part", [{1, 2}, torch.float32, len, Ellipsis])
def test_a_part_that_json_has_no_word_for_is_refused_and_not_left_out(part):
    with pytest.raises(ConfigError, match=r"checkpoint: state\.groups\.1 is a .*cannot hold"):
        freeze({"groups": [0.1, part]})


def test_what_is_a_list_or_a_tuple_by_another_name_comes_back_as_one():
    skeleton, tensors = freeze([torch.Size([2, 3]), torch.zeros(2)])
    assert thaw(json.loads(json.dumps(skeleton)), tensors)[0] == (2, 3)


def test_a_key_that_would_not_be_read_back_is_refused_when_it_is_written():
    with pytest.raises(ConfigError, match=r"state\.seen has the key \(1, 2\)"):
        freeze({"seen": {(1, 2): 3}})


def test_tensors_whose_keys_spell_one_path_are_both_kept():
    state = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(2), 0: torch.ones(3), "0": torch.ones(4)}
    skeleton, tensors = freeze(state)
    back = thaw(json.loads(json.dumps(skeleton)), tensors)
    assert [len(back["a"]["b"]), len(back["a.b"]), len(back[0]), len(back["0"])] == [1, 2, 3, 4]


def test_each_tensor_is_put_where_the_old_one_was_or_else_where_the_parameters_are():
    gpu, cpu = torch.zeros(2, device="meta"), torch.zeros(2)
    old = [ErrorFeedbackState(gpu, (cpu, [gpu])), None, {"a": cpu}]
    new = [ErrorFeedbackState(cpu, (cpu, [cpu])), (cpu, 3), {"a": cpu, "b": cpu}]
    found = placed(old, new, torch.device("meta"))
    (residual, (own, (last,))), (later, number), held = found
    assert [t.device.type for t in (residual, own, last, later)] == ["meta", "cpu", "meta", "meta"]
    assert (number, held["a"].device.type, held["b"].device.type) == (3, "cpu", "meta")
    assert type(found[0]) is ErrorFeedbackState


def test_two_kinds_of_one_name_are_refused():
    other = type("ErrorFeedbackState", (tuple,), {"_fields": ()})
    with pytest.raises(AssertionError, match="two kinds of state"):
        checkpointed(other)
    assert checkpointed(ErrorFeedbackState) is ErrorFeedbackState


@pytest.mark.parametrize(
    "skeleton",
    [
        None,
        5,
        "state",
        [],
        {},
        {"tensor": "missing"},
        {"tensor": 3},
        {"value": [1]},
        {"kind": "Unregistered", "fields": {"x": {"value": 1}}},
        {"kind": "ErrorFeedbackState", "fields": {"residual": {"value": 1}}},
        {"kind": "ErrorFeedbackState", "fields": []},
        {"dict": [1]},
        {"dict": [["key"]]},
        {"dict": [[["no key"], {"value": 1}]]},
        {"list": {"value": 1}},
        {"list": [{"tuple": [{"nothing": 1}]}]},
    ],
)
def test_a_skeleton_that_freeze_did_not_write_is_refused(skeleton):
    with pytest.raises(PacketError, match="checkpoint:"):
        thaw(skeleton, {})


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (torch.zeros(2), torch.zeros(3), r"state is torch\.float32\[3\]"),
        (torch.zeros(2), torch.zeros(2).double(), "float64"),
        ([torch.zeros(2), 1], [torch.zeros(2)], "state has 1 entries"),
        ([1, (2, [torch.zeros(1)])], [1, (2, [torch.zeros(2)])], r"state\.1\.1\.0"),
        (ErrorFeedbackState(torch.zeros(1), ()), ErrorFeedbackState(torch.zeros(2), ()), r"state\.residual"),
        (ErrorFeedbackState(torch.zeros(1), ()), (torch.zeros(1), ()), "was it another method"),
        (None, 5, "state is int"),
        (Flight([], 1, None), 5, "state is int"),
    ],
)
def test_a_state_of_another_shape_is_refused_naming_the_first_place(old, new, where):
    with pytest.raises(PacketError, match=where):
        like(old, new)


def test_a_flight_may_be_there_or_not():
    flight: Any = Flight([torch.zeros(1)], 3, None)
    like([None], [flight])
    like([flight], [None])
    like([flight], [flight])
