"""The ``synq-fast`` command, one file per subcommand.

Only what reads the arguments is imported here: help is there at once, torch when work begins.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from synq_fast.cli import (
    bench,
    compare,
    evaluate,
    export,
    info,
    quantize,
    recipes,
    report,
    sensitivity,
    study,
    synthesize,
)
from synq_fast.errors import LostRankError, SynqFastError
from synq_fast.runtime.first_process import is_first_process


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 when a benchmark's check failed, 2 for what the user can mend, 130
        after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    from synq_fast.runtime.progress import plain_warnings

    try:
        with plain_warnings():
            status: int | None = options.run(options)
            sys.stdout.flush()
    except SynqFastError as error:
        # Those that lost another process have nothing to add to what that one says.
        if is_first_process() or not isinstance(error, LostRankError):
            print(f"synq-fast: error{_of_rank()}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if is_first_process():
            print(f"\nsynq-fast: stopped. {_way_on(options, given)}".rstrip(), file=sys.stderr)
        return 130
    return status or 0


def _of_rank() -> str:
    return "" if is_first_process() else f" on rank {os.environ.get('RANK', '?')}"


def _way_on(options: argparse.Namespace, given: list[str]) -> str:
    if options.command not in ("quantize", "synthesize", "sensitivity", "study", "compare"):
        return ""
    if options.output is None:
        return "Nothing was written; with --output FOLDER a run can be resumed"
    resume = [] if "--resume" in given or options.command != "quantize" else ["--resume"]
    return f"Finished work is kept; continue with: {shlex.join(['synq-fast', *given, *resume])}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synq-fast", description="Quantize a vision model to 2-8 bits without any data."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for command in (
        quantize,
        synthesize,
        sensitivity,
        evaluate,
        compare,
        study,
        export,
        report,
        bench,
        info,
        recipes,
    ):
        command.add(commands)
    return parser
