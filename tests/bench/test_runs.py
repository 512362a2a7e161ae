import json
import math

import pytest

from laconic.bench.runs import Comparison, Run, read, read_comparison, read_run
from laconic.errors import ConfigError


def step(n, **other):
    return {"step": n, "tokens": 64 * n, "seconds": n / 10, "loss": 3 - n / 10, "bytes_out": 100 * n} | other


def write_run(folder, rows, summary=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_is_read_as_columns_for_each_worker(tmp_path):
    folder = write_run(tmp_path / "run", [step(1), step(2)], {"name": "diloco", "steps": 2})
    (folder / "metrics-10.jsonl").write_text(json.dumps(step(1)) + "\n")
    (folder / "metrics-2.jsonl").write_text(json.dumps(step(1)) + "\n")
    (folder / "evals.jsonl").write_text('{"step": 2, "eval_loss": 1.5}\n')
    (folder / "recipe.toml").write_text('method = "diloco"\n')
    run = read(folder)
    assert isinstance(run, Run)
    assert run.name == "diloco"
    assert list(run.steps) == [0, 2, 10]
    assert run.steps[0]["loss"] == [2.9, 2.8]
    assert run.evals == {"step": [2.0], "eval_loss": [1.5]}
    assert run.recipe == 'method = "diloco"\n'


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_run_cut_short_keeps_its_whole_lines_and_gets_a_summary(tmp_path, cut):
    folder = write_run(tmp_path / "run", [step(1), step(2)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(3))[:cut])
    run = read_run(folder)
    assert run.steps[0]["step"] == [1, 2]
    assert run.summary["steps"] == 2
    assert run.summary["loss"] == 2.8
    assert run.summary["bytes_out"] == 200
    assert run.summary["eval_loss"] is None
    assert run.summary["stopped"] == "stopped early: there is no summary.json, and the last step written is 2"


def test_a_last_line_without_its_newline_counts_when_it_is_whole(tmp_path):
    folder = write_run(tmp_path / "run", [step(1)])
    (folder / "metrics.jsonl").write_text(json.dumps(step(1)))
    assert read_run(folder).steps[0]["step"] == [1]


def test_a_run_that_never_stepped_is_a_run(tmp_path):
    run = read_run(write_run(tmp_path / "run", []))
    assert run.summary["stopped"] == "stopped early: before its first step was written"
    assert run.name == "run"


def test_nan_infinity_null_and_missing_values_survive(tmp_path):
    rows = [step(1, loss=math.nan), step(2, loss=math.inf), step(3, loss=None), {"step": 4}]
    loss = read_run(write_run(tmp_path / "run", rows)).steps[0]["loss"]
    assert loss[1] == math.inf
    assert [math.isnan(x) for x in loss] == [True, False, True, True]


def test_a_folder_that_is_no_run_says_what_is_missing(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is no run: metrics.jsonl is missing .*this one has notes.txt"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        read(tmp_path / "gone")
    with pytest.raises(ConfigError, match="is a file; give the run's folder"):
        read_run(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"comparison.json is missing"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a comparison and not one run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{oops}", "no JSON object"),
        ("[1]", "a JSON object was expected"),
        ('{"loss": "low"}', "'loss' must be a number"),
    ],
)
def test_a_line_that_cannot_be_understood_is_named_by_file_and_line(tmp_path, line, says):
    folder = write_run(tmp_path / "run", [step(1)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ConfigError, match=rf"metrics.jsonl, line 3: {says}"):
        read_run(folder)


def test_a_summary_that_cannot_be_read_is_named_by_file_and_line(tmp_path):
    folder = write_run(tmp_path / "run", [step(1)])
    (folder / "summary.json").write_text('{\n"name": \n}')
    with pytest.raises(ConfigError, match=r"summary.json, line 3: no JSON"):
        read_run(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"summary.json: a JSON object was expected, this is a list"):
        read_run(folder)


def test_a_comparison_has_its_methods_runs_in_order_even_after_it_was_moved(tmp_path):
    write_run(tmp_path / "a", [step(1)], {"name": "ddp"})
    methods = [{"name": "ddp", "folder": "/was/elsewhere/a"}, {"name": "dgc", "folder": "b"}]
    (tmp_path / "comparison.json").write_text(json.dumps({"methods": methods}))
    comparison = read(tmp_path)
    assert isinstance(comparison, Comparison)
    assert comparison.runs[0].folder == tmp_path / "a"
    assert comparison.runs[1] is None
    assert comparison.missing == ["dgc: its run's folder 'b' is not there"]


@pytest.mark.parametrize("methods", [None, {}, [3], [{"steps": 1}]])
def test_a_comparison_without_named_methods_is_refused(tmp_path, methods):
    (tmp_path / "comparison.json").write_text(json.dumps({"methods": methods}))
    with pytest.raises(ConfigError, match='"methods" must be a list of objects, each with a "name"'):
        read(tmp_path)
