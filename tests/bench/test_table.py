import io
import math

import pytest
from rich.console import Console

from laconic.bench.table import columns, comparison_table, note, plain_method, subtitle

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


@pytest.mark.parametrize("width", [100, 80])
def test_of_several_seeds_the_lowest_and_the_highest_stand_below_the_mean_and_still_fit(width):
    ranges = {"eval_loss": [1.623, 1.655], "reached_seconds": [17.25, 19.5]}
    ways = [METHOD | {"name": f"streaming-diloco every={n}", "spread": ranges, "runs": [{}] * 3} for n in (50, 250)]
    same = {"eval_loss": [1.6312, 1.6313]}  # as far as it is shown
    never = METHOD | {"name": "noloco", "spread": same, "reached_seconds": None, "reached_runs": 2, "runs": [{}] * 3}
    text = rendered({**COMPARISON, "seeds": [0, 1, 2], "methods": [*ways, never]}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("1.623–1.655") == text.count("17.2 s–19.5 s") == 2
    assert "2 of 3 seeds" in text
    for whole in ("1.631", "2.49M", "1,217", "60.0 s", "13.4 MB", "18.0 s, 3.3×"):
        assert whole in text
    words = " ".join(text.split())
    assert "means of 3 seeds (0, 1, 2), below them the lowest and the highest where they differ" in words
    assert "over 100%: the machine was quicker then than while the ideal was measured" in words


@pytest.mark.parametrize("width", [100, 80])
def test_how_far_a_step_was_from_its_prediction_is_a_column_where_there_was_one(width):
    predicted = {"step_seconds": 0.04}
    text = rendered({**COMPARISON, "methods": [METHOD | {"name": "dgc", "predicted": predicted}, METHOD]}, width)
    assert max(map(len, text.splitlines())) <= width
    assert "+23%" in next(line for line in text.splitlines() if "dgc" in line)  # 60 s for 1217 steps
    assert "off plan: how much longer a step took than was predicted" in " ".join(text.split())
    assert "off plan" not in " ".join(rendered(COMPARISON, width).split())


def test_what_is_not_finished_and_what_failed_is_said_below_the_table():
    told = note({"methods": [METHOD], "unfinished": ["03-noloco"], "failed": ["dgc: worker 1: the loss is nan"]})
    assert told == ("not finished: 1 run; go on with laconic compare --resume; failed: dgc: worker 1: the loss is nan")


def test_an_ideal_measured_several_times_says_how_far_apart_they_were():
    steps = [{"step_seconds": 0.05}, {"step_seconds": 0.04}]
    told = note({"ideal": {"steps_per_second": 22.0, "measured": steps}, "methods": []})
    assert told == "ideal: no network at all, 22.0 steps/s (20.0 to 25.0 in 2 measurements)"


def test_that_the_curves_are_of_fewer_batches_is_said_where_it_makes_a_difference():
    same, other = METHOD | {"curve_loss": 1.631}, METHOD | {"curve_loss": 1.63}
    assert note({"methods": [same]}) == ""
    assert note({"methods": [same, other]}).startswith("plain's loss is asked of the curves, on fewer held-out")


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


def test_a_workload_of_a_file_is_called_by_the_files_name_alone():
    assert subtitle({"workload": "/home/me/mine.py", "workers": 2}) == "mine.py, 2 workers"
    assert subtitle({"workload": "adult", "workers": 2}) == "adult, 2 workers"
