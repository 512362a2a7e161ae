"""``laconic bounds``: what a computation must move between fast and slow memory, and how long that takes at least."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any

import typer

from laconic.errors import ConfigError

MOST_VALUES = 1 << 14  # of a graph that is scheduled value by value
BYTES = 4


def bounds(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="matmul, attention, adam, sum or chain")],
    size: Annotated[
        float, typer.Argument(metavar="SIZE", help="rows; tokens; parameters; values of a sum; length of a chain")
    ],
    fast: Annotated[str, typer.Option("--fast", help="fast memory, such as 20MB")] = "1MB",
    head: Annotated[int, typer.Option("--head", help="width of an attention head")] = 64,
    word: Annotated[int, typer.Option("--word", help="bytes of a number")] = BYTES,
    words: Annotated[int, typer.Option("--words", help="of a sum or chain: how many numbers fit at once")] = 4,
    gap: Annotated[
        float, typer.Option("--gap", help="of a sum or chain: steps of computing that moving a word costs")
    ] = 4,
    flops: Annotated[str, typer.Option("--flops", help="that the machine reaches, such as 20tflops")] = "",
    memory_bandwidth: Annotated[
        str, typer.Option("--memory-bandwidth", help="bytes a second of the slow memory: 50GB; of a disk: 2GB")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """Say what a computation must move between fast and slow memory, and the seconds that no machine goes below.

    Products, attention and Adam's step by their formulas; a sum or a chain as a graph, with the greedy schedule of
    red-blue pebbling between its two bounds.

    \b
      laconic bounds matmul 8192 --fast 20MB --flops 20tflops --memory-bandwidth 900GB
      laconic bounds adam 7e9 --memory-bandwidth 2GB              an optimizer whose states are on a disk
      laconic bounds sum 32 --words 6 --gap 4
    """
    kinds: dict[str, Callable[..., dict[str, Any]]] = {
        "matmul": _matmul, "attention": _attention, "adam": _adam, "sum": _graph, "chain": _graph,
    }  # fmt: skip
    if what not in kinds:
        raise ConfigError(f"bounds: {what!r} is none of {', '.join(kinds)}")
    if not 1 <= size <= 1e15 or word < 1 or head < 1 or words < 1 or not 0 <= gap < math.inf:
        raise ConfigError(
            "bounds: SIZE is from 1 to 1e15, --word, --head and --words are at least 1, and --gap from 0 on"
        )
    if what in ("sum", "chain"):
        if flops or memory_bandwidth:
            raise ConfigError(
                f"bounds: a {what} is counted in steps; --flops and --memory-bandwidth are for the others"
            )
        told = _graph(what, int(size), words, gap)
    else:
        told = _seconds(kinds[what](size, _room(fast, word), word, head), flops, memory_bandwidth)
    typer.echo(json.dumps(told, indent=1) if as_json else "\n".join(_page(told)))


def _room(fast: str, word: int) -> int:
    from laconic.cli.plan import parse_size

    return max(4, int(parse_size(fast) / word))


def _matmul(size: float, room: int, word: int, head: int) -> dict[str, Any]:
    from laconic.plan.io_bounds import matmul_least, matmul_room, matmul_tiled

    n, tile = int(size), min(int(size), math.isqrt(room))
    while matmul_room(tile) > room and tile > 1:
        tile -= 1
    return {
        "what": f"a product of two {n} x {n} matrices",
        "operations": 2.0 * n**3,
        "least_bytes": word * matmul_least(n, room),
        "usual_bytes": word * matmul_tiled(n, tile),
        "usual": f"tiles of {tile}",
    }


def _attention(size: float, room: int, word: int, head: int) -> dict[str, Any]:
    from laconic.plan.io_bounds import attention_blocked, attention_plain

    blocked, plain = attention_blocked(int(size), head, room), attention_plain(int(size), head)
    return {
        "what": f"attention of {int(size)} tokens, one head of {head}",
        "operations": 4.0 * size**2 * head,
        "least_bytes": word * 4.0 * size * head,  # queries, keys and values in, results out
        "usual_bytes": word * min(blocked, plain),
        "usual": "in blocks" if blocked < plain else "scores written and read",
    }


def _adam(size: float, room: int, word: int, head: int) -> dict[str, Any]:
    from laconic.plan.io_bounds import adam_bytes

    moved = adam_bytes(int(size), word)
    return {
        "what": f"a step of Adam of {size:,.0f} parameters",
        "operations": 12.0 * size,  # about: two moments, a root, a division and the step
        "least_bytes": moved,
        "usual_bytes": moved,
        "usual": "each state once",
    }


def _seconds(told: dict[str, Any], flops: str, memory_bandwidth: str) -> dict[str, Any]:
    from laconic.cli.plan import parse_size
    from laconic.plan.cluster import parse_flops
    from laconic.plan.io_bounds import least_seconds

    if not flops and not memory_bandwidth:
        return told
    rate = parse_flops(flops) if flops else math.inf
    bandwidth = parse_size(memory_bandwidth) if memory_bandwidth else math.inf
    work = told["operations"]
    least, usual = (least_seconds(work, rate, told[key], bandwidth) for key in ("least_bytes", "usual_bytes"))
    by = "computing" if work / rate >= told["least_bytes"] / bandwidth else "memory"
    return {**told, "least_seconds": least, "usual_seconds": usual, "bound_by": by}


def _graph(what: str, size: int, words: int, gap: float) -> dict[str, Any]:
    from laconic.plan.pebbling import at_least, at_most, chain, greedy, reduction, replay

    if size > MOST_VALUES:
        raise ConfigError(f"bounds: a {what} of {size} is too large to schedule; take at most {MOST_VALUES}")
    if what == "sum" and size & (size - 1):
        raise ConfigError(f"bounds: a sum is of 2, 4, 8, … values, got {size}")
    graph = chain(size) if what == "chain" else reduction(size.bit_length() - 1)
    cost = replay(graph, 1, words, greedy(graph, 1, words))
    return {
        "what": f"a {what} of {size}, room for {words} words",
        "least_steps": at_least(graph, 1, gap),
        "greedy_steps": cost.total(gap),
        "most_steps": at_most(graph, gap),
        "loads": cost.loads,
        "stores": cost.stores,
    }


def _page(told: dict[str, Any]) -> list[str]:
    from laconic.bench import units

    if "least_steps" in told:
        return [
            f"{told['what']}: at least {told['least_steps']:,g} steps, at most {told['most_steps']:,g}",
            f"the greedy schedule takes {told['greedy_steps']:,g}, with {told['loads']} loads, {told['stores']} stores",
        ]
    least, usual = units.size(told["least_bytes"]), units.size(told["usual_bytes"])
    lines = [
        f"{told['what']}: {told['operations']:.3g} operations",
        f"at least {least} in and out; {told['usual']}: {usual}",
    ]
    if "least_seconds" in told:
        least, usual = units.duration(told["least_seconds"]), units.duration(told["usual_seconds"])
        lines.append(f"at least {least}, bound by {told['bound_by']}; {told['usual']}: {usual}")
    return lines
