"""The command line: train, compare, methods, parts, report, testbed and the planner's."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; every foreseen error is a sentence and exit status 2."""
    from laconic.cli.app import app
    from laconic.errors import LaconicError

    try:
        app(prog_name="laconic")
    except LaconicError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"[bold red]laconic:[/] {_plain(str(error))}", highlight=False)
        sys.exit(2)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
