"""Text to a nesting: what it may name, and the sentence for what it may not."""

import pytest
import torch

from laconic import aggregate, compress, exchange, sync
from laconic.aggregate import Rule
from laconic.compress import Compressor
from laconic.errors import ClashError, ConfigError
from laconic.exchange import Exchange
from laconic.nesting import bind, chain_of, names, number, read
from laconic.sync import Sync


def test_every_public_function_of_the_four_rooms_can_be_named_and_nothing_else():
    rooms = (compress, aggregate, exchange, sync)
    types = {"Compressor", "Rule", "Exchange", "Sync"}
    assert set(names()) == {name for room in rooms for name in room.__all__} - types


@pytest.mark.parametrize("name", sorted(names()))
def test_every_name_alone_and_with_empty_brackets_is_made_with_its_defaults(name):
    for text in (name, f"{name}()", f" {name} ( ) "):
        assert isinstance(read(text), Compressor | Rule | Exchange | Sync)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "diloco(everyone(error_feedback(topk(0.01))), every=500)",
            "diloco(everyone(error_feedback(topk)), every=500)",
        ),
        ("noloco(pairs(int8(64, stochastic=False)), 25, mixing=0.5)", "noloco(pairs(int8), every=25)"),
        ("every_step(ring(half('fp16')), clip=1.0)", "every_step(ring(half))"),
        ("everyone(topk, weighted_mean(2))", "everyone(topk, weighted_mean)"),
        ("chain(topk(0.1), topk(0.1), e3m0)", "chain(chain(topk, topk), e3m0)"),
        ("warm_up(random_k, 0.01, steps=8)", "warm_up(random_k)"),
        (
            "streaming(every=6, fragments=2, pattern='sequential')",
            "streaming(everyone(identity), every=6, fragments=2, overlap=1, mixing=0.5, pattern=sequential)",
        ),
    ],
)
def test_a_nesting_is_read_as_the_call_it_looks_like(text, name):
    assert read(text).name == name


def test_arguments_arrive():
    packet, _ = read("topk(density=0.5)").compress(torch.arange(8.0), ())
    assert packet.tensors["values"].numel() == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("topq(0.1)", "unknown part 'topq'; did you mean 'topk'"),
        ("dilocco", "did you mean 'diloco'"),
        ("topk(densty=0.1)", "unknown setting of topk 'densty'; did you mean 'density'"),
        ("everyone(compresor=topk)", "did you mean 'compressor'"),
        ("topk(0.1, 0.2)", "topk: too many positional arguments; it takes"),
        ("topk(5)", r"1% is 0\.01"),
        ("topk('a')", "topk: cannot be made with density='a'"),
        ("topk([])", "topk: cannot be made with"),
        ("topk(", "is not a nesting"),
        ("", "is not a nesting"),
        ("topk(0.1) topk", "is not a nesting"),
        ("topk\0", "is not a nesting"),
        ("(" * 500, "is not a nesting"),
        ("-" * 100_000 + "1", "is not a nesting"),
        ("topk(**{'density': 0.5})", "each setting of topk is written once"),
        ("topk(density=0.1, density=0.2)", "each setting of topk is written once"),
        ("topk(*[0.1])", "only names of laconic's functions and constants"),
        ("__import__('os').system('true')", "only names of laconic's functions and constants"),
        ("__import__('os')", "unknown part '__import__'"),
        ("topk(open('x'))", "unknown part 'open'"),
        ("topk(1/0)", "only names of laconic's functions and constants"),
        ("(lambda: 1)()", "only names of laconic's functions and constants"),
        ("compress.topk()", "only names of laconic's functions and constants"),
        ("Compressor()", "unknown part 'Compressor'"),
        ("error_feedback(everyone())", r"compressor is everyone\(identity\) \(exchange\); wanted: compressor"),
        ("chain(topk, everyone())", "wanted: compressor"),
        ("chain(mean)", "compressors is mean \\(rule\\); wanted: compressor"),
        ("pairs(everyone())", "wanted: compressor"),
        ("everyone(mean)", "compressor is mean \\(rule\\); wanted: compressor"),
        ("everyone(combine=topk)", "combine is topk \\(compressor\\); wanted: rule"),
        ("every_step(topk)", "exchange is topk \\(compressor\\); wanted: exchange"),
        ("diloco(every_step())", r"exchange is every_step\(.*\) \(sync\); wanted: exchange"),
        ("topk(identity)", "density is identity \\(compressor\\); wanted: a plain value"),
        ("warm_up(nothing)", "unknown part 'nothing'"),
    ],
)
def test_what_is_no_nesting_is_refused_in_words(text, says):
    with pytest.raises(ConfigError, match=says):
        read(text)


def test_parts_that_clash_keep_their_own_sentence():
    with pytest.raises(ClashError, match="ring: needs summable packets, and topk's are not"):
        read("diloco(ring(topk), every=5)")


def test_a_list_of_compressors_is_a_chain_and_one_is_itself():
    assert chain_of(["topk(0.05)", "int8"]).name == "chain(topk, int8)"
    assert chain_of(["half"]).name == chain_of("half").name == "half"
    with pytest.raises(ConfigError, match="'everyone' is a exchange, wanted a compressor"):
        chain_of(["topk", "everyone"])
    with pytest.raises(ClashError, match="leaves nothing"):
        chain_of(["int8", "topk"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0.5", 0.5),
        ("1e-3", 1e-3),
        ("true", True),
        (" False ", False),
        ("none", None),
        ("['topk', 'int8']", ["topk", "int8"]),
        ("topk(0.1)", "topk(0.1)"),
        ("bf16", "bf16"),
        ("'5'", "5"),
        ("", ""),
    ],
)
def test_a_setting_is_a_number_a_truth_a_list_or_text(text, value):
    got = number(text)
    assert got == value
    assert type(got) is type(value)


def test_bind_says_which_arguments_are_wanted():
    with pytest.raises(ConfigError, match="f: missing a required argument: 'a'; it takes"):
        bind("f", lambda a, b=1: None, [], {})
    assert bind("f", lambda **kw: kw, [], {"any": 1}) == {"any": 1}


def test_true_false_and_none_may_be_written_as_in_a_recipe():
    assert read("int8(stochastic=false)").omega is None
    assert read("int8(stochastic=true)").omega is not None
    assert read("ternary(clip=none)").name == read("ternary(None)").name


@pytest.mark.parametrize("text", ["topk({[]: 1})", "topk(" + "-" * 6000 + "1)"])
def test_text_that_python_itself_cannot_take_is_refused(text):
    with pytest.raises(ConfigError):
        read(text)


def test_an_empty_list_of_compressors_is_refused():
    with pytest.raises(ConfigError, match="the list is empty"):
        chain_of([])
