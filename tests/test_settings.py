"""Settings that cannot be are refused in a sentence where a part is made, not at its first step."""

import inspect
import subprocess
import sys

import pytest

from laconic import compress, exchange, sync
from laconic.compress.base import count
from laconic.errors import ConfigError

WRONG = ["1.5", "2.0", "'3'", "True", "None", "float('nan')", "[1]"]


def counting():
    """Parts and those of their settings whose default is a whole number."""
    return [
        (room.__name__, name, parameter.name)
        for room in (compress, exchange, sync)
        for name in room.__all__
        if inspect.isfunction(getattr(room, name))
        for parameter in inspect.signature(getattr(room, name)).parameters.values()
        if type(parameter.default) is int
    ]


def test_every_setting_that_counts_takes_whole_numbers_alone_and_says_so():
    """In a process of its own: here, annotations are checked before a part sees what it is given."""
    lines = ["import importlib", "from laconic.errors import ConfigError", "def refused(room, name, setting, value):"]
    lines += ["    try: getattr(importlib.import_module(room), name)(**{setting: value})"]
    lines += ["    except ConfigError as error: return setting in str(error) and 'whole number' in str(error)"]
    lines += ["    except Exception: return False", "    return False", f"for part in {counting()}:"]
    lines += [f"    for value in [{', '.join(WRONG)}]:", "        if not refused(*part, value): print(*part, value)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0), done.stdout + done.stderr


def test_a_count_is_passed_on_and_what_is_none_is_named():
    assert count("here", 3, "number") == 3
    assert count("here", -3, "number", None) == -3
    with pytest.raises(ConfigError, match=r"^here: number must be a whole number of at least 4, got 3$"):
        count("here", 3, "number", 4)
    with pytest.raises(ConfigError, match=r"^here: number must be a whole number, got 'three'$"):
        count("here", "three", "number", None)
