"""Where the workers of a run find each other: torchrun's environment and torch's key-value store."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from laconic.errors import ConfigError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rendezvous(timeout: float, room: str = "links") -> tuple[int, int, Any]:
    """This worker's rank, the number of workers, and the store they share, each ``room`` a connection of its own.

    Raises: ConfigError if the environment is not torchrun's (or Slurm's, set alike).
    """
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"no rendezvous: {', '.join(missing)} not set; start the workers with torchrun, laconic train, "
            "or set them by hand"
        )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if dist.is_initialized() and room == "links":
        return rank, size, PrefixStore(f"laconic/{room}", _get_default_store())
    # torchrun keeps the store in its own process, so that it outlives any worker; without it, worker 0 does.
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    server = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not hosted and room == "links",  # other rooms come second
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return rank, size, PrefixStore(f"laconic/{attempt}/{room}", server)
