"""Cluster files, written: what :func:`laconic.plan.cluster.read_cluster` reads, and whatever else stands in one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from laconic.errors import ConfigError
from laconic.plan.cluster import Cluster, read_cluster

BARE = re.compile(r"[A-Za-z0-9_-]+")  # names that TOML takes without quotes


def dump(raw: dict[str, Any]) -> str:
    """The tables of a file as TOML text: values first, then tables, then lists of tables.

    Law:    ``tomllib.loads(dump(raw)) == raw`` for text, numbers, booleans, lists and tables.
    Raises: ConfigError for a value that TOML has no word for.
    """
    return "\n".join(_block("", raw)).lstrip("\n") + "\n"


def write_cluster(path: Path, raw: dict[str, Any]) -> Cluster:
    """Write a cluster file, once it is known to be one; the file that was there stays until then.

    Raises: ConfigError as :func:`read_cluster`'s, or for a place that cannot be written.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.toml")
    try:
        draft.write_text(dump(raw))
        read_cluster(draft)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(draft), str(path))) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return read_cluster(path.absolute())  # a bare name would be taken for a shipped one's


def _block(path: str, table: dict[str, Any]) -> list[str]:
    """The lines of one table, whose own values come before the tables in it."""
    lines: list[str] = []
    apart: list[str] = []
    for key, value in table.items():
        name = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict) and _deep(value):
            apart += ["", f"[{name}]", *_block(name, value)]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                apart += ["", f"[[{name}]]", *_block(name, item)]
        elif isinstance(value, list) and value and all(isinstance(item, list) for item in value):
            lines += [f"{_key(key)} = [", *(f"  {_value(row)}," for row in value), "]"]
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    return lines + apart


def _deep(table: dict[str, Any]) -> bool:
    """Whether a table gets a heading of its own: it holds tables, or is the long kind."""
    return any(isinstance(v, dict | list) for v in table.values()) and "values" not in table


def _key(key: str) -> str:
    return key if BARE.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan" if math.isnan(value) else repr(value))
    raise ConfigError(f"a cluster file cannot hold {value!r}; it takes text, numbers, lists and tables")
