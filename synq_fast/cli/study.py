"""The ``synq-fast study`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import EMBEDDED, assignments, model_options, overrides, teacher
from synq_fast.storage.paths import user_path
from synq_fast.studies import STUDIES


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "study",
        run,
        "answer one question about the method: overhead, noise, cam, labels or spectra",
        "synq-fast study noise --option steps=20 --seeds 0 1 --output runs/studies",
    )
    parser.add_argument("study", metavar="STUDY", help=", ".join(STUDIES))
    model_options(parser)
    parser.add_argument("--recipe", metavar="NAME", help="by default SynQ's for such images")
    parser.add_argument("--bits", default="w4a4", metavar="wXaY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--data",
        metavar="SET|FOLDER",
        help="images to measure on: labelled ones, for spectra any; they decide nothing",
    )
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="results, picture, page and images; the same command goes on after a kill",
    )
    parser.add_argument(
        "--option",
        dest="study_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a value of the study's own, e.g. --option steps=100",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a recipe value",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> None:
    """Do the study, and print what it found."""
    from synq_fast.studies.running import study

    found = study(
        options.study,
        teacher(options),
        options.recipe,
        options.bits,
        options.seeds,
        data=options.data or ("digits" if options.model == EMBEDDED else None),
        output=options.output,
        overrides=overrides(options),
        options=assignments(options.study_options, "--option", "steps=100"),
        device=options.device,
        progress=not options.quiet,
    )
    if options.output is None:
        print(found, end="")
        return
    for sentence in found.findings:
        print(f"- {sentence}")
    print(found.page_path)
