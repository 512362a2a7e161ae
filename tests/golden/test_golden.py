"""What was once written can be read, and what is written now is the same."""

import re
from pathlib import Path

import pytest
import torch

from laconic.packet import from_bytes
from tests.golden import make

NAMES = sorted(make.cases())
every = pytest.mark.parametrize("name", NAMES)


def stored(name):
    """The message in the golden file of that name."""
    assert make.path(name).exists(), (
        f"tests/golden/{name}.bin is missing: once the packets of {name} are as they shall stay, make it with "
        f"`python tests/golden/make.py {name}` and commit it with docs/wire.md"
    )
    return from_bytes(make.path(name).read_bytes())


def alike(name, a, b):
    if name in make.ROUNDED and a.is_floating_point():
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    else:
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@every
def test_a_stored_packet_decodes_to_the_stored_tensor(name):
    packet, wanted = stored(name)
    back = make.cases()[name]().decompress(packet)
    assert back.shape == make.SHAPE
    alike(name, back.reshape(-1), wanted.tensors["tensor"])


@every
def test_what_is_written_now_is_what_is_stored(name):
    again = f"if that is meant, raise packet.VERSION and run `python tests/golden/make.py {name}`"
    (was, _), (now, _) = stored(name), from_bytes(make.written(name))
    assert now.header == was.header, again
    assert [(n, t.dtype, t.shape) for n, t in now.tensors.items()] == [
        (n, t.dtype, t.shape) for n, t in was.tensors.items()
    ], again
    for tensor_name, t in now.tensors.items():
        alike(name, t, was.tensors[tensor_name])
    if name not in make.ROUNDED:
        assert make.written(name) == make.path(name).read_bytes(), again


def test_every_golden_file_belongs_to_a_compressor():
    assert {path.stem for path in Path(make.HERE).glob("*.bin")} == {*NAMES, "message"}


def test_the_table_of_packets_in_the_docs_is_the_one_that_is_made_now():
    text = make.PAGE.read_text()
    assert make.page(text) == text, "run `python tests/golden/make.py` and commit docs/wire.md"


def keys_of(header):
    """Every key of a header, of the headers within it too."""
    return {
        key for key, value in header.items() for key in ({key} | (keys_of(value) if type(value) is dict else set()))
    }


def test_every_header_key_is_explained_and_no_other():
    rows = re.search(r"## What the header keys mean\n(.*?)\n## ", make.PAGE.read_text(), re.DOTALL)[1]
    explained = set(re.findall(r"^\| `(\S+)` \|", rows, re.MULTILINE))
    used = set().union(*(keys_of(stored(name)[0].header) for name in NAMES))
    assert explained == {key for key in used if not key.endswith("/")}
