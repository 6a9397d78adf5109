"""The ``synq-fast export`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import at_least
from synq_fast.storage.paths import user_path


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "export",
        run,
        "write a quantized model as a file that runs in integers, and check it",
        "synq-fast export runs/digits/w4a4 digits.onnx --data digits",
    )
    parser.add_argument("saved", type=user_path, help="run folder or saved model")
    parser.add_argument(
        "file",
        type=user_path,
        help="what to write: NAME.onnx, or NAME.safetensors for a packed file",
    )
    parser.add_argument(
        "--target",
        default="ort",
        choices=["ort", "openvino", "tensorrt", "xnnpack"],
        help="the runtime that it is for; default ort, ONNX Runtime",
    )
    parser.add_argument("--data", metavar="SET", help="labelled images to count accuracy on")
    parser.add_argument(
        "--batch", type=at_least(1), metavar="N", help="images at a time; by default any number"
    )
    parser.add_argument(
        "--normalize", action="store_true", help="the file takes images of 0..1 and normalises them"
    )
    parser.add_argument(
        "--reduce-range",
        action="store_true",
        help="weights of half the range, for x86 processors without VNNI",
    )
    parser.add_argument("--compare", action="store_true", help="a table of what each layer loses")
    parser.add_argument("--threads", type=at_least(1), metavar="N", help="of the runtimes")
    parser.add_argument(
        "--no-verify", action="store_true", help="write the file without running it"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(options: argparse.Namespace) -> None:
    """Write the file and print what was found."""
    from synq_fast.engine.exporting import export

    report = export(
        options.saved,
        options.file,
        "packed" if options.file.suffix == ".safetensors" else "onnx",
        target=options.target,
        verify=not options.no_verify,
        evaluation=options.data,
        batch=options.batch,
        normalize=options.normalize,
        reduce_range=options.reduce_range,
        compare=options.compare,
        threads=options.threads,
        progress=not options.quiet,
    )
    print(report)
