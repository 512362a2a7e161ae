import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.bench.picture import Scale, apart, ticks, write_picture
from laconic.errors import ConfigError
from tests.bench.test_report import HOSTILE, write_comparison, write_run, write_seeds

SVG = "{http://www.w3.org/2000/svg}"


def drawn(path):
    root = ElementTree.parse(path).getroot()
    return root, [text.text for text in root.iter(f"{SVG}text")]


def test_the_picture_has_three_panels_a_line_for_each_way_in_each_and_one_legend(tmp_path):
    root, texts = drawn(
        write_picture([write_comparison(tmp_path / "cmp", ["ddp", "diloco"])], tmp_path / "a" / "p.svg")
    )
    assert [text for text in texts if text.startswith("Loss over")] == [
        "Loss over time", "Loss over tokens", "Loss over bytes sent",
    ]  # fmt: skip
    lines = [path.get("stroke") for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.8"]
    assert len(lines) == 6
    assert len(set(lines)) == 2
    assert [texts.count(name) for name in ("ddp", "diloco")] == [1, 1]  # the legend
    assert {"ddp 1.198", "diloco 1.198"} < set(texts)  # at the lines' ends
    assert "where ddp ended" in texts
    assert "2 ways to train on shakespeare" in texts
    assert "shakespeare" not in root.findtext(f"{SVG}desc").split(". ")[1]
    assert "diloco ends at 1.198 after 5.10 s" in root.findtext(f"{SVG}desc")


def test_everything_is_inside_the_picture_and_no_two_names_overlap(tmp_path):
    names = [f"a-method-of-a-long-name every={n}" for n in range(14)]
    root, _ = drawn(write_picture([write_comparison(tmp_path / "cmp", names, step_bytes=1000)], tmp_path / "p.svg"))
    _, _, width, height = map(float, root.get("viewBox").split())
    places = [(float(text.get("x")), float(text.get("y"))) for text in root.iter(f"{SVG}text")]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    ends = sorted(float(text.get("y")) for text in root.iter(f"{SVG}text") if "…" in (text.text or ""))
    assert len(ends) == 14
    assert all(b - a > 13.5 for a, b in itertools.pairwise(ends))


def test_several_seeds_are_drawn_as_their_mean_with_a_band(tmp_path):
    root, texts = drawn(write_picture([write_seeds(tmp_path / "cmp")], tmp_path / "p.svg"))
    assert len([path for path in root.iter(f"{SVG}path") if path.get("fill-opacity")]) == 6  # two ways, three panels
    assert "Lines are means of 3 seeds; bands go from the lowest to the highest." in texts


def test_what_comes_from_files_is_text(tmp_path):
    path = write_picture([write_comparison(tmp_path / "cmp")], tmp_path / "p.svg")
    root, texts = drawn(path)
    assert HOSTILE in texts
    assert {element.tag for element in root.iter()} == {
        f"{SVG}{name}" for name in ("svg", "title", "desc", "rect", "path", "text")
    }
    assert "href" not in path.read_text()


def test_the_same_runs_make_the_same_bytes(tmp_path):
    folder = write_comparison(tmp_path / "cmp")
    a, b = (write_picture([folder], tmp_path / f"{n}.svg").read_bytes() for n in "ab")
    assert a == b


def test_a_loss_that_is_no_number_breaks_the_line(tmp_path):
    folder = write_run(tmp_path / "run", evals=False, loss=lambda n: math.nan if n == 30 else 1 + 1 / n)
    root, _ = drawn(write_picture([folder], tmp_path / "p.svg"))
    assert len([path for path in root.iter(f"{SVG}path") if path.get("stroke-width") == "1.8"]) == 6
    assert "nan" not in (tmp_path / "p.svg").read_text()


def test_what_cannot_be_drawn_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"--picture p\.png: only \.svg is written"):
        write_picture([tmp_path], "p.png")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="none of these runs has a loss to draw"):
        write_picture([tmp_path], tmp_path / "p.svg")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    with pytest.raises(ConfigError, match="none of these runs has a loss to draw"):
        write_picture([tmp_path], tmp_path / "p.svg")  # over nothing


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_a_few_and_inside(low, span):
    found = ticks(Scale(low, low + span, False, 0.0, 1.0))
    assert 1 <= len(found) <= 8
    assert all(low - 1e-6 * span <= value <= low + 1.000001 * span for value in found)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_names_are_moved_apart_in_order_and_stay_inside(places):
    moved = apart(places, 7.0, 0.0, 100.0)
    assert all(-1e-6 <= y <= 100 + 1e-6 for y in moved)
    order = sorted(range(len(places)), key=lambda i: places[i])
    least = min(7.0, 100 / max(1, len(places) - 1))
    assert all(moved[b] - moved[a] >= least - 1e-6 for a, b in itertools.pairwise(order))


def test_names_with_room_stay_where_their_lines_end():
    assert apart([10.0, 50.0, 30.0], 7.0, 0.0, 100.0) == [10.0, 50.0, 30.0]
