"""The fuzzer finds what it looks for, and a short run of it finds nothing."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from laconic.compress import identity, topk
from laconic.compress.base import promised
from laconic.errors import PacketError
from laconic.packet import need, to_bytes
from tests.fuzz.harness import Defect, End, feed, limits, target
from tests.fuzz.mutate import body_of, mutated, sealed, taken_apart

SCRIPT = Path(__file__).parent / "decompress.py"


def unchecked(packet):
    return packet.tensors["values"].reshape(packet.header["shape"])


def trusting(packet):
    shape, _ = promised(packet)
    need(packet, "values", (torch.float32,))
    return torch.zeros(shape)[..., None]


def greedy(packet):
    _, numel = promised(packet)
    values = need(packet, "values", (torch.float32,), numel)
    return torch.zeros(numel + (1 << 22))[:numel].add_(values).reshape(promised(packet)[0])


def whole_numbers(packet):
    shape, numel = promised(packet)
    return need(packet, "values", (torch.float32,), numel).long().reshape(shape)


def endless(packet):
    while True:
        pass


def insatiable(packet):
    return torch.zeros(1 << 40)


def refusing(packet):
    raise PacketError("no")


def feed_many(compressor, seeds, begin):
    for i in range(400):
        begin()
        feed(compressor, mutated(Random(i), seeds))


@pytest.mark.parametrize(
    ("decompress", "says"),
    [
        (unchecked, "decompress raised (KeyError|RuntimeError|TypeError)"),
        (trusting, "the packet promised"),
        (greedy, "at most .* are warranted"),
        (whole_numbers, "decoded to torch.int64"),
        (endless, "took more than"),
        (insatiable, "decompress raised RuntimeError.*memory|more memory than there is"),
    ],
)
def test_a_decompress_that_trusts_its_packet_is_found_out(decompress, says):
    broken = identity()._replace(decompress=decompress)
    seeds = target("identity", identity).seeds
    with pytest.raises(Defect, match=says), limits(0.6) as begin:
        feed_many(broken, seeds, begin)


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (lambda packet, into, weight: None, "adds something else"),
        (lambda packet, into, weight: into.add_(packet.tensors["values"]), "add raised RuntimeError"),
        (lambda packet, into, weight: need(packet, "nothing", ()), "add refuses what decompress takes"),
    ],
)
def test_an_add_that_is_not_what_decompress_gives_is_found_out(add, says):
    each = target("topk", lambda: topk(0.5))
    with pytest.raises(Defect, match=says):
        feed(each.compressor._replace(add=add), sealed(body_of(each.seeds[0])))


def test_an_add_that_takes_what_decompress_refuses_is_found_out():
    each = target("topk", lambda: topk(0.5))
    broken = each.compressor._replace(add=lambda packet, into, weight: None, decompress=refusing)
    with pytest.raises(Defect, match="add takes what decompress refuses"):
        feed_many(broken, each.seeds, lambda: None)


def test_good_packets_decode_and_wrong_ones_end_at_every_check():
    each = target("topk", lambda: topk(0.5))
    assert all(feed(each.compressor, sealed(body_of(seed))) is End.DECODED for seed in each.seeds)
    ends = {feed(each.compressor, mutated(Random(i), each.seeds)) for i in range(200)}
    assert ends == set(End)


def test_a_packet_is_a_pure_function_of_its_number():
    seeds = target("topk", topk).seeds
    assert [mutated(Random(f"0/{i}"), seeds) for i in range(50)] == [
        mutated(Random(f"0/{i}"), seeds) for i in range(50)
    ]


def test_the_body_of_a_packet_is_what_to_bytes_writes():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for packet, _ in (topk(0.5).compress(x, ()), identity().compress(x, ())):
        assert sealed(body_of(taken_apart(packet))) == bytes(to_bytes([packet]).numpy())


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.processes
def test_twenty_thousand_wrong_packets_are_refused_or_decode():
    done = run("--packets", "20000", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20000 packets" in done.stdout


@pytest.mark.processes
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install 'laconic[fuzz]'")
def test_the_coverage_guided_engine_runs(tmp_path):
    done = run("--packets", "2000", "--engine", "atheris", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "atheris: 2000 packets" in done.stdout


def test_bytes_that_are_no_message_are_refused():
    for raw in itertools.chain((b"", b"LCNC", bytes(24)), (Random(i).randbytes(i) for i in range(200))):
        assert feed(identity(), raw) is End.FRAME


def test_an_error_that_is_not_ours_is_told_with_its_name():
    def decompress(packet):
        raise PacketError("no") if "values" not in packet.tensors else ZeroDivisionError("by zero")

    seeds = target("identity", identity).seeds
    with pytest.raises(Defect, match="ZeroDivisionError: by zero"):
        feed(identity()._replace(decompress=decompress), sealed(body_of(seeds[0])))
