"""``laconic bounds``: bytes, seconds and schedules, and sentences for what is none."""

import json

import pytest

from laconic.plan.io_bounds import matmul_least


def told(laconic, *argv):
    status, out, err = laconic("bounds", *argv, "--json")
    assert status == 0, err
    return json.loads(out)


def test_an_optimizer_on_a_disk_takes_what_the_disk_takes(laconic):
    found = told(laconic, "adam", 7e9, "--memory-bandwidth", "2GB")
    assert found["least_bytes"] == 196e9
    assert found["least_seconds"] == pytest.approx(98.0)
    assert found["bound_by"] == "memory"
    _, out, _ = laconic("bounds", "adam", 7e9, "--memory-bandwidth", "2GB")
    assert "at least 196 GB in and out" in out


def test_a_product_is_bound_by_computing_if_its_fast_memory_is_large(laconic):
    argv = ("matmul", 8192, "--flops", "20tflops", "--memory-bandwidth", "900GB", "--fast")
    large, small = told(laconic, *argv, "20MB"), told(laconic, *argv, "4kB")
    assert (large["bound_by"], small["bound_by"]) == ("computing", "memory")
    assert large["least_bytes"] == 4 * matmul_least(8192, 5_000_000)
    for one in (large, small, told(laconic, "attention", 8192)):
        assert one["least_bytes"] <= one["usual_bytes"]


def test_a_sum_with_too_little_room_moves_more(laconic):
    roomy, tight = (told(laconic, "sum", 32, "--words", words) for words in (7, 6))
    assert (roomy["loads"], roomy["stores"]) == (32, 1)
    assert tight["loads"] + tight["stores"] > 33
    assert tight["least_steps"] <= roomy["greedy_steps"] < tight["greedy_steps"] <= tight["most_steps"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("matrix", 5), "'matrix' is none of matmul, attention, adam, sum, chain"),
        (("sum", 5), "a sum is of 2, 4, 8"),
        (("sum", 4, "--flops", "1tflops"), "a sum is counted in steps"),
        (("chain", 1e6), "too large to schedule; take at most 16384"),
        (("matmul", 0), "SIZE is from 1"),
        (("sum", 8, "--words", 2), "words"),
    ],
)
def test_what_is_no_computation_gets_a_sentence(laconic, argv, sentence):
    status, _, err = laconic("bounds", *argv)
    assert status == 2
    assert sentence in " ".join(err.split())
