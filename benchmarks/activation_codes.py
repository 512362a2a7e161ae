"""When compressing what tensor parallelism sends pays: MCBench's costs fitted here, and layers that were not fitted.

    python benchmarks/activation_codes.py [--link 100mbit] [--code 32] [--repeats 5]

Two workers compute a transformer layer with all recomputed, and then sum an activation over a paced link: as it is, or
as the code of a linear encoder, which is decoded behind the sum. Computing, coding and messages are fitted each by
itself; the layers that are predicted are of other sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import heading, workers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from laconic.plan.activations import Costs, Sample, compressed, fit, layer_flops, plain, worth

SEQUENCE = 64
FITTED = [(h, b) for h in (128, 256, 512) for b in (2, 8)]
HELD_OUT = [(192, 4), (192, 8), (384, 2), (384, 8), (640, 4)]
VALUES = [64 * 4**k for k in range(7)]  # of messages


class Layer(nn.Module):
    """Attention and an MLP, without what the count leaves out."""

    def __init__(self, h: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(h, 3 * h, bias=False), nn.Linear(h, h, bias=False)
        self.up, self.down = nn.Linear(h, 4 * h, bias=False), nn.Linear(4 * h, h, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        b, s, h = x.shape
        q, k, v = (y.reshape(b, s, 4, h // 4).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-1, -2) / (h // 4) ** 0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(b, s, h))
        return x + self.down(torch.relu(self.up(x)))


def worker(link_text: str, code: str, repeats: str, out: str) -> None:
    """One worker: the median seconds of everything that is measured."""
    from laconic.links import paced, parse

    torch.set_num_threads(1)
    link = paced(parse(link_text, 2))
    width = int(code)

    def timed(run: Callable[[], object]) -> float:
        took = []
        for repeat in range(int(repeats) + 1):
            link.barrier()
            start = time.monotonic()
            run()
            if repeat:
                took.append(time.monotonic() - start)
        return statistics.median(took)

    def computing(h: int, b: int) -> Callable[[], object]:
        layer, x = Layer(h), torch.randn(b, SEQUENCE, h, requires_grad=True)
        return lambda: checkpoint(layer, x, use_reentrant=False).sum().backward()

    def coding(h: int, b: int) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
        x, encode, decode = torch.randn(b * SEQUENCE, h), torch.randn(h, width), torch.randn(width, h)
        return (lambda: x @ encode), (lambda y: y @ decode)

    def layer(h: int, b: int, coded: bool) -> Callable[[], None]:
        work, (encode, decode), x = computing(h, b), coding(h, b), torch.randn(b * SEQUENCE, h)

        def run() -> None:
            work()
            decode(link.all_reduce(encode())) if coded else link.all_reduce(x)

        return run

    def coded(h: int, b: int) -> Callable[[], Tensor]:
        encode, decode = coding(h, b)
        return lambda: decode(encode())

    def message(values: int) -> Callable[[], Tensor]:
        x = torch.randn(values)
        return lambda: link.all_reduce(x)

    found = {
        "computing": [(layer_flops(b, SEQUENCE, h), timed(computing(h, b))) for h, b in FITTED],
        "coding": [(b * SEQUENCE * h, timed(coded(h, b))) for h, b in FITTED],
        "messages": [(values, timed(message(values))) for values in VALUES],
        "layers": [(h, b, timed(layer(h, b, False)), timed(layer(h, b, True))) for h, b in HELD_OUT],
    }
    link.barrier()
    link.close()
    Path(out).write_text(json.dumps(found))


def main() -> None:
    """Print the fitted costs, and layers of other sizes predicted and measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", default="100mbit")
    parser.add_argument("--code", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    heading(f"A layer with its message as it is and as a code of {args.code} a token, 2 workers at {args.link}")
    slowest = workers(2, __file__, "worker", args.link, str(args.code), str(args.repeats))[0]
    costs: Costs = fit(*([Sample(*one) for one in slowest[kind]] for kind in ("computing", "coding", "messages")))
    print(f"  {1e-9 / costs.compute:.1f} Gflop/s, {1e9 * costs.code:.3g} ns a value coded, ", end="")
    print(f"messages {costs.each * 1e9:.3g}")
    print(f"  ns a value, {1e3 * costs.least:.3g} ms at least, below {costs.knee:,.0f} values\n")
    print(
        f"{'hidden':>7}{'batch':>6}{'plain':>10}{'measured':>10}{'ratio':>7}{'coded':>10}{'measured':>10}{'ratio':>7}"
    )
    misses = []
    for h, b, bare, coded in slowest["layers"]:
        wanted = plain(costs, b, SEQUENCE, h), compressed(costs, b, SEQUENCE, h, args.code)
        misses += [abs(bare / wanted[0] - 1), abs(coded / wanted[1] - 1)]
        cells = "".join(
            f"{1e3 * w:>7.1f} ms{1e3 * m:>7.1f} ms{m / w:>7.2f}" for w, m in zip(wanted, (bare, coded), strict=True)
        )
        verdict = worth(costs, b, SEQUENCE, h, args.code)
        said = "pays" if verdict.pays else "does not pay"
        said += "" if verdict.pays == (coded < bare) else ", and it was otherwise"
        print(f"{h:>7}{b:>6}{cells}  {said}")
    print(f"\nmedian miss {statistics.median(misses):.1%}, worst {max(misses):.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main()
