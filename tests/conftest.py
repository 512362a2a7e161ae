"""What every test stands on: one thread, checked shapes, modest fuzzing, and golden files that one option rewrites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Before anything imports Triton: without a GPU its programs are run by its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.checked  # noqa: F401  (the hook below names it, and does not import it)

# Before anything of laconic is imported: from here on a compressor that breaks its annotated shapes fails its test.
install_import_hook("laconic.compress", "tests.checked.check")

torch.set_num_threads(1)

settings.register_profile(
    "laconic",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("laconic")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing them")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Compare bytes with the file of that name in ``tests/golden``, or write it if ``--update-golden`` was given."""

    def check(name: str, got: bytes) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.write_bytes(got)
        assert path.exists(), f"{path} is missing; write it with pytest --update-golden"
        assert got == path.read_bytes(), f"{name} changed: if that is meant, raise packet.VERSION and --update-golden"

    return check
