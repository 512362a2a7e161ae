"""What compressing costs, in units of one copy of the same tensor, beside torch's own and the plain torch forms.

    python benchmarks/compress_speed.py [--numel 25000000] [--threads 1,2] [--only topk,int8] [--rounds 7]

A copy is ``dst.copy_(src)`` with both allocated, measured before and after each case in the same process: figures are
medians of ratios to the copies beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from common import heading

from laconic import compress, kernels
from laconic.compress.base import accumulate
from laconic.compress.places import decode, encode


def cases(x: torch.Tensor) -> dict[str, tuple[Callable[[], Any], str]]:
    """Each case with what it is to reach."""
    k = x.numel() // 100
    sparse, _ = compress.topk(0.01).compress(x, ())
    into = kernels.zeros(x.shape, x.dtype, x.device)  # as an exchange adds packets up
    places = decode(sparse, x.numel(), k)

    def compressing(compressor: compress.Compressor) -> Callable[[], Any]:
        state = compressor.init(x)
        return lambda: compressor.compress(x, state)

    def decompressing(compressor: compress.Compressor) -> Callable[[], Any]:
        packet, _ = compressor.compress(x, compressor.init(x))
        return lambda: compressor.decompress(packet)

    def feeding_back(compressor: compress.Compressor) -> Callable[[], Any]:
        feedback = compress.error_feedback(compressor)
        state = [feedback.init(x)]

        def run() -> None:
            state[0] = feedback.compress(x, state[0])[1]

        return run

    def mean_of(total: torch.Tensor) -> None:
        accumulate(compress.topk(), sparse, total, 1.0)
        total.div_(2)

    def plain(run: Callable[[], Any]) -> Callable[[], Any]:
        def inside() -> None:
            with kernels.plain():
                run()

        return inside

    return {
        "torch.add of two into a third": (partial(torch.add, x, into, out=torch.empty_like(x)), ""),
        "torch.topk 1 %": (lambda: x.abs().topk(k), ""),
        "topk 1 %": (compressing(compress.topk(0.01)), "3"),
        "topk 1 %, error feedback": (feeding_back(compress.topk(0.01)), "1.5"),
        "topk 1 %, plain": (plain(compressing(compress.topk(0.01))), ""),
        "decompress and add 1 %": (lambda: accumulate(compress.topk(), sparse, into, 1.0), "0.3"),
        "mean of one packet, memory lent again": (lambda: mean_of(kernels.zeros(x.shape, x.dtype, x.device)), ""),
        "mean of one packet, fresh pages": (lambda: mean_of(torch.zeros(x.shape)), ""),
        "code places of 1 %": (lambda: encode(places, x.numel()), "0.3"),
        "read places of 1 %": (lambda: decode(sparse, x.numel(), k), ""),
        "threshold 1 %": (compressing(compress.threshold(0.01)), ""),
        "threshold 1 %, error feedback": (feeding_back(compress.threshold(0.01)), ""),
        "chunked_topk 1 %": (compressing(compress.chunked_topk(0.01)), ""),
        "chunked_topk 1 %, error feedback": (feeding_back(compress.chunked_topk(0.01)), ""),
        "block_topk 1 %": (compressing(compress.block_topk(0.01)), ""),
        "block_topk 1 %, error feedback": (feeding_back(compress.block_topk(0.01)), ""),
        "dct 10 %": (compressing(compress.dct(0.1)), ""),
        "dct 10 %, whole tensor": (compressing(compress.dct(0.1, 0)), ""),
        "dct_topk": (compressing(compress.dct_topk()), ""),
        "count_sketch 10 %": (compressing(compress.count_sketch()), ""),
        "count_sketch 10 %, decompress": (decompressing(compress.count_sketch()), ""),
        "random_k 1 %": (compressing(compress.random_k(0.01)), "0.1"),
        "random_k 1 %, one by one": (compressing(compress.random_k(0.01, run=1)), ""),
        "random_k 1 %, error feedback": (feeding_back(compress.random_k(0.01)), ""),
        **quantisers(compressing, feeding_back, into),
        "int8 to nearest, plain": (plain(compressing(compress.int8(stochastic=False))), ""),
        "int8, plain": (plain(compressing(compress.int8())), ""),
        "sign, plain": (plain(compressing(compress.sign())), ""),
    }


def quantisers(
    compressing: Callable[[compress.Compressor], Callable[[], Any]],
    feeding_back: Callable[[compress.Compressor], Callable[[], Any]],
    into: torch.Tensor,
) -> dict[str, tuple[Callable[[], Any], str]]:
    """Each quantiser compressing, with feedback, decompressing and adding up."""
    made = {
        "int8": (compress.int8(), "1.3"),
        "int8 to nearest": (compress.int8(stochastic=False), "1.3"),
        "int4": (compress.int4(), "1.3"),
        "int4 to nearest": (compress.int4(stochastic=False), "1.3"),
        "sign": (compress.sign(), "1.3"),
        "e3m0": (compress.e3m0(), "1.3"),
        "e3m0 at random": (compress.e3m0(stochastic=True), ""),
        "fp8": (compress.fp8(), ""),
        "fp8 at random": (compress.fp8(stochastic=True), ""),
        "qsgd": (compress.qsgd(), "2"),
        "natural": (compress.natural(), "2"),
        "ternary": (compress.ternary(), "2"),
    }
    found = {}
    for name, (compressor, bound) in made.items():
        found[name] = (compressing(compressor), bound)
        if not compressor.no_feedback and compressor.name != "qsgd":
            found[f"{name}, error feedback"] = (feeding_back(compressor), "2")
        if "nearest" in name or "random" in name:
            continue  # decompressed as the other

        packet = cache(lambda compressor=compressor: compressor.compress(into, compressor.init(into))[0])
        found[f"{name}, decompress"] = (partial(lambda c, p: c.decompress(p()), compressor, packet), "")
        found[f"{name}, add"] = (partial(lambda c, p: accumulate(c, p(), into, 0.0), compressor, packet), "")
    return found


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numel", type=int, default=25_000_000)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--only", default="", help="cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    heading(f"compressing {chosen.numel:,} normal floats")
    x = torch.randn(chosen.numel, generator=torch.Generator().manual_seed(0))
    copied = torch.empty_like(x)
    wanted = [word for word in chosen.only.split(",") if word]
    for threads in map(int, chosen.threads.split(",")):
        torch.set_num_threads(threads)
        copies = [timed(lambda: copied.copy_(x)) for _ in range(5)][1:]
        each = statistics.median(copies) / chosen.numel * 1e9
        print(f"\n{threads} thread{'s' * (threads > 1)}; one copy {each:.2f} ns an entry")
        print(f"{'':<36}{'copies':>8}{'wanted':>8}{'ns/entry':>10}", flush=True)
        for name, (run, bound) in cases(x).items():
            if wanted and not any(word in name for word in wanted):
                continue
            run()  # compiles, and warms the memory up
            ratios, times = [], []
            for _ in range(chosen.rounds if "torch.topk" not in name else 2):
                before = timed(lambda: copied.copy_(x))
                taken = timed(run)
                ratios.append(2 * taken / (before + timed(lambda: copied.copy_(x))))
                times.append(taken)
            ns = statistics.median(times) / chosen.numel * 1e9
            print(f"{name:<36}{statistics.median(ratios):>8.2f}{bound:>8}{ns:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
