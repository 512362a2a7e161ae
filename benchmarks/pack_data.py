"""Pack the workloads' data into the package, from the files their makers publish.

    python benchmarks/pack_data.py SOURCES [INTO]

``SOURCES`` is a folder that holds, at any depth, ``input.txt`` (Tiny Shakespeare), ``a9a.txt``, ``a9a.t`` and
``mushrooms.txt`` (LIBSVM), and the four ``*-ubyte.gz`` files of Fashion-MNIST. A source whose sha256 is not the one in
``SHA256`` is refused. The packed files go to ``laconic/workloads/data``, or to ``INTO``; what they are is said in
``laconic/workloads/data/LICENSES.md``.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np

SHA256 = {
    "input.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "a9a.txt": "f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906",
    "a9a.t": "1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
    "mushrooms.txt": "f39a4eb628dc61a7d43760815b061c9e497aa728ce1ad8bde57a09ef6043b538",
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
DATA = Path(__file__).resolve().parent.parent / "laconic" / "workloads" / "data"


def source(folder: Path, name: str) -> bytes:
    """The bytes of the file ``name`` under ``folder`` that has the sha256 we know."""
    found = sorted(folder.rglob(name))
    for path in found:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == SHA256[name]:
            return content
    seen = f"{len(found)} files of that name there have another sha256" if found else "no file of that name is there"
    raise SystemExit(f"{folder}: needs {name} with sha256 {SHA256[name]}; {seen}")


def pack_shakespeare(folder: Path, into: Path) -> None:
    """The text as it is, gzipped without a time stamp, so that packing again gives the same bytes."""
    text = source(folder, "input.txt")
    (into / "shakespeare.txt.gz").write_bytes(gzip.compress(text, 9, mtime=0))


def pack_fashion(folder: Path, into: Path, train: int = 1200, test: int = 200) -> None:
    """The first ``train`` and ``test`` images of each class, in the official order, in 16 levels of grey.

    Each pixel becomes ``round(pixel / 17)``, 0 to 15; 17 times that is within 8 of the pixel. All 256 levels would
    take 6.1 MB where this takes 2.9 MB, and learning does not notice (LICENSES.md has the numbers).
    """
    arrays = {}
    for split, prefix, each in (("train", "train", train), ("eval", "t10k", test)):
        labels = np.frombuffer(gzip.decompress(source(folder, f"{prefix}-labels-idx1-ubyte.gz")), np.uint8, offset=8)
        pixels = np.frombuffer(gzip.decompress(source(folder, f"{prefix}-images-idx3-ubyte.gz")), np.uint8, offset=16)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(10)]))
        arrays[f"{split}_levels"] = ((pixels.reshape(-1, 28, 28)[chosen].astype(np.uint16) + 8) // 17).astype(np.uint8)
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(into / "fashion.npz", **arrays)


def pack_adult(folder: Path, into: Path) -> None:
    """All rows of both files: each row's features that are 1, at most 14, as bytes; unused places hold 0."""
    arrays = {}
    for split, name in (("train", "a9a.txt"), ("eval", "a9a.t")):
        rows = [line.split() for line in source(folder, name).decode().splitlines()]
        places = np.zeros((len(rows), 14), np.uint8)
        for i, (_, *entries) in enumerate(rows):
            assert all(entry.endswith(":1") for entry in entries), f"{name}, line {i + 1}: a feature is not binary"
            places[i, : len(entries)] = [int(entry[:-2]) for entry in entries]
        arrays[f"{split}_places"] = places
        arrays[f"{split}_labels"] = np.array([row[0] == "+1" for row in rows], np.uint8)
    np.savez_compressed(into / "adult.npz", **arrays)


def pack_mushrooms(folder: Path, into: Path) -> None:
    """All rows: each row's 21 features that are 1, as bytes, and whether its label is 1 (2 otherwise)."""
    rows = [line.split() for line in source(folder, "mushrooms.txt").decode().splitlines()]
    assert all(len(row) == 22 and all(entry.endswith(":1") for entry in row[1:]) for row in rows)
    places = np.array([[int(entry[:-2]) for entry in row[1:]] for row in rows], np.uint8)
    labels = np.array([row[0] == "1" for row in rows], np.uint8)
    np.savez_compressed(into / "mushrooms.npz", places=places, labels=labels)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    folder, into = Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else DATA
    into.mkdir(parents=True, exist_ok=True)
    for pack in (pack_shakespeare, pack_fashion, pack_adult, pack_mushrooms):
        pack(folder, into)
    for path in sorted([*into.glob("*.gz"), *into.glob("*.npz")]):
        content = path.read_bytes()
        print(f"{path.name}  {len(content):,} bytes  sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
