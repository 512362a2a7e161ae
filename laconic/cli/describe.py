"""What a method is, in words and in bytes."""

from __future__ import annotations

import re

import torch

from laconic.bench import units
from laconic.errors import LaconicError
from laconic.links import memory
from laconic.links.base import Link
from laconic.methods import METHODS, get

WIDTH = 1024


def listing() -> str:
    """Every method, a line each."""
    width = max(map(len, METHODS))
    lines = [f"{name:<{width}}  {method.summary}" for name, method in METHODS.items()]
    return "\n".join([*lines, "", "laconic methods NAME shows one in full."])


def describe(name: str, parameters: int, workers: int) -> str:
    """One method: its six choices, settings with defaults, wire cost, price on a model of this size, and source."""
    method = get(name)
    lines = [f"{name}: {method.summary}", ""]
    lines += [f"  {choice:<9} {answer}" for choice, answer in method.choices.items()]
    if method.defaults:
        lines += ["", "settings (laconic train … --set name=value)"]
        said = _sentences(method.make.__doc__ or "")
        lines += [
            f"  {key:<13} {default!s:<11} {said.get(key, '')}".rstrip() for key, default in method.defaults.items()
        ]
    lines += ["", f"wire      {method.wire}", f"          {price(name, parameters, workers)}"]
    lines += [f"source    {method.source}", f"page      docs/methods/{name}.md"]
    return "\n".join(lines)


def price(name: str, parameters: int, workers: int) -> str:
    """Bytes that a worker sends a step, found by running the method on ``meta`` tensors: no data, no arithmetic."""
    method = get(name)
    period = method.defaults.get("every", 1)
    shape = (max(1, parameters // WIDTH), WIDTH)
    layers = max(1, method.defaults.get("fragments", 1))

    def run(link: Link) -> tuple[int, int]:
        params = {
            f"blocks.{i}.weight": torch.empty((max(1, shape[0] // layers), WIDTH), device="meta") for i in range(layers)
        }
        values = list(params.values())
        sync = method.make()
        state = sync.init(params)
        steps = period if sync.after_step else 1
        largest = 0
        for _ in range(steps):
            before = link.meter.bytes_out
            if sync.after_backward is not None:
                _, state = sync.after_backward(values, state, link)
            if sync.after_step is not None:
                _, state = sync.after_step(values, state, link)
            link.start(lambda: None).result()
            largest = max(largest, link.meter.bytes_out - before)
        return link.meter.bytes_out // steps, largest

    try:
        mean, peak = memory.run(workers, run)[0]
    except (LaconicError, RuntimeError, NotImplementedError) as error:
        return f"(cannot be priced without data: {error})"
    told = f"{units.count(parameters)} parameters, {workers} workers: {units.size(mean)} a step out of each"
    if name == "dgc":
        return told + " (the first step of its warm-up)"
    return told + (f", {units.size(peak)} at once" if period > 1 else "")


def _sentences(doc: str) -> dict[str, str]:
    """The ``name: what it is;`` entries of a method's docstring; ``a, b, c: as ddp's`` speaks for all three."""
    body = " ".join(doc.split("\n\n", 1)[-1].split())
    found = {}
    for part in re.split(r";\s+", body):
        names, colon, sentence = part.partition(":")
        if colon:
            for name in names.split(","):
                found[name.strip()] = sentence.strip().rstrip(".")
    return found
