"""The ``synq-fast sensitivity`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import model_options, overrides, run_options, teacher
from synq_fast.runtime.first_process import is_first_process
from synq_fast.storage.paths import user_path


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "sensitivity",
        run,
        "measure what each layer loses at each width, without data",
        "synq-fast sensitivity --recipe calibrate-digits --output runs/sensitivity",
    )
    model_options(parser)
    run_options(parser)
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="sensitivity.json, table and images; the same command goes on after a kill",
    )
    parser.add_argument(
        "--bank", type=user_path, metavar="FOLDER", help="synthetic images to share"
    )


def run(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    from synq_fast.engine.sensitivity import sensitivity

    found = sensitivity(
        teacher(options),
        options.recipe,
        seed=options.seed,
        output=options.output,
        overrides=overrides(options),
        device=options.device,
        progress=not options.quiet,
        bank=options.bank,
    )
    if is_first_process():
        print(found.table(), end="")
