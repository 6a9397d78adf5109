"""The ``synq-fast compare`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import EMBEDDED, at_least, model_options, overrides, teacher
from synq_fast.storage.paths import user_path


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "compare",
        run,
        "quantize by several recipes and print what each loses",
        "synq-fast compare --recipes synq-digits synq-fast-digits --bits w4a4 w3a3 --seeds 0 1 2",
    )
    model_options(parser)
    parser.add_argument("--recipes", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--bits", nargs="+", default=["w4a4"], metavar="wXaY|auto:N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--data", metavar="SET", help="labelled images to count top-1 on")
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="runs, images and results; the same command goes on after a kill",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value of every recipe",
    )
    parser.add_argument("--jobs", type=at_least(1), default=1, metavar="N", help="runs at a time")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> None:
    """Compare and print the table."""
    from synq_fast.engine.comparison import compare

    comparison = compare(
        teacher(options),
        options.recipes,
        options.bits,
        options.seeds,
        evaluation=options.data or ("digits" if options.model == EMBEDDED else None),
        output=options.output,
        overrides=overrides(options),
        device=options.device,
        jobs=options.jobs,
        progress=not options.quiet,
    )
    print(comparison.table(), end="")
