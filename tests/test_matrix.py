"""Any two choices that may meet do meet in a run that is checked, and the page of all of them is up to date."""

import re
import subprocess
import sys

import pytest

from tests import matrix
from tests.matrix import Cell


def test_any_two_choices_that_may_meet_train_together_and_the_page_says_so():
    """In a process of its own: there the annotations of what is built a thousand times are not compiled each time."""
    command = [sys.executable, matrix.__file__, "--check"]
    done = subprocess.run(command, cwd=matrix.ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d{3,} cells of \d{3,} trained, 0 with faults$", done.stdout, re.MULTILINE)


def test_every_part_of_the_rooms_is_in_the_matrix():
    every = [*matrix.cells(), *matrix.by_themselves()]
    used = {name for cell in every for part in cell for name in re.findall(r"\w+", part)}
    for room in (matrix.compress, matrix.exchange, matrix.sync):
        assert set(matrix.public(room)) <= used


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (Cell("topk", "none", "ring", "diloco"), "needs summable packets"),
        (Cell("topk", "error_feedback", "pairs", "noloco"), "sends whole weights"),
        (Cell("topk", "ef21", "pairs", "noloco"), "sends changes for everyone to add up"),
        (Cell("topk", "momentum_correction", "everyone", "diloco"), "adds momentum, which is for gradients"),
        (Cell("identity", "none", "pairs", "every_step"), "needs the same result on every worker"),
        (Cell("qsgd", "error_feedback", "everyone", "every_step"), "F: C is unbiased with an omega of 5.2"),
        (Cell("topk", "ef21", "everyone", "every_step"), ""),
    ],
)
def test_what_cannot_go_together_is_refused_before_anything_is_sent(cell, says):
    said = matrix.refusals([cell])[cell]
    assert says in said
    assert bool(says) == bool(said)


def test_the_cover_lets_any_two_choices_of_all_cells_meet():
    every = matrix.cells()
    pairs = [
        {(i, c[i], j, c[j]) for c in some for i in range(4) for j in range(i)} for some in (every, matrix.cover(every))
    ]
    assert pairs[0] == pairs[1]
    assert len(matrix.cover(every)) < len(every) / 2


def test_a_fault_is_found():
    """The checks can fail: a record that lacks a tenth of what came out, a run that resumed elsewhere, and so on."""
    cell = Cell("topk", "error_feedback", "everyone", "every_step")
    ran = matrix.train(cell)
    assert matrix.faults(cell, ran) == []
    (key, rounds), *_ = ran[0].rounds.items()
    short = rounds._replace(got=[0.9 * t for t in rounds.got])
    assert "is lost" in matrix.faults(cell, [ran[0]._replace(rounds={key: short}), *ran[1:]])[0]
    assert "resumed" in matrix.faults(cell, [ran[0]._replace(resumed="elsewhere"), *ran[1:]])[0]
    assert "differ" in matrix.faults(cell, [ran[0]._replace(shared="other"), *ran[1:]])[0]
    assert "losses" in matrix.faults(cell, [ran[0]._replace(losses=[float("nan")]), *ran[1:]])[0]
