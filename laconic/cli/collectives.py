"""``laconic collectives``: what an all-reduce takes by each plan on given links, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laconic.errors import ConfigError

if TYPE_CHECKING:
    from laconic.links.network import Network
    from laconic.plan.choosing import Option

MOST = 256  # workers: a ring among them has 130,000 transfers, and four times as many among twice as many
CAUSES = {
    "alpha": "starts and latency",
    "beta": "bytes on the links",
    "gamma": "additions",
    "delta": "memory that sums touch",
    "epsilon": "crowding",
}


def collectives(
    workers: Annotated[
        int | None, typer.Option("--workers", help="how many; with --cluster by default its own")
    ] = None,
    link: Annotated[str | None, typer.Option("--link", help="of each worker: 100mbit or 20mbit,30ms")] = None,
    link_of: Annotated[list[str] | None, typer.Option("--link-of", help="WORKER:LINK or SENDER-RECEIVER:LINK")] = None,
    cluster: Annotated[str | None, typer.Option("--cluster", help="a shipped cluster or a file, for --link")] = None,
    nbytes: Annotated[str, typer.Option("--bytes", help="of the vector at each worker: 4MB")] = "4MB",
    alpha: Annotated[str, typer.Option("--alpha", help="what a round takes besides the links' latency")] = "1ms",
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, and nothing else")] = False,
) -> None:
    """Price an all-reduce by every plan, the quickest first: rings, stars, trees, sites, GenTree's. Sends nothing.

    \b
      laconic collectives --workers 4 --link 100mbit,5ms --bytes 100MB
      laconic collectives --workers 4 --link 100mbit --link-of 1:25mbit
      laconic collectives --cluster aws10 --bytes 1MB

    In a nesting planned(plan="auto") takes the first, and planned(plan="ring") any of them.
    """
    from laconic.links.network import parse_time
    from laconic.plan.choosing import MOST_AT_ONCE, USUAL, choice, options
    from laconic.plan.ports import BUFFERS

    network = _network(workers, link, link_of or [], cluster)
    size = _bytes(nbytes)
    left_out = [] if network.workers <= MOST_AT_ONCE else ["cps", "gentree"]
    found = options(network.workers, size, network, USUAL._replace(alpha=parse_time(alpha)), BUFFERS)
    if as_json:
        plans = [_plain(option) for option in found]
        told = {"workers": network.workers, "nbytes": size, "auto": choice(found).plan.name, "plans": plans}
        told["left_out"] = left_out
        typer.echo(json.dumps(told, indent=1))
        return
    lines = [*_table(found, network, size), "", f"auto takes {choice(found).plan.name}."]
    if left_out:
        lines += ["", f"Left out beyond {MOST_AT_ONCE} workers: {' and '.join(left_out)}."]
    typer.echo("\n".join(lines))


def _network(workers: int | None, link: str | None, link_of: list[str], cluster: str | None) -> Network:
    from laconic.links.network import check_workers, of_cluster, parse
    from laconic.plan.cluster import read_cluster

    if workers is not None:
        check_workers(workers)
    if cluster is not None:
        if link is not None or link_of:
            raise ConfigError("collectives: --cluster says what the links are; leave --link and --link-of out")
        machines = read_cluster(cluster)
        return of_cluster(machines, _few(workers or len(machines.workers) or len(machines.machines)))
    return parse(link or "100mbit", _few(workers or 4), link_of)


def _few(workers: int) -> int:
    if workers > MOST:
        raise ConfigError(f"collectives: plans are priced for at most {MOST} workers, got {workers}")
    return workers


def _bytes(text: str) -> float:
    from laconic.cli.plan import parse_size

    try:
        return parse_size(text)
    except ConfigError:
        raise ConfigError(f"--bytes {text!r}: write the vector's size, such as 4MB or 800kB") from None


def _plain(option: Option) -> dict[str, Any]:
    sent, _ = option.plan.shares()
    return {
        "plan": option.plan.name,
        "seconds": option.seconds,
        "rounds": len(option.plan.rounds),
        "vectors_sent_by_each": sent,
        "terms_in_step": option.priced.terms._asdict(),
    }


def _table(found: list[Option], network: Network, size: float) -> list[str]:
    from laconic.bench import units
    from laconic.plan.sites import sites

    near = [member for member in sites(network).members if not isinstance(member, int)]
    layout = f"{len(sites(network).members)} sites" if near else "no sites"
    lines = [f"An all-reduce of {units.size(size)} among {network.workers} workers, {layout}", ""]
    lines.append(f"{'plan':<18}{'takes':>10}{'rounds':>8}{'most sent by one':>18}   mostly")
    for option in found:
        sent, _ = option.plan.shares()
        terms = option.priced.terms._asdict()
        cause = max(terms, key=lambda name: terms[name])
        share = terms[cause] / option.priced.seconds if option.priced.seconds else 0.0
        lines.append(
            f"{option.plan.name:<18}{units.duration(option.seconds):>10}{len(option.plan.rounds):>8}"
            f"{units.size(max(sent) * size):>18}   {CAUSES[cause]}, {share:.0%}"
        )
    return lines
