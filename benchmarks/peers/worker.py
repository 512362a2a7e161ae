"""One worker of a peer's run: the trainer of ``benchmarks/torch_ways.py`` with the peer's own step in it.

Run by ``run.py``, by the Python that has the peers installed, inside of a testbed's host.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import torch_ways  # noqa: E402
from torch_ways import Trainer  # noqa: E402

EVERY = 16
LIGHTHOUSE = 29510
PATIENCE = timedelta(seconds=120)
OUTER = {"lr": 0.7, "momentum": 0.9, "nesterov": True}  # DiLoCo's paper's, for torchft as for ours
MATCHMAKING = 3.0  # seconds; hivemind's guide: 3-5 for small local runs


def address() -> str:
    """This host's, in the testbed."""
    return f"10.77.0.{int(os.environ['RANK']) + 1}"


class Torchft(Trainer):
    """torchft's DiLoCo, of the whole model or streaming: each worker is a replica group of one."""

    first = 0  # right after a synchronisation, when nothing is under way

    def __init__(self, workload: Any, link: Any, way: str, delay: int) -> None:
        from torch.distributed import TCPStore
        from torchft import Manager, ProcessGroupGloo
        from torchft.coordination import LighthouseServer
        from torchft.local_sgd import DiLoCo

        super().__init__(workload, link, way)
        self.served = []
        if link.rank == 0:
            self.served.append(
                LighthouseServer(bind=f"0.0.0.0:{LIGHTHOUSE}", min_replicas=link.size, join_timeout_ms=10_000)
            )
        link.barrier()
        store = TCPStore(address(), 0, is_master=True, wait_for_workers=False)
        self.manager = Manager(
            pg=ProcessGroupGloo(timeout=PATIENCE),
            load_state_dict=self.model.load_state_dict,
            state_dict=self.model.state_dict,
            min_replica_size=link.size,
            use_async_quorum=False,
            timeout=PATIENCE,
            quorum_timeout=PATIENCE,
            rank=0,
            world_size=1,
            store_addr=address(),
            store_port=store.port,
            lighthouse_addr=f"http://10.77.0.1:{LIGHTHOUSE}",
            replica_id=f"worker{link.rank}",
            hostname=address(),
            init_sync=False,  # all start from one seed
        )
        self.served.append(store)
        fragments = self.fragments() if delay else [self.model]
        self.diloco = DiLoCo(
            self.manager,
            fragments,
            self.optimizer,
            [torch.optim.SGD(part.parameters(), **OUTER) for part in fragments],
            sync_every=EVERY,
            fragment_sync_delay=delay,
            fragment_update_alpha=0.5 if delay else 0.0,
        )
        self.diloco.__enter__()

    def fragments(self) -> list[torch.nn.Module]:
        """Two halves of the model, which share nothing."""
        model: Any = self.model
        half = len(model.blocks) // 2
        return [
            torch.nn.ModuleList([model.token_embedding, model.position_embedding, *model.blocks[:half]]),
            torch.nn.ModuleList([*model.blocks[half:], model.final_norm, model.head]),
        ]

    def held_out(self) -> float:
        """Of the shared weights, as for ours."""
        with torch.no_grad():
            for fragment in self.diloco._fragments:
                for name, value in fragment._model_fragment.named_parameters():
                    value.copy_(fragment.original_parameters[name])
        return super().held_out()


class Hivemind(Trainer):
    """hivemind's Optimizer: local updates, and the weights averaged in the background once an epoch of H steps."""

    first = torch_ways.FIRST
    loose = True  # nobody waits for anybody, and a step may be one of catching up

    def __init__(self, workload: Any, link: Any, way: str, dht: Any, half: bool) -> None:
        import hivemind
        from hivemind.compression import Float16Compression, NoCompression

        super().__init__(workload, link, way)
        rows = workload.options["batch_size"]
        compression = Float16Compression() if half else NoCompression()
        self.hivemind = hivemind.Optimizer(
            dht=dht,
            run_id="peers",
            batch_size_per_step=rows,
            target_batch_size=rows * link.size * EVERY,
            optimizer=self.optimizer,
            use_local_updates=True,
            matchmaking_time=MATCHMAKING,
            averaging_timeout=PATIENCE.total_seconds(),
            state_averaging_compression=compression,
            tracker_opts={"min_refresh_period": 0.1, "default_refresh_period": 0.5},
        )
        self.step = self.hivemind.step


def meet(folder: str) -> Any:
    """hivemind's DHT over both hosts; worker 0 writes where it listens into the folder that both can read."""
    import hivemind

    rank, note = int(os.environ["RANK"]), Path(folder) / "maddrs"
    listens = [f"/ip4/{address()}/tcp/0"]
    if rank == 0:
        dht = hivemind.DHT(host_maddrs=listens, start=True)
        note.with_suffix(".part").write_text(json.dumps([str(a) for a in dht.get_visible_maddrs()]))
        note.with_suffix(".part").rename(note)
        return dht
    while not note.exists():
        time.sleep(0.1)
    return hivemind.DHT(host_maddrs=listens, initial_peers=json.loads(note.read_text()), start=True)


def main(way: str, seconds: float, options: dict[str, Any], folder: str) -> None:
    """Race the way against the ideal, and write what came of it."""
    torch.set_num_threads(1)
    socket.gethostname = address  # hosts of a testbed all have the machine's name, at which no other finds them
    # It starts processes by forking, which goes wrong once there are threads: before anything else.
    dht = meet(folder) if "hivemind" in way else None

    from laconic.links import process_group
    from laconic.workloads import load

    workload = load("shakespeare", options)
    link = process_group("gloo")
    if "torchft" in way:
        run: Any = Torchft(workload, link, way, delay=5 if "streaming" in way else 0)
    elif dht is not None:
        run = Hivemind(workload, link, way, dht, half="fp16" in way)
    else:
        run = Trainer(workload, link, way)
        run.first = torch_ways.FIRST
    torch_ways.race(run, Trainer(workload, link, "ideal"), link, seconds, f"{folder}/out", run.first)


if __name__ == "__main__":
    way, seconds, options, ours = json.loads(sys.argv[1])
    torch_ways.OURS.update({name: (method, settings) for name, (method, settings) in ours.items()})
    main(way, seconds, options, sys.argv[2])
