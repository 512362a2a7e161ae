import io
import math

import pytest
from rich.console import Console

from laconic.bench.table import columns, comparison_table, plain_method

METHOD = {
    "steps": 1217, "tokens": 2_490_000, "seconds": 60.0, "loss": 1.6, "eval_loss": 1.631, "bytes_out": 13_400_000,
    "messages_out": 9, "seconds_waiting": 1.2, "reached_seconds": 18.0, "speedup": 3.33,
}  # fmt: skip
COMPARISON = {
    "workload": "shakespeare", "workers": 2, "link": "20mbit,30ms", "measured_on": "paced links", "seconds": 60,
    "ideal": {"step_seconds": 0.05, "steps_per_second": 20.0},
    "methods": [
        METHOD | {"name": "ddp", "steps": 120, "eval_loss": 3.123, "reached_seconds": 60.0, "speedup": 1.0},
        METHOD | {"name": "powersgd", "reached_seconds": None, "speedup": None},
        METHOD | {"name": "streaming-diloco", "eval_loss": 1.5},
    ],
}  # fmt: skip


def rendered(comparison, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(comparison))
    return console.export_text()


@pytest.mark.parametrize("width", [100, 80])
def test_a_comparison_fits_the_terminal_with_every_number_whole(width):
    text = rendered(COMPARISON, width)
    assert max(map(len, text.splitlines())) <= width
    row = next(line for line in text.splitlines() if "streaming-diloco" in line)
    assert row.split() == ["streaming-diloco", "1.500", "2.49M", "1,217", "60.0", "s", "13.4", "MB", "2%", "101%",
                           "18.0", "s,", "3.3×"]  # fmt: skip
    assert "not reached" in text
    assert "20.0 steps/s" in text
    assert "…" not in text


def test_the_best_loss_is_bold_and_a_loss_that_is_no_number_is_not_the_best():
    methods = [{"name": "a", "eval_loss": math.nan}, {"name": "b", "eval_loss": 2.0}, {"name": "c", "eval_loss": 3.0}]
    cells = list(comparison_table({"methods": methods}).columns[1].cells)
    assert [(str(cell), cell.style) for cell in cells] == [("NaN", ""), ("2.000", "bold"), ("3.000", "")]


def test_a_column_nobody_has_a_value_for_is_left_out():
    titles = [column.title for column in columns({"methods": [{"name": "a", "loss": 2.0, "steps": 3}]})]
    assert titles == ["Training loss", "Steps"]


def test_no_training_loss_is_called_the_best():
    cells = comparison_table({"methods": [{"name": "a", "loss": 2.0}, {"name": "b", "loss": 1.9}]}).columns[1].cells
    assert [cell.style for cell in cells] == ["", ""]


def test_a_training_loss_among_held_out_ones_is_marked():
    text = rendered({"methods": [{"name": "a", "eval_loss": 2.0}, {"name": "b", "eval_loss": None, "loss": 1.0}]}, 80)
    assert "1.000†" in text
    assert "†: training loss" in text


def test_markup_in_a_name_is_text():
    assert "[red]a[/red]" in rendered({"methods": [{"name": "[red]a[/red]", "loss": 1.0}]}, 80)


def test_the_plain_method_is_the_one_named_so_or_the_one_that_is_once_as_fast():
    assert plain_method(COMPARISON)["name"] == "ddp"
    assert plain_method({**COMPARISON, "plain": "powersgd"})["name"] == "powersgd"
    assert plain_method({"methods": []}) is None


def test_workers_that_differ_show_their_own_loss_and_their_means():
    ways = [METHOD | {"name": "ddp"}, METHOD | {"name": "d-psgd", "local_loss": 2.25, "merged_loss": 2.05}]
    found = next(c for c in columns({"methods": ways}) if "mean" in c.title)
    assert [found.cell(way) for way in ways] == ["–", "2.250 > 2.050"]
    assert not any("their mean" in c.title for c in columns({"methods": ways[:1]}))
    text = " ".join(rendered({"methods": ways}, 80).split())
    assert "loss of the workers' own weights > of their mean: d-psgd 2.250 > 2.050" in text
