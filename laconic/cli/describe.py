"""What a method is, and what a part of one is, in words and in bytes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

from laconic import aggregate, compress, exchange, sync
from laconic.bench import units
from laconic.compress import Compressor
from laconic.errors import unknown
from laconic.links.network import Connection, Network
from laconic.methods import METHODS, build, get
from laconic.plan.job import Job, Step
from laconic.plan.price import price as priced
from laconic.plan.running import UNKNOWN
from laconic.sync.base import among

WIDTH = 1024
TAIL = 40  # steps over which a method is priced that has no period
RATE = 20e6 / 8  # bytes a second, and
STEP = 1.0  # seconds: by these a method chooses that chooses by time
ROOMS = {"compress": compress, "exchange": exchange, "aggregate": aggregate, "sync": sync}
ASKS = {
    "compress": "what the bytes are: one tensor to one packet",
    "exchange": "to whom: my tensors to the group's combination of them",
    "aggregate": "how it is combined",
    "sync": "when, and what is done with the answer",
}


def listing() -> str:
    """Every method, a line each."""
    width = max(map(len, METHODS))
    lines = [f"{name:<{width}}  {method.summary}" for name, method in METHODS.items()]
    return "\n".join([*lines, "", "laconic methods NAME shows one in full."])


def describe(name: str, parameters: int, workers: int, settings: dict[str, Any] | None = None) -> str:
    """One method: its six choices, settings with defaults, wire cost, price on a model of this size, and source."""
    method = get(name)
    sync = build(name, settings)
    lines = [f"{name}: {method.summary}", ""]
    lines += [f"  {choice:<9} {answer}" for choice, answer in method.choices.items()]
    if method.defaults:
        lines += ["", "settings (laconic train … --set name=value)"]
        said = _sentences(method.make.__doc__ or "")
        lines += [
            f"  {key:<13} {value!s:<11} {said.get(key, '')}".rstrip()
            for key, value in (method.defaults | (settings or {})).items()
        ]
    lines += ["", f"wire      {method.wire}", f"          {price(name, parameters, workers, settings)}"]
    if told := among(sync, workers):
        lines += [f"among {workers:<4}{told}"]
    lines += [f"source    {method.source}", f"page      docs/methods/{name}.md"]
    return "\n".join(lines)


def price(name: str, parameters: int, workers: int, settings: dict[str, Any] | None = None) -> str:
    """Bytes that each worker sends a step, found by running the method on ``meta`` tensors: no data, no arithmetic.

    The workers are simulated, with links of ``RATE`` and steps of ``STEP`` seconds: a method that chooses by time has
    the same price on every machine.
    """
    given = get(name).defaults | (settings or {})
    layers = max(1, given.get("fragments", 1))
    rows = max(1, parameters // WIDTH // layers)
    job = Job(name, tuple((f"blocks.{i}.weight", (rows, WIDTH)) for i in range(layers)), 1, 0.0, 0.0)
    network = Network((Connection(RATE, RATE),) * workers, ())
    try:
        found = priced(job, network, [Step(STEP, 0.0)] * workers, name, settings, tail=TAIL, apart=True)
    except UNKNOWN as error:
        return f"(cannot be priced without data: {error})"
    told = f"{units.count(parameters)} parameters, {workers} workers: {units.size(found.bytes_out)} a step out of each"
    if units.size(found.bytes_first) != units.size(found.bytes_out):
        told += f", {units.size(found.bytes_first)} at first"
    return told + (f", {units.size(found.bytes_peak)} at once" if given.get("every", 1) > 1 else "")


def parts() -> str:
    """Every part that a nesting may name, a line each; compressors with the bits that they send for an entry."""
    lines: list[str] = []
    for room, module in ROOMS.items():
        functions = _functions(module)
        lines += [*([""] if lines else []), f"{room}: {ASKS[room]}"]
        for name, function in functions.items():
            cost = f"{_bits(function):>7.2f}  " if room == "compress" else ""
            lines.append(f"  {name:<{max(map(len, functions))}}  {cost}{_first_sentence(function)}")
    shown = "The number is bits sent for a float32 entry of a 1024 x 1024 tensor, at the defaults."
    return "\n".join([*lines, "", shown, "laconic parts NAME shows one in full."])


def describe_part(name: str) -> str:
    """One part: how it is called, what it promises, and for a compressor what it sends and can do.

    Raises: ConfigError for an unknown name, with the nearest.
    """
    every = {n: (room, f) for room, module in ROOMS.items() for n, f in _functions(module).items()}
    if name not in every:
        raise unknown("part", name, every)
    room, function = every[name]
    settings = [str(p).split(":")[0] + f"={p.default!r}" * (p.default is not p.empty) for p in _parameters(function)]
    lines = [f"{name}({', '.join(settings)})", f"  {room}: {ASKS[room]}", ""]
    lines += re.sub(r":(?:func|class|mod|meth):`~?([^`]+)`", r"\1", inspect.getdoc(function) or "").split("\n")
    if room == "compress":
        lines += [
            "",
            f"Sends:  {_bits(function):.2f} bits for a float32 entry of a 1024 x 1024 tensor",
            _can(function()),
        ]
    return "\n".join(lines)


def _can(compressor: Compressor) -> str:
    said = ["may be added in flight (all-reduce)" if compressor.summable else "is gathered or goes in two phases"]
    if compressor.omega is not None:
        said.append(f"unbiased, error at most {compressor.omega(WIDTH * WIDTH):.3g} times the tensor's square")
    elif compressor.delta is not None:
        said.append(f"keeps at least {compressor.delta(WIDTH * WIDTH):.3g} of the tensor's square")
    if compressor.refines:
        said.append("its values can be compressed further by a chain")
    if compressor.momentum:
        said.append("carries momentum itself")
    return f"Can:    {'; '.join(said)}"


def _functions(module: object) -> dict[str, Callable[..., Any]]:
    names = module.__all__  # type: ignore[attr-defined]
    return {n: getattr(module, n) for n in names if inspect.isfunction(getattr(module, n))}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _first_sentence(function: Callable[..., Any]) -> str:
    text = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text)


def _bits(function: Callable[..., Any]) -> float:
    like = torch.empty((WIDTH, WIDTH), device="meta")
    compressor: Compressor = function()
    packet, _ = compressor.compress(like, compressor.init(like))
    return 8 * packet.nbytes / like.numel()


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
