"""A method's state as plain tensors and JSON, and back: what a checkpoint holds.

State is nested NamedTuples, lists, numbers and tensors. :func:`freeze` takes it apart into a skeleton (JSON) and the
tensors it refers to; :func:`thaw` puts it together again. No pickle: only the NamedTuples registered here are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from laconic.errors import ConfigError, PacketError

Kind = TypeVar("Kind", bound=type)
_KINDS: dict[str, type] = {}
_VARYING: dict[str, tuple[str, ...]] = {}  # fields whose tensors may come, go and change shape while training
# Kinds that state may have or not have, from step to step: an exchange under way, a tensor cut in parts, and the half
# of a method that trains now.
LATER = ("Flight", "Cut", "Phase")
KEYS = (str, int, float, bool, type(None))  # what JSON gives back as it was, and a dictionary takes as a key


def checkpointed(kind: Kind) -> Kind:
    """Register a NamedTuple that state may contain."""
    assert _KINDS.setdefault(kind.__name__, kind) is kind, f"two kinds of state are called {kind.__name__}"
    return kind


def varying(*fields: str) -> Callable[[Kind], Kind]:
    """Register a NamedTuple as :func:`checkpointed` does, the tensors in whose ``fields`` depend on the moment.

    Its user checks them again before use: :func:`like` does not.
    """

    def register(kind: Kind) -> Kind:
        _VARYING[kind.__name__] = fields
        return checkpointed(kind)

    return register


def freeze(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """The skeleton of ``value``, and its tensors by the names that the skeleton gives them.

    Raises: ConfigError for a part that could not be read back, rather than leave it out.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            name = path if path not in tensors else f"{path}#{len(tensors)}"  # keys may look like paths
            tensors[name] = value.detach()
            return {"tensor": name}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if isinstance(value, dict):
            if strange := [key for key in value if type(key) not in KEYS]:
                raise ConfigError(
                    f"checkpoint: {path} has the key {strange[0]!r}, which would not be read back; use text"
                )
            return {"dict": [[key, walk(item, f"{path}.{key}")] for key, item in value.items()]}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            if type(value).__name__ not in _KINDS:
                raise TypeError(f"{type(value).__name__} is not @checkpointed, so it could not be read back")
            fields = value._asdict().items()  # type: ignore[attr-defined]
            return {"kind": type(value).__name__, "fields": {k: walk(v, f"{path}.{k}") for k, v in fields}}
        if isinstance(value, list | tuple):
            return {
                "list" if isinstance(value, list) else "tuple": [
                    walk(item, f"{path}.{i}") for i, item in enumerate(value)
                ]
            }
        if getattr(value, "transient", False):
            return {"value": None}
        raise ConfigError(
            f"checkpoint: {path} is a {type(value).__name__}, which a checkpoint cannot hold; it holds tensors, "
            "numbers, text, lists, tuples and dictionaries"
        )

    return walk(value, "state"), tensors


def thaw(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """Put together what :func:`freeze` took apart.

    Raises: PacketError for a skeleton that it did not write, or a tensor that is missing.
    """
    match skeleton:
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"value": None | bool() | int() | float() | str() as value}:
            return value
        case {"dict": list(items)} if all(isinstance(i, list) and len(i) == 2 and type(i[0]) in KEYS for i in items):
            return {key: thaw(item, tensors) for key, item in items}
        case {"kind": str(name), "fields": dict(fields)} if name in _KINDS:
            kind: Any = _KINDS[name]
            if set(fields) != set(kind._fields):
                raise PacketError(f"checkpoint: {name} has fields {sorted(fields)}, wanted {sorted(kind._fields)}")
            return kind(**{key: thaw(item, tensors) for key, item in fields.items()})
        case {"list": list(items)}:
            return [thaw(item, tensors) for item in items]
        case {"tuple": list(items)}:
            return tuple(thaw(item, tensors) for item in items)
    raise PacketError(f"checkpoint: {str(skeleton)[:80]} is nothing that laconic writes")


def like(old: Any, new: Any, path: str = "state") -> None:
    """Check that ``new`` could take the place of ``old``: the same kinds, names and shapes all the way down.

    Raises: PacketError that names the first place where they differ.
    """
    if getattr(old, "transient", False) and new is None:
        return  # what is under way here is not kept, and begins anew
    flying = type(new).__name__ in LATER and old is None
    if type(old) is not type(new) and not flying and not (type(old).__name__ in LATER and new is None):
        raise PacketError(
            f"checkpoint: {path} is {type(new).__name__}, this run has {type(old).__name__}; was it another method?"
        )
    if isinstance(old, Tensor) and (old.shape != new.shape or old.dtype != new.dtype):
        raise PacketError(f"checkpoint: {path} is {new.dtype}{list(new.shape)}, here {old.dtype}{list(old.shape)}")
    if isinstance(old, list | tuple) and not flying and new is not None:
        if len(old) != len(new):
            raise PacketError(f"checkpoint: {path} has {len(new)} entries, this run's has {len(old)}")
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            name = old._fields[i] if hasattr(old, "_fields") else i
            if name in _VARYING.get(type(old).__name__, ()):
                _tensors_or_none(a, b, f"{path}.{name}")
            else:
                like(a, b, f"{path}.{name}")


def placed(old: Any, new: Any, device: torch.device) -> Any:
    """``new``, which is :func:`like` ``old``, with each tensor where ``old`` has its own, or else on ``device``."""
    if isinstance(new, Tensor):
        return new.to(old.device if isinstance(old, Tensor) else device)
    if isinstance(new, dict):
        before = old if isinstance(old, dict) else {}
        return {key: placed(before.get(key), item, device) for key, item in new.items()}
    if isinstance(new, list | tuple):
        alike = isinstance(old, list | tuple) and len(old) == len(new)
        items = [placed(a, b, device) for a, b in zip(old if alike else [None] * len(new), new, strict=True)]
        return type(new)(*items) if hasattr(new, "_fields") else type(new)(items)
    return new


def _tensors_or_none(old: list[Any], new: Any, path: str) -> None:
    if type(new) is not list or len(new) != len(old) or not all(b is None or isinstance(b, Tensor) for b in new):
        raise PacketError(f"checkpoint: {path} is {str(new)[:80]}, wanted {len(old)} tensors, some of which may lack")
