"""The command line, as the tests of this folder run it."""

import sys

import pytest

from laconic.cli import main


@pytest.fixture
def laconic(monkeypatch, capfd, tmp_path):
    """Run a command line here, in an empty folder; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["laconic", *map(str, argv)])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capfd.readouterr()

    return run
