"""What an all-reduce takes by each plan: predicted and measured on the testbed (needs root), and played on trees.

    python benchmarks/collectives.py table [--workers 4] [--link 100mbit] [--repeats 9] [--mib 4]
    python benchmarks/collectives.py sites [--inside 100mbit] [--between 10mbit]     two sites of two
    python benchmarks/collectives.py order [--matrices 10]       the choice among random rates, against the best
    python benchmarks/collectives.py incast [--most 6]           epsilon and w_t from cps among 2, 3, … workers
    python benchmarks/collectives.py sums                        gamma and delta of this machine's memory
    python benchmarks/collectives.py trees [--most 256]          GenTree against flat plans on growing trees; no root

A prediction knows the stated rates, the bytes of frames (1.0456 for each byte) and ``alpha``, which is measured first:
half the round trip of an empty message. A time is from the first worker's start to the last one's end, after a barrier.

``trees`` plays every plan in the flow simulator, where what a worker sends in a round leaves side by side and crowds.
GenTree chooses by GenModel's price, and one of its candidates is one ring through all: by price it never loses to that
ring. Halving and cps over all servers are no candidates, and played seconds are not what it chooses by.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import heading

from laconic.bench.testbed import FRAME_OVERHEAD, Testbed, available, run_everywhere
from laconic.exchange.planned import carried, sum_in_one_pass
from laconic.links.network import Connection, Network, parse, parse_rate
from laconic.packet import Packet
from laconic.plan import groups, turns
from laconic.plan.choosing import USUAL, choice, options, plan_of
from laconic.plan.collective_messages import of_plan
from laconic.plan.collectives import Rates
from laconic.plan.fabric import of_switches
from laconic.plan.fitting import Crowd, Sum, fit_incast, fit_sums
from laconic.plan.flows import play
from laconic.plan.genmodel import price
from laconic.plan.gentree import gentree
from laconic.plan.ports import BUFFERS, groups_of, of_network, of_tree, racks

WARM = 2
FLAT = {"ring": groups.ring, "rhd": groups.rhd, "cps": groups.cps}


# -- on the testbed ------------------------------------------------------------------------------------------------


def worker(spec_path: str, folder: str) -> None:
    """One worker: time each case, and write (start, end) of each repeat."""
    from laconic.links.process_group import process_group

    torch.set_num_threads(1)
    spec = json.loads(Path(spec_path).read_text())
    network = network_of(spec["network"])
    link = process_group("gloo")
    times: dict[str, list[tuple[float, float]]] = {}
    for text, nbytes in spec["cases"]:
        plan = (
            None
            if text in ("gloo", "ping")
            else plan_of(text, link.size, nbytes, network, Rates(*spec["rates"]), BUFFERS)
        )
        tensor = torch.ones(nbytes // 4)
        for repeat in range(WARM + spec["repeats"]):
            link.barrier()
            start = time.monotonic()
            if text == "ping":
                ping(link, nbytes)
            elif plan is None:
                link.all_reduce(tensor.clone())
            else:
                carried(plan, tensor.clone(), link)
            if repeat >= WARM:
                times.setdefault(f"{text} {nbytes}", []).append((start, time.monotonic()))
    Path(folder, f"{link.rank}.json").write_text(json.dumps(times))
    link.barrier()
    link.close()


def network_of(raw: dict[str, Any]) -> Network:
    """The network that was taken apart into plain values."""
    links = tuple((a, b, Connection(**c)) for a, b, c in raw["links"])
    return Network(tuple(Connection(**c) for c in raw["connections"]), links)


def ping(link: Any, nbytes: int) -> None:
    """Bytes from worker 0 to worker 1, or nothing there and back."""
    message = [Packet({"x": torch.empty(nbytes, dtype=torch.uint8)})]
    if link.rank == 0:
        link.send(message, 1)
        if nbytes == 0:
            link.recv(1)
    elif link.rank == 1:
        link.recv(0)
        if nbytes == 0:
            link.send(message, 0)


def measured(
    network: Network, cases: Sequence[tuple[str, int]], repeats: int, rates: Rates = USUAL
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each repeat of each case, a plan's name and bytes, on a testbed of ``network``."""
    with tempfile.TemporaryDirectory() as folder, Testbed(network) as bed:
        spec = {"network": asdict(network), "cases": list(cases), "repeats": repeats, "rates": list(rates)}
        Path(folder, "spec.json").write_text(json.dumps(spec))
        argv = [sys.executable, __file__, "worker", f"{folder}/spec.json", folder]
        if any(run_everywhere(bed, argv)):
            raise SystemExit("a worker failed")
        ranks = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(network.workers)]
    found = {}
    for text, nbytes in cases:
        rounds = zip(*(rank[f"{text} {nbytes}"] for rank in ranks), strict=True)
        found[text, nbytes] = [max(end for _, end in each) - min(start for start, _ in each) for each in rounds]
    return found


def alpha_of(network: Network, repeats: int) -> Rates:
    """The rates of a prediction: ``alpha`` by empty messages there and back, memory as it usually is."""
    trips = measured(network, [("ping", 0)], repeats)["ping", 0]
    return USUAL._replace(alpha=statistics.median(trips) / 2)


def predicted(text: str, nbytes: int, network: Network, rates: Rates) -> float:
    """Seconds of a plan by workers' own clocks."""
    if text == "ping":
        return rates.alpha + nbytes * FRAME_OVERHEAD / network.link(0, 1).up
    plan = plan_of("ring" if text == "gloo" else text, network.workers, nbytes, network, rates, BUFFERS)
    return turns.seconds(plan, of_network(network, rates, FRAME_OVERHEAD, BUFFERS), nbytes)


def table(args: argparse.Namespace) -> None:
    """Predicted against measured, as in the specification's table."""
    heading(f"All-reduce of {args.mib} MiB and 4 KiB of float32 on the testbed")
    even = parse(args.link, args.workers)
    slow = parse(args.link, args.workers, [f"1:{args.slow}"])
    rates = alpha_of(even, args.repeats)
    size = int(args.mib * 2**20)
    texts = ["ring", "gloo", "rhd", "cps", "doubling", "star", "tree"]
    beds = [
        (f"{args.workers} at {args.link}", even, [("ping", size), *((text, size) for text in texts)]),
        (f"worker 1 at {args.slow}", slow, [(text, size) for text in ("ring", "star")]),
        ("4 KiB", even, [(text, 4096) for text in texts]),
    ]
    print(f"alpha {rates.alpha * 1e3:.2f} ms\n")
    print(f"{'links':<18}{'plan':<12}{'predicted':>12}{'measured':>12}{'p90':>10}{'ratio':>8}")
    for name, network, cases in beds:
        for (text, nbytes), times in measured(network, cases, args.repeats, rates).items():
            wanted, middle = predicted(text, nbytes, network, rates), statistics.median(times)
            worst = sorted(times)[int(0.9 * (len(times) - 1))]
            label = f"{name:<18}{text:<12}{wanted * 1e3:>9.1f} ms{middle * 1e3:>9.1f} ms{worst * 1e3:>7.1f} ms"
            print(f"{label}{middle / wanted:>8.2f}", flush=True)


def two_sites(inside: float, between: float) -> Network:
    """Two workers in each of two sites."""
    pairs = [(i, j) for i in range(4) for j in range(4) if i // 2 != j // 2]
    slow = Connection(between, between)
    return Network((Connection(inside, inside),) * 4, tuple((i, j, slow) for i, j in pairs))


def sites(args: argparse.Namespace) -> None:
    """Two sites: by how much groups beat a ring, predicted and measured."""
    heading(f"Two sites of two, {args.inside} inside, {args.between} between; {args.mib} MiB of float32")
    network = two_sites(parse_rate(args.inside), parse_rate(args.between))
    rates = alpha_of(network, args.repeats)
    size = int(args.mib * 2**20)
    chosen = choice(options(4, size, network, rates, BUFFERS)).plan.name
    cases = [(text, size) for text in ("ring", "sites", "auto", "leaders", "cps")]
    found = {
        text: statistics.median(times) for (text, _), times in measured(network, cases, args.repeats, rates).items()
    }
    wanted = {text: predicted(text, size, network, rates) for text, _ in cases}
    print(f"chosen: {chosen}")
    print(f"{'plan':<12}{'predicted':>12}{'measured':>12}{'ratio':>8}{'ring over it: predicted, measured':>38}")
    for text, took in found.items():
        gains = f"{wanted['ring'] / wanted[text]:>28.2f}{found['ring'] / took:>10.2f}"
        print(f"{text:<12}{wanted[text]:>10.3f} s{took:>10.3f} s{took / wanted[text]:>8.2f}{gains}")


def order(args: argparse.Namespace) -> None:
    """The choice among random rate matrices against the measured best."""
    heading("Random rates between 4 workers: the chosen plan against the best that was measured")
    draw, hits = random.Random(0), 0
    texts = ("ring", "rhd", "cps", "star", "sites", "gentree", "auto")
    sizes = [4 << 10, 256 << 10, 4 << 20]
    print(f"{'matrix':>6}{'bytes':>10}  {'auto is':<12}{'took':>10}{'best':>10}  {'by':<10}{'over':>6}")
    for number in range(args.matrices):
        rates_of = {(i, j): draw.choice([10e6, 25e6, 50e6, 100e6]) / 8 for i in range(4) for j in range(4) if i != j}
        links = tuple((i, j, Connection(rate, rate)) for (i, j), rate in rates_of.items())
        network = Network((Connection(12.5e6, 12.5e6),) * 4, links)
        rates = alpha_of(network, args.repeats)
        size = sizes[number % 3]
        found = measured(network, [(text, size) for text in texts], args.repeats, rates)
        taken = {text: statistics.median(times) for (text, _), times in found.items()}
        best = min(taken, key=lambda text: taken[text])
        over = taken["auto"] / taken[best] - 1
        hits += over <= 0.1
        name = choice(options(4, size, network, rates, BUFFERS)).plan.name
        seconds = f"{taken['auto'] * 1e3:>7.1f} ms{taken[best] * 1e3:>7.1f} ms"
        print(f"{number:>6}{size:>10}  {name:<12}{seconds}  {best:<10}{over:>6.0%}", flush=True)
    print(f"within 10 % of the best: {hits} of {args.matrices}")


def incast(args: argparse.Namespace) -> None:
    """Epsilon and w_t of the testbed, and what cps takes with them."""
    heading(f"Crowding: cps among 2 to {args.most} workers at {args.link}, predicted without and with what was fitted")
    beds = {n: parse(args.link, n) for n in range(2, args.most + 1)}
    rate = beds[2].connections[0].up
    rates = alpha_of(beds[2], args.repeats)._replace(beta=FRAME_OVERHEAD / rate)
    sizes = [1 << 20, 4 << 20]
    crowds = []
    for n, network in beds.items():
        for (_, nbytes), times in measured(network, [("cps", size) for size in sizes], args.repeats, rates).items():
            crowds += [Crowd(n, nbytes, seconds) for seconds in times]
    epsilon, w_t = fit_incast(crowds, rates)
    share = epsilon / rates.beta
    print(f"alpha {rates.alpha * 1e3:.2f} ms, epsilon {epsilon:.2e} s/byte ({share:.2f} of beta), w_t {w_t}\n")
    fitted = rates._replace(epsilon=epsilon, w_t=w_t)
    for n, network in beds.items():
        plan = groups.cps(n)
        for size in sizes:
            took = statistics.median(c.seconds for c in crowds if (c.workers, c.nbytes) == (n, size))
            plain, crowded = (price(plan, of_network(network, r, FRAME_OVERHEAD), size) for r in (rates, fitted))
            ratios = f"{took / plain.seconds:>8.2f}{took / crowded.seconds:>8.2f}"
            print(f"{n:>3} workers {size:>9} bytes {took * 1e3:>9.1f} ms{ratios}", flush=True)


# -- without it ----------------------------------------------------------------------------------------------------


def sums(args: argparse.Namespace) -> None:
    """Gamma and delta by the sums that plans run, in one pass and one part after the other."""
    torch.set_num_threads(1)
    heading("Sums of k float32 vectors: in one pass, and one after the other")
    found: dict[float, list[Sum]] = {}
    print(f"{'vector':>10}{'k':>4}{'one pass':>12}{'in turn':>12}{'gain':>7}")
    for nbytes in (1 << 16, 1 << 20, 16 << 20):
        for k in (2, 3, 4, 6, 8, 12, 16):
            into, *parts = (torch.zeros(nbytes // 4) for _ in range(k))
            sum_in_one_pass(into, parts)  # compiled, if it is not yet
            loops = max(1, int(2e7 / nbytes / k))
            once = [timed(lambda p=parts, i=into: sum_in_one_pass(i, p), loops) for _ in range(args.repeats)]
            turn = [timed(lambda p=parts, i=into: one_by_one(i, p), loops) for _ in range(args.repeats)]
            found.setdefault(nbytes, []).extend(Sum(k, nbytes, seconds) for seconds in once)
            a, b = statistics.median(once), statistics.median(turn)
            print(f"{nbytes >> 10:>6} KiB{k:>4}{a * 1e6:>9.0f} us{b * 1e6:>9.0f} us{b / a:>7.2f}", flush=True)
    for nbytes, each in found.items():
        gamma, delta = fit_sums(each)
        print(f"{nbytes >> 10:>6} KiB: gamma {gamma:.2e} s/byte, delta {delta:.2e} s/byte")


def timed(run: Any, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        run()
    return (time.perf_counter() - start) / loops


def one_by_one(into: torch.Tensor, parts: list[torch.Tensor]) -> None:
    for part in parts:
        into += part


def trees(args: argparse.Namespace) -> None:
    """GenTree against a ring, halving and cps in the flow simulator, on racks behind wide, equal and thin lines."""
    heading(
        "Played on trees: servers at 10 Gbit/s in equal racks of 8, or of 12 and 4 in turn; alpha 30 us, delta 0.2 ns, "
        "gamma 0.05 ns, w_t 9, epsilon beta/10"
    )
    beta = 8e-10
    rates = Rates(3e-5, beta, 5e-11, 2e-10)
    names = "".join(f"{name:>11}" for name in (*FLAT, "gentree", "its price"))
    print(f"{'racks':>8}{'rack line':>11}{'servers':>9}{'bytes':>9}{names}{', '.join(FLAT) + ' over gentree':>30}")
    for shape in ("equal", "uneven"):
        for gbits in (80, 10, 5):
            count = 2
            while 8 * count <= args.most:
                sizes = (8,) * count if shape == "equal" else (12, 4) * (count // 2)
                tree = racks(sizes, beta, 8e-9 / gbits, 9, beta / 10)
                ports, fabric = of_tree(tree, rates), of_switches(tree)
                for nbytes in (1e5, 1e7, 1e8):
                    ours = gentree(groups_of(tree), ports, nbytes)
                    plans = [*(FLAT[name](8 * count) for name in FLAT), ours]
                    took = [play(fabric, of_plan(p, nbytes, rates), together=True, slack=1e-9).seconds for p in plans]
                    row = "".join(
                        f"{seconds * 1e3:>8.2f} ms" for seconds in (*took, price(ours, ports, nbytes).seconds)
                    )
                    gains = "".join(f"{seconds / took[-1]:>7.2f}x" for seconds in took[:-1])
                    print(f"{shape:>8}{f'{gbits} Gbit/s':>11}{8 * count:>9}{nbytes:>9.0e}{row}{gains:>30}", flush=True)
                count *= 2


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["table", "sites", "order", "incast", "sums", "trees"])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--link", default="100mbit")
    parser.add_argument("--slow", default="25mbit")
    parser.add_argument("--inside", default="100mbit")
    parser.add_argument("--between", default="10mbit")
    parser.add_argument("--mib", type=float, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--matrices", type=int, default=10)
    parser.add_argument("--most", type=int)
    args = parser.parse_args()
    args.most = args.most or {"incast": 6, "trees": 256}.get(args.part)
    reason = available() if args.part in ("table", "sites", "order", "incast") else None
    if reason is not None:
        raise SystemExit(f"{args.part}: {reason}")
    {"table": table, "sites": sites, "order": order, "incast": incast, "sums": sums, "trees": trees}[args.part](args)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:4])
    else:
        main()
