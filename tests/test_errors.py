"""The tree of errors is the whole tree."""

import re
from pathlib import Path

import laconic
from laconic import errors


def _is_error(value):
    return isinstance(value, type) and issubclass(value, Exception)


def test_every_error_is_in_the_file_and_drawn_where_it_hangs():
    drawn: dict[str, str] = {}
    tree = [(len(indent), name) for indent, name in re.findall(r"^    ([ │├└─]*)(\w+)", errors.__doc__, re.MULTILINE)]
    path: list[str] = []
    for depth, name in tree:
        path = [*path[: depth // 4], name]
        drawn[name] = path[-2] if len(path) > 1 else "Exception"
    named = {kind.__name__: kind.__base__.__name__ for kind in vars(errors).values() if _is_error(kind)}
    assert named == drawn
    elsewhere = re.compile(rf"^class \w+\([^)]*\b({'|'.join(drawn)})\b", re.MULTILINE)
    for file in Path(laconic.__path__[0]).rglob("*.py"):
        assert file.name == "errors.py" or not elsewhere.search(file.read_text()), file
