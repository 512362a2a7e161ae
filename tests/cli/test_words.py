"""What the command line says: methods in full, progress in one line, and remarks about a run that has ended."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from laconic import __version__, aggregate, compress, exchange, sync
from laconic.cli import progress
from laconic.cli.describe import describe, describe_part, listing, parts, price
from laconic.cli.remarks import interrupted, remarks
from laconic.errors import ConfigError
from laconic.methods import CHOICES, METHODS
from laconic.recipe import Recipe

LINE = {"step": 50, "tokens": 12_345_678, "seconds": 12.3, "loss": 2.345678, "bytes_out": 98_765_432}


def test_the_command_is_a_module_too_and_says_its_version():
    asked = [sys.executable, "-m", "laconic", "--version"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == f"laconic {__version__}\n"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_in_full_has_its_six_choices_its_settings_its_price_and_its_source(name):
    told = describe(name, 10**6, 2)
    for choice in CHOICES:
        assert f"\n  {choice} " in told
    for setting, default in METHODS[name].defaults.items():
        line = next(line for line in told.splitlines() if line.startswith(f"  {setting} ") and str(default) in line)
        assert len(line.split(maxsplit=2)) == 3, f"{name}: {setting} is not explained"
    assert METHODS[name].source in told
    assert "cannot be priced" not in told
    assert "1.05M parameters, 2 workers" in told or "1.00M parameters, 2 workers" in told


def test_a_method_in_full_tells_who_talks_to_whom_among_so_many_workers_with_the_settings_given():
    told = describe("d-psgd", 10**5, 16, {"graph": "torus"})
    assert "among 16  graph torus: 4 messages a round out of each; spectral gap 0.4" in told
    assert any(line.split()[:2] == ["graph", "torus"] for line in told.splitlines()), "the setting as it was given"
    with pytest.raises(ConfigError, match="no edge joins workers 0, 1 with workers 2, 3"):
        describe("d-psgd", 10**5, 4, {"graph": "0-1,2-3"})


def test_the_price_is_what_the_method_itself_sends():
    assert "4.00 MB a step out of each" in price("ddp", 10**6, 2)
    assert "2.00 MB a step" in price("ddp-half", 10**6, 2)
    assert "0 B a step" in price("alone", 10**6, 2)


def test_a_price_is_that_of_the_steps_to_come_and_beside_it_what_the_first_ones_cost():
    # A quarter of the entries in DGC's first step, one in a thousand after its warm-up.
    assert price("dgc", 10**7, 2).endswith("54.5 kB a step out of each, 11.0 MB at first")
    assert price("post-local-sgd", 10**7, 2).endswith("2.50 MB a step out of each, 40.0 MB at first, 40.0 MB at once")
    for name in ("ddp", "diloco", "streaming-diloco", "co2"):
        assert "at first" not in price(name, 10**7, 2)


def test_the_list_has_a_line_for_each_method():
    lines = listing().splitlines()
    for name, method in METHODS.items():
        assert any(line.startswith(name) and line.endswith(method.summary) for line in lines)


def followed(monkeypatch, width, terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=width, no_color=True, legacy_windows=False)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.following(Recipe("shakespeare", "streaming-diloco", steps=100)) as watch:
        watch("streaming-diloco")(LINE | {"seconds_waiting": 9.9})
    return screen.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_one_whole_line_of_loss_tokens_bytes_and_waiting(width, monkeypatch):
    drawn = followed(monkeypatch, width, terminal=True)
    for part in ("streaming-diloco", "loss 2.346", "1.00M tokens/s", "8.03 MB/s", "waiting 80%"):
        assert part in drawn, drawn
    assert "…" not in drawn


def several(monkeypatch, terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, no_color=True, legacy_windows=False)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.following(Recipe("shakespeare", steps=100), runs=4) as watch:
        for name in ("ideal", "streaming-diloco every=50 seed 1", "noloco"):
            follow = watch(name)
            follow(LINE | {"seconds_waiting": 9.9})
    return screen.getvalue()


def test_of_several_runs_a_line_says_how_many_have_ended_and_each_ended_one_stands_above_it(monkeypatch):
    drawn = several(monkeypatch, terminal=True)
    assert "in all" in drawn
    for ended in range(3):
        assert f"{ended} of 4 runs" in drawn
    assert "to go" in drawn
    assert "streaming-diloco every=50 seed 1 loss 2.346" in drawn  # by its whole name, once it has ended
    assert "3 of 4 runs" not in drawn  # the last was cut short


def test_several_runs_without_a_terminal_are_a_line_each(monkeypatch):
    assert [line.split("  ")[0].split(" loss")[0] for line in several(monkeypatch, terminal=False).splitlines()] == [
        "ideal",
        "streaming-diloco every=50 seed 1",
        "noloco",
    ]


def test_without_a_terminal_progress_is_one_line_when_the_run_has_ended(monkeypatch):
    assert followed(monkeypatch, 80, terminal=False) == (
        "streaming-diloco  loss 2.346  1.00M tokens/s  8.03 MB/s  waiting 80%\n"
    )


def summary(folder, **changes):
    plain = {"workers": 2, "steps": 20, "bytes_out": 1000, "seconds": 10.0, "seconds_waiting": 1.0}
    (folder / "summary.json").write_text(json.dumps(plain | changes))
    return folder


def test_a_run_that_never_exchanged_is_told_so_and_what_to_set(tmp_path):
    (told,) = remarks(summary(tmp_path, bytes_out=0), Recipe("adult", "diloco"))
    assert told.startswith("The workers exchanged nothing in these 20 steps: each trained by itself, because diloco")
    assert "--set every=" in told
    assert remarks(summary(tmp_path, bytes_out=0), Recipe("adult", "alone")) == []
    assert remarks(summary(tmp_path, bytes_out=0, workers=1), Recipe("adult", "diloco")) == []


def test_a_run_that_mostly_waited_is_told_how_to_find_a_way_that_waits_less(tmp_path):
    (told,) = remarks(summary(tmp_path, seconds_waiting=8.3), Recipe("adult", "ddp", link="20mbit", workers=2))
    assert "83% of their time waiting" in told
    assert told.endswith("laconic compare adult --workers 2 --link 20mbit")
    assert remarks(summary(tmp_path), Recipe("adult", "ddp")) == []


def test_an_interruption_before_a_checkpoint_promises_no_resuming(tmp_path):
    assert "before the first checkpoint" in interrupted(tmp_path, 2)
    for worker in range(2):
        (tmp_path / "checkpoint" / "step-000000004").mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkpoint" / "step-000000004" / f"worker-{worker}.safetensors").touch()
    assert interrupted(tmp_path, 2).endswith(f"laconic train --resume {tmp_path}")


def test_the_parts_are_listed_with_a_sentence_and_what_a_compressor_sends():
    listed = parts()
    for room in (compress, exchange, aggregate, sync):
        for name in room.__all__:
            if name[0].islower():
                assert re.search(rf"^  {name} +(\d+\.\d\d  )?\S.{{15,}}", listed, re.MULTILINE), name
    assert re.search(r"^  identity +32\.00 ", listed, re.MULTILINE)


def test_a_part_in_full_says_how_it_is_called_what_it_sends_and_what_it_can():
    said = describe_part("random_k")
    assert said.startswith("random_k(density=0.01")
    assert "0.32 bits for a float32 entry" in said
    assert "added in flight" in said
    assert "arXiv:1809.07599" in said
    assert ":func:" not in describe_part("error_feedback")
    with pytest.raises(ConfigError, match="did you mean 'topk'"):
        describe_part("tpk")
