"""Feeds wrong packets to every compressor: ``python tests/fuzz/decompress.py --packets 1000000``.

Two engines. ``mutate`` needs nothing: packet number i is a pure function of the seed and i, so that a defect is found
again by its number (``--first``). ``atheris`` lets the coverage of laconic's own code say which packets are worth
mutating further (the extra ``fuzz``; ``--keep`` gives it a folder for its corpus and what it finds).
"""

from __future__ import annotations

import argparse
import faulthandler
import mmap
import os
import platform
import random
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLOSELY = 8  # every so manieth packet is fed with an eye on each allocation, and to the plain forms too
BATCH = 1024  # packets between looks at the clock
SLOT = struct.Struct("<q")


def main() -> int:
    """Run an engine and print what came of it; 1 if there was a defect."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=("mutate", "atheris"), default="mutate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first packet (mutate)")
    parser.add_argument("--only", help="one compressor alone, by its name in the table")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop after so many, wherever it is")
    parser.add_argument("--keep", type=Path, help="a folder for the corpus and what is found (atheris)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    return atheris_engine(args) if args.engine == "atheris" else mutate_engine(args)


def targets(only: str | None) -> list[Any]:
    """Every compressor and nesting of the conformance tests and the golden files, with good packets."""
    import torch

    from tests.compress.test_conformance import EVERY
    from tests.fuzz.harness import feed, target
    from tests.fuzz.mutate import body_of, sealed
    from tests.golden.make import SETTINGS

    torch.set_num_threads(1)
    found = [target(name, build) for name, build in (EVERY | SETTINGS).items() if only in (None, name)]
    for each in found:  # and what is compiled on first use is compiled before memory is held short
        for seed in each.seeds:
            feed(each.compressor, sealed(body_of(seed)))
    return found


class Tally:
    """Counts by compressor, and the clock."""

    def __init__(self, every: list[Any], minutes: float, wanted: int) -> None:
        self.rows = {each.name: [0, 0, 0, 0] for each in every}
        self.slowest = dict.fromkeys(self.rows, 0.0)
        self.start, self.end = time.perf_counter(), time.perf_counter() + 60 * minutes
        self.wanted, self.count = wanted, 0

    def add(self, name: str, end: int, seconds: float) -> None:
        """One more packet."""
        self.rows[name][end] += 1
        self.slowest[name] = max(self.slowest[name], seconds)
        self.count += 1

    def over(self) -> bool:
        """Whether the packets or the minutes are used up."""
        return self.count >= self.wanted or (self.count % BATCH == 0 and time.perf_counter() > self.end)

    def report(self, engine: str) -> None:
        """Print the table."""
        seconds = time.perf_counter() - self.start
        frame, shape, parts, decoded = (sum(column) for column in zip(*self.rows.values(), strict=True))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{'compressor':44} {'packets':>9} {'frame':>8} {'shape':>8} {'parts':>8} {'decoded':>8} {'slowest':>9}")
        for name, row in self.rows.items():
            counts = " ".join(f"{n:8}" for n in row)
            print(f"{name[:44]:44} {sum(row):9} {counts} {1000 * self.slowest[name]:6.1f} ms")
        print(
            f"{engine}: {self.count} packets in {seconds:.0f} s, {self.count / seconds:.0f} a second; refused by the "
            f"frame {frame}, by the shape {shape}, by the compressor {parts}; decoded {decoded}; 0 defects; "
            f"peak {peak:.0f} MiB; Python {platform.python_version()}, {platform.machine()}"
        )
        sys.stdout.flush()


def mutate_engine(args: argparse.Namespace) -> int:
    """Feed packets in a process of its own, so that a crash of it can be told with the packet's number."""
    shared = mmap.mmap(-1, SLOT.size)
    every = targets(args.only)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _mutate(every, args, shared)
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        (number,) = SLOT.unpack(shared[:])
        print(f"signal {os.WTERMSIG(status)} at packet {number}: {_again(args, number)}")
        return 1
    return os.waitstatus_to_exitcode(status)


def _mutate(every: list[Any], args: argparse.Namespace, shared: mmap.mmap) -> int:
    from tests.fuzz.harness import Defect, feed, limits
    from tests.fuzz.mutate import mutated

    tally = Tally(every, args.minutes, args.packets)
    number, found = args.first, 0
    with limits() as begin:
        while not tally.over():
            if number % BATCH == 0:
                faulthandler.dump_traceback_later(120, exit=True)  # a hang inside of compiled code hears no signal
            each = every[number % len(every)]
            raw = mutated(random.Random(f"{args.seed}/{number}"), each.seeds)
            shared[:] = SLOT.pack(number)
            begin()
            start = time.process_time()
            try:
                end = feed(each.compressor, raw, close=number // len(every) % CLOSELY == 0)
            except Defect as defect:
                print(f"defect in {each.name} at packet {number}: {defect}\n  {_again(args, number)}")
                found += 1
                if found == 20:
                    break
                end = 0
            tally.add(each.name, end, time.process_time() - start)
            number += 1
    faulthandler.cancel_dump_traceback_later()
    if not found:
        tally.report("mutate")
    return min(found, 1)


def _again(args: argparse.Namespace, number: int) -> str:
    only = f" --only {args.only!r}" if args.only else ""
    return f"python tests/fuzz/decompress.py --seed {args.seed} --first {number} --packets 1{only}"


def atheris_engine(args: argparse.Namespace) -> int:
    """Let atheris choose: the first byte of an input names the compressor, the rest is what stands behind the frame."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not here: pip install 'laconic[fuzz]', or leave --engine out")
    with atheris.instrument_imports(include=["laconic"], exclude=["laconic.kernels"]):
        import laconic.compress  # noqa: F401
    every = targets(args.only)
    from laconic.errors import PacketError
    from laconic.packet import from_bytes
    from tests.fuzz.harness import feed
    from tests.fuzz.mutate import body_of, sealed, taken_apart, wrong

    keep = args.keep or Path(tempfile.mkdtemp(prefix="laconic-fuzz-"))
    corpus = keep / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for i, each in enumerate(every):
        for j, seed in enumerate(each.seeds):
            (corpus / f"seed-{i}-{j}").write_bytes(bytes([i]) + body_of(seed))
    tally = Tally(every, args.minutes, args.packets)

    def one(data: bytes) -> int:
        each = every[(data[0] if data else 0) % len(every)]
        start = time.process_time()
        end = feed(each.compressor, sealed(data[1:]), close=tally.count % CLOSELY == 0)
        tally.add(each.name, end, time.process_time() - start)
        if tally.over():
            tally.report("atheris")
            os._exit(0)  # the engine has no other way to stop that lets us speak
        return -1 if end == 0 else 0  # what cannot be read leads nowhere: not worth mutating further

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(8) == 0:
            number = rng.randrange(len(every))
            seeds = every[number].seeds
            return (bytes([number]) + wrong(rng, rng.choice(seeds), seeds)[0])[:max_size]
        if data and rng.randrange(8):
            try:
                (packet,) = from_bytes(sealed(data[1:]))
            except PacketError:
                pass
            else:
                return (data[:1] + wrong(rng, taken_apart(packet), every[data[0] % len(every)].seeds)[0])[:max_size]
        return atheris.Mutate(data, max_size)

    flags = ["-max_len=65536", "-timeout=10", "-rss_limit_mb=4096", f"-seed={args.seed + 1}", "-verbosity=0"]
    argv = [sys.argv[0], *flags, f"-artifact_prefix={keep}/", str(corpus)]
    atheris.Setup(argv, one, custom_mutator=mutator)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
