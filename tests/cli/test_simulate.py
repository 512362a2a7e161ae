"""Simulated runs from the command line: more workers than cores, Ctrl-C, and what is refused in words."""

import json

import pytest

from tests.cli.ctrl_c import ctrl_c
from tests.here import MINE, lines


@pytest.mark.processes
def test_ways_are_compared_among_more_workers_than_this_machine_has_cores(laconic, tmp_path):
    status, out, err = laconic(
        *("compare", MINE, "--methods", "ddp,noloco", "--workers", 34, "--simulate", "--cluster", "aws10"),
        *("--tokens", 34 * 8 * 12, "--step-seconds", 0.05, "--set", "noloco.every=4", "--json", "--out", "both"),
    )
    assert status == 0, err
    comparison = json.loads(out)
    assert comparison["measured_on"] == "simulated"
    assert comparison["link"] == "aws10"
    assert comparison["ideal"]["step_seconds"] == pytest.approx(0.05)
    ddp, noloco = comparison["methods"]
    assert ddp["steps"] == noloco["steps"] == 12
    assert ddp["seconds"] > noloco["seconds"] > 12 * 0.05
    assert "of the no-network ideal's steps a second" in comparison["verdict"]
    assert (tmp_path / "both" / "01-ddp" / "metrics-33.jsonl").exists()
    assert (tmp_path / "both" / "report.html").exists()


@pytest.mark.processes
def test_ways_are_compared_for_so_many_steps_of_a_falling_rate(laconic, tmp_path):
    words = ("compare", MINE, "--methods", "ddp,topk", "--simulate", "--step-seconds", 0.01)
    status, out, err = laconic(*words, "--steps", 9, "--schedule", "cosine", "--warmup", 3, "--json", "--out", "both")
    assert status == 0, err
    comparison = json.loads(out)
    assert comparison["steps"] == 9
    assert [method["steps"] for method in comparison["methods"]] == [9, 9]
    assert 'schedule = "cosine"' in (tmp_path / "both" / "01-ddp" / "recipe.toml").read_text()
    status, _, err = laconic(*words, "--tokens", 900, "--schedule", "cosine", "--out", "other")
    assert status == 2
    assert "say how many with steps" in err


@pytest.mark.processes
def test_ctrl_c_keeps_a_simulation_and_resume_goes_on_with_it(laconic, tmp_path):
    metrics = tmp_path / "run" / "metrics.jsonl"
    words = ("--workers", 4, "--simulate", "--link", "20mbit,5ms", "--steps", 1_000_000, "--step-seconds", 0.01)
    with ctrl_c(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
        status, out, _ = laconic("train", MINE, *words, "--out", "run")
    assert status == 130
    assert "Interrupted; the run is kept. Go on with: laconic train --resume run" in out
    assert "a step computes for 10.0 ms, as step_seconds says" in out
    step = lines(metrics)[-1]["step"]
    status, out, err = laconic("train", "--resume", "run", "--steps", step + 10)
    assert status == 0, err
    assert [line["step"] for line in lines(metrics)] == list(range(1, step + 11))
    seconds = [line["seconds"] for line in lines(metrics)]
    assert seconds == sorted(seconds)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["stopped"] is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--simulate", "--on", "group"), "--simulate trains on simulated links, and --on group on others"),
        (("--simulate", "--flops", "20"), "flops '20' is no speed; write operations a second, such as 20gflops"),
        (("--simulate", "--cluster", "asw10"), "unknown cluster 'asw10'; did you mean 'aws10'?"),
        (("--simulate", "--cluster", "aws10", "--link", "20mbit"), "both say what the links are; give one"),
        (("--flops", "20gflops"), "flops is for simulated machines; real ones take the time they take"),
        (("--cluster", "none.toml", "--simulate"), "none.toml: cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_sentence(laconic, words, told):
    for command in ("train", "compare"):
        status, out, err = laconic(command, "fashion", *words)
        assert status != 0
        assert told in err, (command, out, err)
        assert "Traceback" not in err
