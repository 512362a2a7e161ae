"""``import laconic`` costs next to nothing: what a name stands for is imported when it is first used."""

import json
import subprocess
import sys

import laconic

SLOW = ["torch", "numpy", "numba", "plotly", "scipy", "networkx", "hypothesis", "triton", "pydantic", "typer", "rich"]


def imported(line):
    """What a fresh process has in ``sys.modules`` after this line that it had not before."""
    code = f"import sys, json; before = set(sys.modules); {line}; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_the_package_imports_none_of_its_rooms_and_nothing_that_is_slow():
    new = imported("import laconic")
    assert [name for name in new if name.split(".")[0] == "laconic"] == ["laconic"]
    assert [name for name in new if name.split(".")[0] in SLOW] == []


def test_a_name_that_needs_no_tensors_imports_none():
    new = imported("import laconic; laconic.ConfigError")
    assert [name for name in new if name.split(".")[0] == "laconic"] == ["laconic", "laconic.errors"]
    assert [name for name in new if name.split(".")[0] in SLOW] == []


def test_every_public_name_is_there_when_it_is_asked_for():
    for name in laconic.__all__:
        assert getattr(laconic, name) is not None
        assert name in dir(laconic)
