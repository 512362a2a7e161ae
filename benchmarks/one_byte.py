"""What fine-tuning by one byte a step reaches, and what it sends and holds, beside ddp.

A nano GPT is trained by ddp on the first half of Shakespeare's text. From those weights it is fine-tuned on the other
half, which is told by its lines in capitals: by ddp and by just-one-byte, with the same workers, batches and number of
batches seen; just-one-byte is given many times the steps of ddp, since its own send next to nothing. Losses are of text
of the second half that neither has seen. Workers are threads on memory links: losses and bytes are those of any link.

With ``--memory`` a process each takes three steps of a model of 10.7 M parameters, and its peak is told.

    python benchmarks/one_byte.py [--steps 400] [--seeds 1] [--only last-layer] [--memory]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from common import heading, workers
from torch import Tensor, nn

from laconic.attached import Attached
from laconic.bench import units
from laconic.links import memory, process_group
from laconic.links.base import Link
from laconic.methods import build
from laconic.train import set_learning
from laconic.workloads import load

WORKERS, ROWS, WINDOW = 2, 16, 64

KINDS = ("whole", "last-layer")
Way = tuple[str, str, dict[str, Any], float, int]  # label, method, settings, learning rate, times the steps
WAYS: dict[str, list[Way]] = {
    "whole": [
        ("ddp, SGD", "ddp", {}, 0.1, 1),
        ("just-one-byte, 1 sample", "just-one-byte", {"samples": 1}, 3e-5, 20),
        ("just-one-byte, 8 samples", "just-one-byte", {"samples": 8}, 3e-4, 10),
        ("just-one-byte, 8 signs", "just-one-byte", {"samples": 8, "directions": "rademacher"}, 3e-4, 10),
    ],
    "last-layer": [
        ("ddp, SGD", "ddp", {}, 0.2, 1),
        ("just-one-byte, 1 sample", "just-one-byte", {"samples": 1}, 3e-3, 20),
        ("just-one-byte, 8 samples", "just-one-byte", {"samples": 8}, 1e-2, 10),
    ],
}


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """The text before; of the other, shouted, what is trained on and what is held out."""
    from laconic.workloads.shakespeare import text

    characters, _, alphabet = text()
    half = len(characters) // 2
    places = {letter: i for i, letter in enumerate(alphabet)}
    shout = torch.tensor([places[letter.upper()] for letter in alphabet])
    after = shout[characters[half:]]
    return characters[:half], after[: int(0.9 * len(after))], after[int(0.9 * len(after)) :]


def windows(characters: Tensor, generator: torch.Generator, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(characters) - WINDOW - 1, (rows,), generator=generator)
    found = characters[starts[:, None] + torch.arange(WINDOW + 1)]
    return found[:, :-1], found[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


@torch.no_grad()
def held_out(model: nn.Module, characters: Tensor) -> float:
    generator = torch.Generator().manual_seed(99)
    return statistics.mean(float(loss_of(model, windows(characters, generator, 64))) for _ in range(8))


def before(seed: int, characters: Tensor, steps: int) -> dict[str, Tensor]:
    """The weights that are fine-tuned."""
    workload = load("shakespeare", {"size": "nano"})
    torch.manual_seed(seed)
    model = workload.make_model()
    optimizer = workload.make_optimizer(model)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, windows(characters, generator, WORKERS * ROWS)).backward()
        optimizer.step()
    return model.state_dict()


def tuned(kind: str, way: Way, start: dict[str, Tensor], data: Any, steps: int, seed: int) -> tuple[float, float, int]:
    """Held-out loss, bytes out of worker 0 in all, and steps."""
    _, method, settings, rate, times = way
    train, held = data
    drawing = threading.Lock()

    def work(link: Link) -> tuple[float, float, int]:
        with drawing:
            model: nn.Module = load("shakespeare", {"size": "nano"}).make_model()
        model.load_state_dict(start)
        chosen = model.head.parameters() if kind == "last-layer" else model.parameters()
        model.requires_grad_(False)
        params = [p.requires_grad_(True) for p in chosen]
        sync = build(method, settings)
        attached = Attached(model, torch.optim.SGD(params, rate), sync, link)
        sent = link.meter.bytes_out
        generator = torch.Generator().manual_seed(1000 * seed + link.rank)
        for _ in range(steps * times):
            batch = windows(train, generator)
            if sync.explore is not None:
                attached.step(lambda batch=batch: loss_of(model, batch))
                continue
            attached.zero_grad()
            loss_of(model, batch).backward()
            attached.step()
        attached.drain()
        return held_out(model, held) if link.rank == 0 else 0.0, link.meter.bytes_out - sent, steps * times

    return memory.run(WORKERS, work, timeout=600.0)[0]


def losses(steps: int, seeds: int, only: str | None, earlier: int) -> None:
    first, train, held = texts()
    for kind in KINDS:
        if only not in (None, kind):
            continue
        rows: dict[str, list[tuple[float, float, int]]] = {"as it was": []}
        for seed in range(seeds):
            start = before(seed, first, earlier)
            model = load("shakespeare", {"size": "nano"}).make_model()
            model.load_state_dict(start)
            rows["as it was"].append((held_out(model, held), 0.0, 0))
            for way in WAYS[kind]:
                rows.setdefault(way[0], []).append(tuned(kind, way, start, (train, held), steps, seed))
        print(f"{kind}\n  {'way':<28}{'steps':>8}{'held-out':>10}{'spread':>9}{'sent in all':>14}{'a step':>10}")
        for label, found in rows.items():
            values = [f[0] for f in found]
            each = units.size(found[0][1] / found[0][2]) if found[0][2] else ""
            print(
                f"  {label:<28}{found[0][2]:>8}{statistics.mean(values):>10.4f}{max(values) - min(values):>9.4f}"
                f"{units.size(found[0][1]):>14}{each:>10}",
                flush=True,
            )


def peak(method: str, batch: int, out: str) -> None:
    """One worker's peak of memory in three steps, over what it had before the model."""
    torch.set_num_threads(1)
    workload = load("shakespeare", {"size": "ten", "batch_size": batch})
    link = process_group("gloo")
    stream = workload.batches("train", link.rank, link.size, 0)
    with torch.no_grad():  # so that what is loaded and compiled on first use is not counted
        small = load("shakespeare", {"size": "nano"})
        small.loss(small.make_model(), next(stream))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = workload.make_model()
    sync = build(method)
    made = workload.make_optimizer(model) if sync.explore is None else torch.optim.SGD(model.parameters(), 1e-6)
    set_learning(made, sync)
    attached = Attached(model, made, sync, link)
    for _ in range(3):
        data = next(stream)
        if sync.explore is not None:
            attached.step(lambda data=data: workload.loss(model, data))
            continue
        attached.zero_grad()
        workload.loss(model, data).backward()
        attached.step()
    attached.drain()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(out).write_text(json.dumps([weights, most - base]))
    link.barrier()


def memories() -> None:
    print(f"  {'way':<20}{'batch':>7}{'weights':>12}{'peak over them':>16}{'in weights':>12}")
    for batch in (8, 64):
        for method in ("ddp", "just-one-byte"):
            weights, most = workers(2, __file__, "peak", method, str(batch))[0]
            print(
                f"  {method:<20}{batch:>7}{units.size(weights):>12}{units.size(most - weights):>16}"
                f"{most / weights:>12.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--before", type=int, default=600, help="steps on the first text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.memory:
        heading("Peak memory of a worker, AdamW in ddp, 10.7 M parameters, 2 workers")
        memories()
        return
    heading(f"Held-out loss after fine-tuning, {WORKERS} workers of {ROWS} windows, {chosen.steps} steps of ddp")
    losses(chosen.steps, chosen.seeds, chosen.only, chosen.before)


if __name__ == "__main__":
    if len(sys.argv) > 4 and sys.argv[1] == "peak":
        peak(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
