"""Make the cluster files that ship with the package from published topologies: silos (GML) and GPU hosts (NCCL's XML).

    python benchmarks/pack_topologies.py SOURCES [INTO]

``SOURCES`` is a folder that holds, at any depth, ``gaia.gml``, ``geantdistance.gml``, ``p4d-24xl-topo.xml`` and
``ndv5-topo.xml``; one whose sha256 is not the one in ``WAYS`` is refused. The files go to ``laconic/plan/clusters``, or
to ``INTO``. What a source leaves open, and what is assumed, stands in each file's ``about``.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

from laconic.plan.importing import Assumed, imported
from laconic.plan.writing import write_cluster

INTO = Path(__file__).resolve().parent.parent / "laconic" / "plan" / "clusters"
SILOS = "Marfoq et al. 2020, arXiv:2010.12229; github.com/omarfoq/communication-in-cross-silo-fl"


class Way(NamedTuple):
    """A file, its sha256, what is assumed beside it, and where it is from."""

    file: str
    sha256: str
    assumed: Assumed
    source: str
    licence: str


WAYS = {
    "gaia11": Way(
        "gaia.gml",
        "8ae5bb6a4bb6676e8e79184273b20e6fa92d961dd1f4bc08b9c65af0f18119c2",
        Assumed(),
        SILOS,
        "Apache-2.0; LICENSES.md",
    ),
    "geant40": Way(
        "geantdistance.gml",
        "51fa3a65a900a7397992ce64dbf28f47a6e3e7ae4bc67ea4539050ad9d2785e1",
        Assumed(bandwidth=1e9 / 8),
        SILOS,
        "Apache-2.0; LICENSES.md",
    ),
    "p4dx2": Way(
        "p4d-24xl-topo.xml",
        "052ee408bc12acd7f91349b098d37dae9bbef852f6676ce6feb61148952a6cad",
        Assumed(nic=12.5e9, nvlink=12 * 20e9, hosts=2),
        "two p4d.24xlarge of AWS; github.com/aws/aws-ofi-nccl",
        "Apache-2.0; LICENSES.md",
    ),
    "ndv5x2": Way(
        "ndv5-topo.xml",
        "c26ff47f1decf03d44ee6e90c4a8afd3bddeec334c5545008f33af2a297e2834",
        Assumed(memory=80e9, flops=0.4 * 989e12, nic=50e9, nvlink=18 * 20.6e9, hosts=2),
        "two ND H100 v5 of Azure; github.com/Azure/azhpc-images",
        "MIT; LICENSES.md",
    ),
}


def main(arguments: list[str]) -> None:
    """Write the files."""
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    folder, into = Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else INTO
    into.mkdir(parents=True, exist_ok=True)
    for name, way in WAYS.items():
        found = sorted(folder.rglob(way.file))
        if not found or hashlib.sha256(found[0].read_bytes()).hexdigest() != way.sha256:
            raise SystemExit(f"{folder}: no {way.file} in it whose sha256 is {way.sha256}")
        raw = imported(found[0], way.assumed)
        tables = {key: raw.pop(key) for key in ("machines", "between")}
        write_cluster(
            into / f"{name}.toml", raw | {"name": name, "source": way.source, "licence": way.licence} | tables
        )
        print(f"{name}.toml  {(into / f'{name}.toml').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
