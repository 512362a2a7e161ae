"""Writes golden packets: ``python tests/golden/make.py`` those that are missing, with names those again.

A golden file is a message of two packets: what the compressor makes of :func:`tensor`, and what that decodes to. Either
call writes the table of packets in ``docs/wire.md`` anew.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "wire.md"
SHAPE = (12, 20)
BEGIN, END = "<!-- packets: python tests/golden/make.py -->\n", "<!-- end of packets -->\n"
sys.path.insert(0, str(HERE.parents[1]))

from laconic import compress  # noqa: E402
from laconic.compress import Compressor  # noqa: E402
from laconic.packet import CODES, Packet, from_bytes, to_bytes  # noqa: E402

# Settings that write other bytes than the defaults do, each under the name of its file.
SETTINGS: dict[str, Callable[[], Compressor]] = {
    "topk-0.5": lambda: compress.topk(0.5),
    "half-fp16": lambda: compress.half("fp16"),
    "int8-block-7": lambda: compress.int8(7),
    "chain-random_k-e3m0": lambda: compress.chain(compress.random_k(0.2), compress.e3m0(4)),
    "ef21-dense": lambda: compress.ef21(start="dense"),
    "fp8-e5m2": lambda: compress.fp8("e5m2", 32),
    "natural-8": lambda: compress.natural(8),
    "qsgd-3-max": lambda: compress.qsgd(3, 64, "max"),
    "sign-none": lambda: compress.sign("none"),
    "sign-l2-block-16": lambda: compress.sign("l2", 16),
    "random_k-run-1": lambda: compress.random_k(0.1, run=1),
    "chunked_topk-0.2-32": lambda: compress.chunked_topk(0.2, 32),
    "dct-whole": lambda: compress.dct(0.1, 0),
    "autoencoder-4": lambda: compress.autoencoder(4),
}
# These multiply matrices, whose last bits depend on the machine: their values are compared by size and not by bits.
ROUNDED = {"dct", "dct-whole", "dct_topk", "low_rank", "autoencoder", "autoencoder-4"}


def cases() -> dict[str, Callable[[], Compressor]]:
    """Every golden file's compressor."""
    public = {name: getattr(compress, name) for name in compress.__all__ if name != "Compressor"}
    return public | SETTINGS


def tensor() -> Tensor:
    """What is compressed: multiples of 1/64 under 4, whose sums and squares are exact in any order."""
    i = torch.arange(SHAPE[0] * SHAPE[1])
    return (((37 * i * i + 11 * i) % 509 - 254) / 64).reshape(SHAPE)


def written(name: str) -> bytes:
    """What the golden file of that name holds if it is made now."""
    compressor = cases()[name]()
    x = tensor()
    packet, _ = compressor.compress(x, compressor.init(x))
    back = compressor.decompress(packet)
    return bytes(to_bytes([packet, Packet({"tensor": back.reshape(-1)}, {"shape": list(SHAPE)})]).numpy())


def path(name: str) -> Path:
    """Where it lies."""
    return HERE / f"{name}.bin"


def table() -> str:
    """A row for every public compressor: what its golden packet holds, and what its docstring says of the wire."""
    rows = ["| compressor | its header | its tensors | bytes | |", "| --- | --- | --- | --- | --- |"]
    for name, build in cases().items():
        if name in SETTINGS:
            continue
        packet, _ = from_bytes(path(name).read_bytes())
        header = json.dumps({k: v for k, v in packet.header.items() if k != "shape"}, separators=(",", ":"))
        tensors = ", ".join(f"`{n}` {CODES[t.dtype]}[{t.numel()}]" for n, t in packet.tensors.items())
        rows.append(f"| `{name}` | `{header}` | {tensors} | {packet.nbytes} | {_wire(build)} |")
    return "\n".join(rows) + "\n"


def _wire(build: Callable[[], Compressor]) -> str:
    """The paragraph ``Wire`` of a docstring, as one line of a table."""
    found = re.search(r"^Wire\S*:\s+(.*?)(?=^\S|\n\n|\Z)", inspect.getdoc(build) or "", re.MULTILINE | re.DOTALL)
    text = " ".join(found[1].split()) if found else "what it wraps writes"
    text = re.sub(r":(?:func|class|mod):`~?([\w.]+)`", r"`\1`", text).replace("``", "`")
    return text.replace("|", "\\|")


def page(text: str) -> str:
    """The page with its table made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


def main(names: list[str]) -> None:
    """Write the files and the table."""
    unknown = set(names) - set(cases())
    if unknown:
        sys.exit(f"no compressor or setting is called {', '.join(sorted(unknown))}; there are {', '.join(cases())}")
    for name in names or [name for name in cases() if not path(name).exists()]:
        path(name).write_bytes(written(name))
        print(f"wrote {path(name).name}")
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
