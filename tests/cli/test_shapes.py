"""``laconic shapes``: a table with reasons, one JSON object, and sentences for what cannot be cut."""

import json

import pytest

MODEL = ("--layers", 24, "--hidden", 2304, "--heads", 24, "--batch", 512)
HOSTS = (
    "--hosts",
    "4x8",
    "--flops",
    "218tflops",
    "--memory",
    "80GB",
    "--inside",
    "2400gbit,5us",
    "--link",
    "200gbit,5us",
)


def test_it_says_seconds_memory_bytes_and_why(laconic):
    status, out, err = laconic("shapes", *MODEL, *HOSTS, "--peak", "312tflops", "--memory-bandwidth", "1700GB")
    assert status == 0, err
    for word in ("p=1 t=1 d=32 b=1", "step", "tokens/s", "peak", "memory", "work", "group", "GB"):
        assert word in out, word
    assert "% computing" in out
    assert "Next is" in out
    assert "more shapes fit and are slower" in out
    assert "shapes will not do" in out


def test_the_json_is_one_object_whose_terms_add_up(laconic):
    status, out, err = laconic("shapes", *MODEL, *HOSTS, "--json", "--keep", 3)
    assert status == 0, err
    told = json.loads(out)
    assert len(told["shapes"]) == 3
    for one in told["shapes"]:
        assert sum(one["terms"].values()) == pytest.approx(one["step_seconds"])
        assert one["memory"]["taken"] <= one["memory"]["limit"] == pytest.approx(72e9)
        assert one["shape"]["pipeline"] * one["shape"]["tensor"] * one["shape"]["data"] == 32
        assert one["tokens_per_second"] == pytest.approx(512 * 2048 / one["step_seconds"])
    assert all(one["why"] for one in told["refused"])


def test_a_shipped_cluster_will_do(laconic):
    small = ("--layers", 10, "--hidden", 512, "--heads", 8, "--batch", 40, "--sequence", 256)
    status, out, err = laconic("shapes", *small, "--cluster", "aws10", "--json", "--keep", 2)
    assert status == 0, err
    first = json.loads(out)["shapes"][0]
    assert sorted(first["machines"]) != first["machines"]  # placed by what their links carry
    assert set(first["bytes"]) == {"inside machines", "inside groups", "between groups"}


def test_all_that_is_refused_is_shown_when_asked_for(laconic):
    _, some, _ = laconic("shapes", *MODEL, *HOSTS)
    _, every, _ = laconic("shapes", *MODEL, *HOSTS, "--refused")
    assert "stages are more than 24 layers" in every
    assert len(every.splitlines()) > len(some.splitlines())


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), "name a --cluster, or equal --hosts"),
        (("--cluster", "aws10", "--hosts", "2x2"), "and not both"),
        (("--cluster", "aws10", "--memory", "80GB"), "--memory describes --hosts"),
        (("--hosts", "two"), "write it as 16x8"),
        (("--hosts", "2x8", "--flops", "1tflops", "--memory", "80GB", "--inside", "8gbit"), "needs --link as well"),
        ((*HOSTS, "--memory", "80"), "is no size"),
        ((*HOSTS, "--memory", "1GB", "--flops", "1tflops"), "fits nowhere"),
        ((*HOSTS, "--recompute", "some"), "recompute is one of none, selective, full"),
        ((*HOSTS, "--heads", 7), "7 heads do not divide"),
        ((*HOSTS, "--keep", 0), "--keep must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_sentence(laconic, argv, told):
    status, out, err = laconic("shapes", *MODEL, *argv)
    assert status == 2
    assert told in " ".join(err.split())
    assert "Traceback" not in out + err


def test_it_says_whether_compressing_tensor_messages_pays(laconic):
    slow = (*HOSTS[:4], "--memory", "40GB", "--inside", "100gbit,5us", "--link", "10gbit,5us")
    wide = ("--layers", 8, "--hidden", 8192, "--heads", 64, "--batch", 64)
    status, out, err = laconic("shapes", *wide, *slow, "--json", "--code", 0.25, "--code-speed", "400GB")
    assert status == 0, err
    told = json.loads(out)
    assert told["shapes"][0]["shape"]["tensor"] > 1
    assert told["code"]["pays"]
    _, out, _ = laconic("shapes", *wide, *slow, "--code", 0.25, "--code-speed", "1GB")
    assert "Sending 0.25 of the values of its tensor messages does not pay: the message takes only" in out
    _, out, _ = laconic("shapes", *MODEL, *HOSTS, "--code", 0.25, "--code-speed", "1GB")
    assert "does not pay: p=1 t=1 d=32 b=8 has none" in out
    for argv in (("--code", 0.25), ("--code", 2, "--code-speed", "1GB")):
        status, _, err = laconic("shapes", *MODEL, *HOSTS, *argv)
        assert (status, "--code is a share from 0 to 1" in err) == (2, True)
