"""Sharded models: the part of each tensor that this process holds, where torch's ``fully_shard`` has made DTensors.

A method sees the parts alone. Ranks that hold the same part of the model exchange it over laconic's link; FSDP gathers
and scatters between those that hold different parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laconic.errors import ClashError, ConfigError

HOW = (
    "make a mesh of replicas times shards with init_device_mesh, give fully_shard(model, mesh=mesh['shard']), and "
    "attach link=process_group(group=mesh['replicate'].get_group())"
)


class Shard(NamedTuple):
    """Which part of the model is here: part ``place`` of ``parts``; ``rank`` and ``mesh`` are of the whole run.

    ``digest`` is the same on those that hold the same part of every tensor.
    """

    place: int
    parts: int
    rank: int
    mesh: list[int]
    digest: str


def sharded(tensor: Tensor) -> bool:
    """Whether other processes hold parts of it."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that is here, its own memory; all of it if it is not sharded."""
    if not sharded(tensor):
        return tensor
    with torch.no_grad():
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def whole(part: Tensor, like: Any) -> Tensor:
    """A tensor sharded as ``like`` is, whose part here is ``part``; ``part`` itself if that is not sharded."""
    if not sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def shard_of(named: Mapping[str, Tensor]) -> Shard | None:
    """Which part of these parameters is here; ``None`` where none is sharded.

    Raises: ConfigError for a parameter that is neither whole nor sharded: a sum that is not summed up yet.
    """
    split: dict[str, Any] = {name: p for name, p in named.items() if sharded(p)}
    if not split:
        return None
    import torch.distributed as dist

    text = []
    for name, p in split.items():
        if any(placement.is_partial() for placement in p.placements):
            raise ConfigError(f"attach: parameter {name} is a partial sum ({p.placements}); redistribute it first")
        at, size = p.device_mesh.get_coordinate(), list(p.device_mesh.shape)
        text.append(f"{name} {p.placements} {at} of {size} {list(local(p).shape)}")
    # All in one mesh as a rule; with several, the largest says who shards with whom.
    mesh = max((p.device_mesh for p in split.values()), key=lambda mesh: mesh.size())
    ranks = mesh.mesh.flatten().tolist()
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()
    return Shard(ranks.index(dist.get_rank()), len(ranks), dist.get_rank(), ranks, digest)


def check_peers(mine: Shard | None, heard: list[dict[str, Any]], rank: int) -> None:
    """Refuse a link between workers that hold different parts, or between which FSDP combines gradients already.

    Raises: ClashError, ConfigError; each says how mesh and link should be made.
    """
    for other, header in enumerate(heard):
        digest = header.get("shard")
        if mine is not None and other != rank and header.get("global") in mine.mesh:
            raise ClashError(
                f"attach: workers {rank} and {other} of the link shard one copy of the model between them, so that "
                f"FSDP combines their gradients already; a link joins copies: {HOW}"
            )
        if digest != (mine.digest if mine is not None else None):
            raise ConfigError(
                f"attach: worker {other} holds another part of the model than worker {rank}, and a link joins those "
                f"that hold the same; {HOW}"
            )


def local_state(state: Any) -> Any:
    """An optimizer's ``state_dict`` with the parts that are here in the place of sharded tensors."""
    if isinstance(state, Tensor):
        return local(state)
    if isinstance(state, dict):
        return {key: local_state(value) for key, value in state.items()}
    return type(state)(map(local_state, state)) if isinstance(state, list | tuple) else state


def whole_state(state: dict[str, Any], params: Iterable[Tensor]) -> dict[str, Any]:
    """What :func:`local_state` made, as the optimizer of ``params`` (in its order) needs it."""
    entries = dict(state["state"])
    for place, param in enumerate(params):
        if place in entries and sharded(param):
            shape = local(param).shape
            entries[place] = {
                key: whole(value, param) if isinstance(value, Tensor) and value.shape == shape else value
                for key, value in entries[place].items()
            }
    return state | {"state": entries}


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all tensors together, the parts elsewhere included: all that shard them must call it."""
    split: list[Tensor] = []
    here: list[Tensor] = []
    for tensor in tensors:
        (split if sharded(tensor) else here).append(tensor)
    found = [torch.nn.utils.get_total_norm(here)] if here else []
    if split:
        total: Any = torch.nn.utils.get_total_norm(split)
        found.append(total.full_tensor())
    return torch.linalg.vector_norm(torch.stack(found))
