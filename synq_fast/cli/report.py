"""The ``synq-fast report`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.storage.paths import user_path


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "report",
        run,
        "write one HTML page on a run: accuracy, images, losses, maps, layers, time",
        "synq-fast report runs/cifar10 --output cifar10.html --images cifar10",
    )
    parser.add_argument(
        "folder", metavar="RUN", type=user_path, help="run folder, or one with a folder per width"
    )
    parser.add_argument(
        "--output", type=user_path, metavar="FILE", help="the page, by default RUN/report.html"
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER|SET",
        help="real images whose spectrum is shown beside that of the synthetic ones",
    )
    parser.add_argument(
        "--model",
        help="float network, by default the one that the run was started with; package.module:"
        "factory for a module of yours",
    )
    parser.add_argument(
        "--weights", metavar="PATH", help="its checkpoint, where it is not where the run found it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> None:
    """Write the page and say where it is."""
    from synq_fast.engine.report import report

    page = report(
        options.folder,
        options.output,
        images=options.images,
        teacher=options.model,
        weights=options.weights,
        progress=not options.quiet,
    )
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
