"""One worker of a probe, as a process: ``python -m laconic.plan.probing.worker``.

It reads what to do as a line of JSON from its standard input and ends when that closes, so that it never outlives who
started it, here or over ssh. What it has to tell are lines of JSON on its standard output.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from laconic import __version__
from laconic.errors import ConfigError, LaconicError, PeerError
from laconic.links.base import Link
from laconic.links.network import Connection, Network
from laconic.links.paced import PacedLink
from laconic.links.rendezvous import rendezvous
from laconic.links.tcp import TcpLink
from laconic.plan.measured import Measured
from laconic.plan.measured_tables import tables_of
from laconic.plan.probing import machine, talk
from laconic.plan.probing.conduct import conduct
from laconic.plan.probing.schedule import Experiment, Limits

SECRET = "laconic/secret"  # as the link asks a store for it


def main() -> int:
    """Take part in the probe that standard input describes; the exit status."""
    work = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        with joined(work["network"], work["timeout"], work["secret"]) as link:
            found = take_part(link, work, lambda sentence: _say({"told": sentence}))
            if found is not None:
                _say({"found": tables_of(found)})
    except BaseException as error:
        message = str(error) if isinstance(error, LaconicError) else f"{type(error).__name__}: {error}"
        _say({"error": message, "peer": isinstance(error, PeerError)})
        return 2
    return 0


class Sealed:
    """A store that knows the workers' secret from elsewhere: nobody can ask for it over the network."""

    def __init__(self, store: Any, secret: str) -> None:
        self._store, self._secret = store, secret

    def set(self, key: str, value: str) -> None:
        """As the store has it, but for the secret."""
        if key != SECRET:
            self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """As the store has it, but for the secret."""
        return self._secret.encode() if key == SECRET else bytes(self._store.get(key))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def joined(network: Mapping[str, Any] | None, timeout: float, secret: str = "") -> Link:
    """This worker's link: paced as ``network``, the fields of one, says; or over TCP on the network as it is.

    Without a ``secret``, 16 bytes in hexadecimal, worker 0 makes one and the store that they meet at has it.
    """
    rank, size, store = rendezvous(timeout)
    store = Sealed(store, secret) if secret else store
    if network:
        return PacedLink(rank, size, store, _network(network), timeout=timeout)
    return TcpLink(rank, size, store, timeout=timeout)


def take_part(link: Link, work: Mapping[str, Any], tell: Callable[[str], None]) -> Measured | None:
    """Worker 0 conducts what is planned, and has what was found; the others serve."""
    if link.rank:
        greet(link)
        talk.serve(link, partial(look, work["looking"]))
        return None
    clocks = [hello["clock"] for hello in meet(link)]
    planned = [
        Experiment(kind, tuple((a, b) for a, b in flows), essential) for kind, flows, essential in work["planned"]
    ]
    looking = {**work["looking"], "clocks": clocks}
    mine = partial(look, work["looking"])
    return conduct(link, work["names"], planned, Limits(*work["limits"]), mine, looking, work["on"], tell)


def hello() -> dict[str, str]:
    """Who I am, for worker 0."""
    return {"name": socket.gethostname(), "clock": machine.clock(), "version": __version__}


def greet(link: Link) -> None:
    """Tell worker 0 who I am."""
    talk.say(link, 0, hello())


def meet(link: Link) -> Sequence[dict[str, str]]:
    """Who the workers are, by rank; called by worker 0.

    Raises: ConfigError if they are not of one version.
    """
    found = [hello(), *({} for _ in link.peers())]
    for rank in link.peers():
        found[rank] = talk.heard(link, rank)
        if found[rank].get("version") != __version__:
            raise ConfigError(
                f"probe: worker {rank} ({found[rank].get('name')}) has laconic {found[rank].get('version')}, "
                f"worker 0 has {__version__}; install one version everywhere"
            )
    return found


def look(mine: Mapping[str, Any], order: talk.Order) -> talk.Answer:
    """Measure this machine when ordered to. What is run here is ``mine`` to know, from who started this worker."""
    own = {name: mine[name] for name in ("workload", "options", "compressors")}
    told = {name: order[name] for name in ("seconds", "sharing", "rank", "workers")}
    found = Measured(machines={"me": machine.look(**own, **told)})
    return {key: value for key, value in tables_of(found)["machines"][0].items() if key != "name"}


def _network(fields: Mapping[str, Any]) -> Network:
    links = tuple((a, b, Connection(**of)) for a, b, of in fields["links"])
    return Network(tuple(Connection(**of) for of in fields["connections"]), links)


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _end_with_starter() -> None:
    while sys.stdin.read(1):
        pass
    os._exit(1)


if __name__ == "__main__":
    status = main()
    os._exit(status)  # threads that still wait for a peer would hold an ordinary exit up
