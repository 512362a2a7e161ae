"""Where the workers of a run find each other: torchrun's environment and torch's key-value store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from laconic.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_stores: dict[tuple[str, ...], Any] = {}  # by address, port and attempt: a port can be served, and asked, only once
_links: Counter[tuple[str, ...]] = Counter()  # made so far


def rendezvous(timeout: float, room: str = "links", members: Sequence[int] = ()) -> tuple[int, int, Any]:
    """This worker's rank, the number of workers, and the store they share, each ``room`` a connection of its own.

    Each link has a part of the room to itself, so that none finds the addresses of the one before: all workers make
    their links in one order. A link of some of the workers alone, its ``members``, has a part that only they know.

    Raises: ConfigError if the environment is not torchrun's (or Slurm's, set alike).
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"no rendezvous: {', '.join(missing)} not set; start the workers with torchrun, laconic train, "
            "or set them by hand"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if room != "links":
        return rank, size, PrefixStore(f"laconic/{attempt}/{room}", _connect(size, timeout, serve=False))
    place = (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], attempt)
    if dist.is_initialized():
        store = _get_default_store()
    else:
        # torchrun keeps the store in its own process, so that it outlives any worker; without it, worker 0 does.
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = _stores.get(place) or _connect(size, timeout, serve=rank == 0 and not hosted)
        store.set_timeout(timedelta(seconds=timeout))
        _stores[place] = store
    among = "-".join(map(str, members))
    number = _links[*place, among]
    _links[*place, among] += 1
    return rank, size, PrefixStore(f"laconic/{attempt}/{room}/{number}{among and '/of/' + among}", store)


def _connect(size: int, timeout: float, serve: bool) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=serve,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )
