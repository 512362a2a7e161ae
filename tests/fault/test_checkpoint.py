"""Checkpoints: whole or not there, without pickle, and refused in a sentence when they do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from laconic import attach
from laconic.errors import ConfigError, PacketError
from laconic.fault import checkpoint
from laconic.links import memory
from tests import tiny

PROGRESS = {"step": 3, "tokens": 48, "seconds": 1.5, "meter": {}}


def trained(link, method="topk", steps=3, make=tiny.model):
    net = make()
    sync = attach(net, tiny.sgd(net, momentum=0.9), method, link)
    for number in range(steps):
        tiny.step(net, sync, link.rank, number)
    return net, sync


def saved(run, workers=2, step=3, **how):
    def work(link):
        net, sync = trained(link, steps=step, **how)
        checkpoint.save(run, step, net, sync, PROGRESS | {"step": step})
        link.barrier()
        return tiny.weights(net)

    return memory.run(workers, work)


def test_what_is_saved_is_loaded_to_the_bit_with_how_far_the_run_had_come(tmp_path):
    before = saved(tmp_path)

    def work(link):
        net, sync = trained(link, steps=0)
        assert checkpoint.load(tmp_path, 3, net, sync) == PROGRESS
        return tiny.weights(net)

    assert all(map(tiny.equal, memory.run(2, work), before))
    assert checkpoint.progress(tmp_path, 3) == PROGRESS


def test_a_checkpoint_counts_once_every_worker_has_written_its_part(tmp_path):
    assert checkpoint.newest(tmp_path, 2) is None
    saved(tmp_path)
    saved(tmp_path, step=5)
    assert checkpoint.newest(tmp_path, 2) == 5
    assert checkpoint.newest(tmp_path, 3) is None
    part = tmp_path / "checkpoint" / "step-000000005" / "worker-1.safetensors"
    part.rename(part.with_suffix(".part"))  # killed while it wrote
    assert checkpoint.newest(tmp_path, 2) in (3, None)


def test_older_checkpoints_are_dropped_and_what_is_half_written_is_no_reason_to(tmp_path):
    for step in (3, 5):
        saved(tmp_path, step=step)
    (tmp_path / "checkpoint" / "step-000000009").mkdir()
    checkpoint.tidy(tmp_path, 2)
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-000000005", "step-000000009"]


def test_tied_weights_are_written_once_and_come_back_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))[:, :3]

    def make():
        torch.manual_seed(0)
        return Tied().to(torch.float64)

    def work(link):
        net, sync = trained(link, make=make)
        part = checkpoint.save(tmp_path, 3, net, sync, PROGRESS)
        with safe_open(part, framework="pt") as file:
            assert [name for name in file.keys() if name.startswith("model/")] == ["model/a.weight"]  # noqa: SIM118
        other, sync = trained(link, steps=0, make=make)
        checkpoint.load(tmp_path, 3, other, sync)
        assert other.b.weight is other.a.weight
        return tiny.equal(tiny.weights(net), tiny.weights(other))

    assert memory.run(1, work) == [True]


def test_a_view_that_begins_where_its_base_does_is_no_tied_weight(tmp_path):
    class Seen(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.register_buffer("first", self.weight.detach()[:1])

    def make():
        torch.manual_seed(0)
        return Seen().to(torch.float64)

    def work(link):
        net, sync = trained(link, make=make)
        net.first = net.weight.detach()[:1]
        checkpoint.save(tmp_path, 3, net, sync, PROGRESS)
        other, sync = trained(link, steps=0, make=make)
        checkpoint.load(tmp_path, 3, other, sync)
        return tiny.equal([*tiny.weights(net), net.first], [*tiny.weights(other), other.first])

    assert memory.run(1, work) == [True]


def test_a_checkpoint_of_another_model_method_or_number_of_workers_is_refused(tmp_path):
    saved(tmp_path)

    def refuse(link, **how):
        net, sync = trained(link, steps=0, **how)
        before = tiny.weights(net)
        with pytest.raises(ConfigError) as error:
            checkpoint.load(tmp_path, 3, net, sync)
        assert tiny.equal(before, tiny.weights(net)), "nothing is half done"
        return str(error.value)

    def third(link):
        return refuse(link) if link.rank < 2 else trained(link, steps=0)

    wide = lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3)).to(torch.float64)  # noqa: E731
    assert "is of another model" in memory.run(2, lambda link: refuse(link, make=wide))[0]
    assert "the saved method is" in memory.run(2, lambda link: refuse(link, method="ddp"))[1]
    assert "the saved size is 2, here it is 3" in memory.run(3, third)[0]


@pytest.mark.parametrize("damage", ["cut", "header", "empty", "json", "format"])
def test_a_damaged_checkpoint_is_refused_in_a_sentence(damage, tmp_path):
    saved(tmp_path, workers=1)
    part = tmp_path / "checkpoint" / "step-000000003" / "worker-0.safetensors"
    raw = part.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    if damage == "json":
        header["__metadata__"]["laconic"] = "{"
    if damage == "format":
        header["__metadata__"]["laconic"] = json.dumps({"format": 99})
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + raw[8 + length :]
    part.write_bytes({"cut": raw[:-9], "header": b"\xff" * 8 + raw[8:], "empty": b""}.get(damage, whole))

    def work(link):
        net, sync = trained(link, steps=0)
        before = tiny.weights(net)
        with pytest.raises(PacketError, match=r"checkpoint: .*worker-0\.safetensors"):
            checkpoint.load(tmp_path, 3, net, sync)
        return tiny.equal(before, tiny.weights(net))

    assert memory.run(1, work) == [True]
    with pytest.raises(PacketError, match=r"checkpoint: .*worker-0\.safetensors"):
        checkpoint.progress(tmp_path, 3)


def test_a_full_disk_is_told_with_the_file_that_could_not_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ConfigError, match=r"checkpoint: cannot write .*worker-0.*No space left on device"):
        saved(tmp_path, workers=1)
