"""How every command of ``synq-fast`` is declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    help: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command whose help ends with an example.

    Args:
        commands: what ``add_subparsers`` returned.
        name: the command.
        run: what it does; returns the exit status.
        help: a line without a capital at its start or a full stop.
        example: a command line that works.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
