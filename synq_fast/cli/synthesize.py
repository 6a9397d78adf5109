"""The ``synq-fast synthesize`` command."""

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
        "synthesize",
        run,
        "make the synthetic images only",
        "synq-fast synthesize --output bank --set synthesis.images=2048",
    )
    model_options(parser)
    run_options(parser)
    parser.add_argument("--output", type=user_path, required=True, metavar="FOLDER")


def run(options: argparse.Namespace) -> None:
    """Make the images."""
    from synq_fast.engine import synthesize

    bank = synthesize(
        teacher(options),
        options.output,
        options.recipe,
        seed=options.seed,
        overrides=overrides(options),
        device=options.device,
        progress=not options.quiet,
    )
    if is_first_process():
        print(f"{len(bank)} images in {options.output}")
