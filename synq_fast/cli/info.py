"""The ``synq-fast info`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    add_command(commands, "info", run, "versions, backends and what is missing", "synq-fast info")


def run(options: argparse.Namespace) -> None:
    """Print the report."""
    from synq_fast.ops import _installation

    print(_installation.render(_installation.report()))
