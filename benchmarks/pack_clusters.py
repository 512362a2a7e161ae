"""Make the cluster files that ship with the package, from three published tables of links between regions.

    python benchmarks/pack_clusters.py SOURCES [INTO]

``SOURCES`` is a folder that holds ``aws10_dtfm.csv``, ``gcp12_skippipe.csv``, ``bitcoin6_simblock_latency.csv`` and
``bitcoin6_simblock_bandwidth.csv``; one whose sha256 is not the one in ``SHA256`` is refused. The files go to
``laconic/plan/clusters``, or to ``INTO``. What the tables leave open, and what was changed, stands in each file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from pathlib import Path

SHA256 = {
    "aws10_dtfm.csv": "4edb7ba5ef18b380f5f46f74a9a80efe404e531f32d17f2b335ad78c66cd3702",
    "gcp12_skippipe.csv": "8727a138b86c5d6a654ecba042670f0cbd60f7054896966fb26d4cfc67949c22",
    "bitcoin6_simblock_latency.csv": "c3f56247301c839cba550a2a1ad88cd233444d2a53c7671172ddf510fe1ee354",
    "bitcoin6_simblock_bandwidth.csv": "82362ab2b1adb47559672e744aa5aa2955c617c77f25c013eb1cdff4d87ed686",
}
INTO = Path(__file__).resolve().parent.parent / "laconic" / "plan" / "clusters"
MEMORY, FLOPS = 16e9, 20e9
ASSUMED = (
    "The source says nothing of the machines: 16 GB of memory and 20 Gflop/s in training, about one core of a server, "
    "are our assumption."
)
GIB = 2**30


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of a source that has the sha256 we know."""
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise SystemExit(f"{folder / name}: its sha256 is not {SHA256[name]}")
    return list(csv.DictReader(io.StringIO(content.decode())))


def text(
    name: str,
    words: dict[str, str],
    places: list[str],
    bandwidth: dict[tuple[str, str], float],
    latency: dict[tuple[str, str], float],
    own: dict[str, dict[str, float]] | None = None,
) -> str:
    """A cluster file."""
    lines = [f'name = "{name}"', *(f'{key} = "{value}"' for key, value in words.items())]
    for place in places:
        lines += ["", "[[machines]]", f'name = "{place}"', f"memory = {MEMORY:.4g}", f"flops = {FLOPS:.4g}"]
        lines += [f"{key} = {value:.6g}" for key, value in (own or {}).get(place, {}).items()]
    lines += ["", "[between]", "places = [" + ", ".join(f'"{place}"' for place in places) + "]"]
    for key, values in (("bandwidth", bandwidth), ("latency", latency)):
        lines += [f"{key} = [", *(f"  [{', '.join(f'{values[a, b]:.6g}' for b in places)}]," for a in places), "]"]
    return "\n".join(lines) + "\n"


def symmetric(
    rows: list[dict[str, str]], column: str, factor: float, within: float
) -> tuple[list[str], dict[tuple[str, str], float]]:
    """A table of unordered pairs, both ways, with one value within each region."""
    places = list(dict.fromkeys(name for row in rows for name in (row["region_a"], row["region_b"])))
    values = {(place, place): within for place in places}
    for row in rows:
        ends = row["region_a"], row["region_b"]
        values[ends] = values[ends[::-1]] = float(row[column]) * factor
    assert len(values) == len(places) ** 2, "a pair is missing"
    return places, values


def aws(folder: Path) -> str:
    """Ten AWS regions of DT-FM; its delays are round trips."""
    rows = table(folder, "aws10_dtfm.csv")
    places, bandwidth = symmetric(rows, "bandwidth_gbps", 1e9 / 8, 2e9 / 8)
    _, latency = symmetric(rows, "delay_ms", 1e-3 / 2, 10e-3 / 2)
    words = {
        "about": "Ten AWS regions. The table's delays are round trips and were halved. Within a region the source "
        f"assumes 10 ms and 2 Gbit/s. {ASSUMED}",
        "source": "DT-FM, Yuan et al. 2022, arXiv:2206.01288; github.com/DS3Lab/DT-FM",
        "licence": "MIT; LICENSES.md",
    }
    return text("aws10", words, places, bandwidth, latency)


def gcp(folder: Path) -> str:
    """Twelve GCP regions of SkipPipe; its delays are one way, and one bandwidth has slipped by 1024."""
    rows = table(folder, "gcp12_skippipe.csv")
    slipped = [row for row in rows if {row["region_a"], row["region_b"]} == {"NL", "London"}]
    assert [row["bandwidth_GiBps"] for row in slipped] == ["0.00023681640625"], "the slip is not where it was"
    slipped[0]["bandwidth_GiBps"] = "0.2425"
    places, bandwidth = symmetric(rows, "bandwidth_GiBps", GIB, 2 * GIB)
    _, latency = symmetric(rows, "delay_ms", 1e-3, 1e-3)
    words = {
        "about": "Twelve GCP regions. The table's delays are one way. Its bandwidth from NL to London is 1024 times "
        "smaller than its neighbours', a slip of the unit, and stands here as 0.2425 GiB/s. Within a region the source "
        f"assumes 1 ms and 2 GiB/s. {ASSUMED}",
        "source": "SkipPipe, Blagoev et al. 2025, arXiv:2502.19913; github.com/gensyn-ai/skippipe",
        "licence": "MIT; LICENSES.md",
    }
    return text("gcp12", words, places, bandwidth, latency)


def homes(folder: Path) -> str:
    """Six world regions of SimBlock in 2019, home connections; 6 Mbit/s between regions."""
    rates = {row["region"]: row for row in table(folder, "bitcoin6_simblock_bandwidth.csv") if row["year"] == "2019"}
    cap = float(rates.pop("INTER_REGIONAL")["download_bit_per_s"]) / 8
    called = {region: region.replace("_", "-").lower() for region in rates}
    own = {
        called[region]: {"up": float(row["upload_bit_per_s"]) / 8, "down": float(row["download_bit_per_s"]) / 8}
        for region, row in rates.items()
    }
    places = list(own)
    bandwidth = {(a, b): min(own[a]["up"], own[b]["down"]) if a == b else cap for a in places for b in places}
    latency = {
        (called[row["from_region"]], called[row["to_region"]]): float(row["latency_ms"]) * 1e-3
        for row in table(folder, "bitcoin6_simblock_latency.csv")
        if row["year"] == "2019"
    }
    words = {
        "about": "Home connections in six world regions, as measured for Bitcoin nodes in 2019: slower up than down, "
        f"and 6 Mbit/s between regions. The table's latencies are taken as one way, as its simulator does. {ASSUMED}",
        "source": "SimBlock, Aoki et al. 2019, arXiv:1901.09777; github.com/dsg-titech/simblock",
        "licence": "Apache-2.0; LICENSES.md",
    }
    return text("homes6", words, places, bandwidth, latency, own)


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    folder, into = Path(arguments[0]), Path(arguments[1]) if len(arguments) == 2 else INTO
    into.mkdir(parents=True, exist_ok=True)
    for name, make in (("aws10", aws), ("gcp12", gcp), ("homes6", homes)):
        (into / f"{name}.toml").write_text(make(folder))
        print(f"{name}.toml  {(into / f'{name}.toml').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
