"""What one machine measures by itself."""

import pytest
import torch

from laconic.errors import ConfigError, WorkloadError
from laconic.plan import fitting
from laconic.plan.measured import Measured
from laconic.plan.measured_tables import read_measured, tables_of
from laconic.plan.probing import machine
from laconic.workloads import load

FAILS = """
import torch

def make_model():
    return torch.nn.Linear(2, 1)

def batches(split, worker, workers, seed):
    for number in range(4):
        yield torch.ones(3, 2)

def loss(model, batch):
    return model(batch).mean()
"""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_look_finds_every_part_and_comes_back_from_a_file_as_it_was():
    found = machine.look("adult", {}, ("half", "int8"), seconds=0.2, sharing=2)
    assert found.workload == "adult"
    assert found.memory == machine.memory() / 2
    assert found.step.samples == found.forward.samples == found.backward.samples >= 3
    assert all(
        f + b <= s for f, b, s in zip(found.forward.values, found.backward.values, found.step.values, strict=True)
    )
    assert found.flops == found.operations / found.step.median
    assert found.operations == machine.counted(load("adult", {}))
    assert found.compressors["half"].nbytes == pytest.approx(0.5, abs=1e-3)
    assert found.compressors["int8"].nbytes == pytest.approx(0.25, abs=0.02)
    assert min(found.copy.values) > 1e6
    assert min(found.loopback.values) > 1e6
    raw = tables_of(Measured(machines={"a": found}))
    assert tables_of(read_measured(raw, ["a"])) == raw


def test_timed_sums_are_what_the_rates_of_memory_and_additions_are_fitted_from():
    found = {number: machine.summing(number, 0.3) for number in machine.SUMS}
    gamma, delta = fitting.fit_sums([fitting.Sum(number, 1.0, s.median) for number, s in found.items()])
    for number, seconds in found.items():  # seconds of a byte of each tensor, whatever their number: no other unit fits
        assert 0.2 < ((number - 1) * gamma + (number + 1) * delta) / seconds.median < 5
    assert 1e-12 < gamma + delta < 1e-7  # of 10 MB/s to a TB/s


@pytest.mark.parametrize(("each", "runs", "counted"), [(20.0, 1, 1), (4.0, 2, 1), (2.0, 4, 2), (0.01, 17, 15)])
def test_something_is_timed_fifteen_times_at_most_and_never_begun_beyond_its_time(monkeypatch, each, runs, counted):
    now, calls = [0.0], []

    def run():
        calls.append(1)
        now[0] += each

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now[0])
    assert machine.timed(run, 7.5) == pytest.approx([each] * counted)
    assert len(calls) == runs


def test_what_cannot_be_measured_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'topk'\?"):
        machine.compressing("tokp", 0.1)
    (tmp_path / "mine.py").write_text(FAILS)
    with pytest.raises(WorkloadError, match=r"a training step failed: StopIteration|batches"):
        machine.look(str(tmp_path / "mine.py"), {}, (), 0.1)
    (tmp_path / "none.py").write_text(
        FAILS.replace("torch.nn.Linear(2, 1)", "Bias()").replace(
            "def make_model",
            "class Bias(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        "
            "self.b = torch.nn.Parameter(torch.zeros(2))\n    def forward(self, x):\n        return x + self.b\n\n"
            "def make_model",
        )
    )
    with pytest.raises(ConfigError, match=r"what a machine reaches in training cannot be said by it"):
        machine.look(str(tmp_path / "none.py"), {}, (), 0.1)
