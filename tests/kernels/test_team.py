"""Loops side by side: by torch's threads or a pool, the same results in the same order, and what fails is raised."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from laconic import kernels


@pytest.fixture(params=["torch's threads", "a pool"])
def two_threads(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(kernels, "_torch_threads", lambda: None)
    elif kernels._torch_threads() is None:
        pytest.skip("this torch does not come with GNU OpenMP")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_every_part_runs_once_and_results_are_in_order(two_threads, parts):
    ran: list[int] = []
    assert kernels.team(lambda part: ran.append(part) or part * part, parts) == [part * part for part in range(parts)]
    assert sorted(ran) == list(range(parts))


def test_two_parts_run_at_once(two_threads):
    both = threading.Barrier(2)
    kernels.team(lambda part: both.wait(timeout=20), 2)  # broken, and raised, if one came after the other


def test_what_a_part_raises_is_raised_and_the_next_team_works(two_threads):
    def run(part: int) -> int:
        if part == 1:
            raise ValueError("the second part")
        return part

    with pytest.raises(ValueError, match="the second part"):
        kernels.team(run, 2)
    assert kernels.team(lambda part: part, 2) == [0, 1]


def test_torch_works_before_within_and_after(two_threads):
    x = torch.arange(200_000.0)
    expected = float(x.sum())
    assert kernels.team(lambda part: float(x.sum()), 2) == [expected, expected]
    assert float(x.sum()) == expected


def test_threads_of_a_program_each_have_a_team(two_threads):
    found: dict[int, list[int]] = {}

    def work(me: int) -> None:
        for _ in range(20):
            found[me] = kernels.team(lambda part: me * 10 + part, 2)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == {me: [me * 10, me * 10 + 1] for me in range(4)}


@pytest.mark.skipif(sys.platform != "linux", reason="only wheels for Linux come with GNU OpenMP")
def test_wheels_for_linux_have_the_threads():
    if "GNU" not in torch.__config__.show() and "OpenMP" not in torch.__config__.show():
        pytest.skip("this torch was built without OpenMP")
    assert kernels._torch_threads() is not None


def test_scratch_is_of_a_thread_and_grows():
    first = kernels.scratch("a test", 10, "f4")
    first[:] = 1
    assert kernels.scratch("a test", 5, "f4").ctypes.data == first.ctypes.data
    assert kernels.scratch("a test", 50, "f4").size == 50
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(kernels.scratch("a test", 5, "f4").ctypes.data))
    thread.start()
    thread.join()
    assert elsewhere[0] != kernels.scratch("a test", 5, "f4").ctypes.data
