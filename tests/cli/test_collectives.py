"""``laconic collectives``: the table, the object, and what it refuses."""

import json

import pytest


def test_plans_are_listed_the_quickest_first_with_their_main_cause(laconic):
    status, out, _ = laconic("collectives", "--workers", "8", "--link", "100mbit", "--bytes", "100MB")
    lines = out.splitlines()
    assert status == 0
    assert lines[0] == "An all-reduce of 100 MB among 8 workers, no sites"
    assert "bytes on the links" in lines[3]
    assert {"ring", "rhd", "cps", "star"} <= {line.split()[0] for line in lines[3:-2]}
    assert lines[-1] == "auto takes rhd."
    _, few, _ = laconic("collectives", "--workers", "8", "--link", "100mbit,50ms", "--bytes", "1kB")
    assert "starts and latency" in few.splitlines()[3]


def test_the_object_has_all_plans_in_order_and_their_terms(laconic):
    _, out, _ = laconic("collectives", "--cluster", "aws10", "--bytes", "1MB", "--json")
    found = json.loads(out)
    seconds = [plan["seconds"] for plan in found["plans"]]
    assert found["workers"] == 10
    assert found["nbytes"] == 1e6
    assert found["auto"] in {plan["plan"] for plan in found["plans"]}
    assert seconds == pytest.approx(sorted(seconds))
    assert {"ring", "rhd", "cps", "gentree", "tree", "doubling"} <= {plan["plan"] for plan in found["plans"]}
    assert all(len(plan["vectors_sent_by_each"]) == 10 and len(plan["terms_in_step"]) == 5 for plan in found["plans"])


def test_what_is_left_out_among_many_workers_is_said(laconic):
    _, out, _ = laconic("collectives", "--workers", "65", "--bytes", "1MiB")
    assert out.splitlines()[0].startswith("An all-reduce of 1.05 MB")
    assert out.splitlines()[-1] == "Left out beyond 64 workers: cps and gentree."
    _, out, _ = laconic("collectives", "--workers", "65", "--json")
    assert json.loads(out)["left_out"] == ["cps", "gentree"]
    assert "Left out" not in laconic("collectives", "--workers", "8")[1]


def test_one_worker_has_nothing_to_send(laconic):
    assert "alone" in laconic("collectives", "--workers", "1")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--bytes", "4"), "write the vector's size, such as 4MB"),
        (("--bytes", "0MB"), "write the vector's size"),
        (("--cluster", "aws10", "--link", "1gbit"), "leave --link and --link-of out"),
        (("--workers", "0"), "at least 1, got 0"),
        (("--workers", "257"), "plans are priced for at most 256 workers, got 257"),
        (("--workers", "100000", "--cluster", "aws10"), "at most 256 workers, got 100000"),
        (("--alpha", "fast"), "is not a time"),
    ],
)
def test_what_it_cannot_price_it_refuses_in_a_sentence(laconic, arguments, says):
    status, _, err = laconic("collectives", *arguments)
    assert status == 2
    assert says in " ".join(err.split())
