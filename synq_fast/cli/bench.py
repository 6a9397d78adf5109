"""The ``synq-fast bench`` command."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.storage.paths import user_path

# Parts with a network of their own.
_FIXED = ("blocks", "transformer")


def add(commands: Any) -> None:
    """Add the command with its parts to the subparsers ``commands``."""
    bench = add_command(
        commands,
        "bench",
        run,
        "measure the ops and the steps beside what one would use instead",
        "synq-fast bench ops --op fake_quantize --json ops.json --plot ops.png",
    )
    parts = bench.add_subparsers(dest="part", required=True, metavar="PART")
    what = {
        "ops": "time each op, in GB/s and beside PyTorch, torch.compile and a plain copy",
        "step": "time a fine-tuning step beside the published one, and where its time goes",
        "blocks": "time a step of block reconstruction beside plain PyTorch",
        "transformer": "time a step of a quantized transformer beside PyTorch's quantizers",
        "synthesis": "time a synthesis iteration beside the published one, and where its time goes",
    }
    for part, help in what.items():
        example = "ops --op fake_quantize low_pass --threads 2 --plot ops.png"
        if part != "ops":
            own = "" if part in _FIXED else " --model resnet18"
            example = f"{part}{own} --json {part}.json"
        parser = add_command(parts, part, run, help, f"synq-fast bench {example}")
        if part == "ops":
            parser.add_argument(
                "--op", nargs="+", metavar="NAME", help="only these ops, by default all"
            )
        elif part not in _FIXED:
            _workload_options(parser, part)
        parser.add_argument(
            "--device", choices=["cpu", "cuda"], help="by default a GPU where there is one"
        )
        parser.add_argument("--threads", type=int, metavar="N", help="on a CPU, by default 2")
        parser.add_argument(
            "--rounds", type=int, metavar="N", help="rounds of each row: fewer are quicker, noisier"
        )
        parser.add_argument("--json", type=user_path, metavar="FILE", help="write the rows")
        if part == "ops":
            parser.add_argument(
                "--plot",
                type=user_path,
                metavar="FILE",
                help="draw the fraction of the copy bandwidth",
            )


def _workload_options(parser: argparse.ArgumentParser, part: str) -> None:
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a model, measured untrained: cifar10-resnet20 (default), digits-resnet20, a "
        "torchvision name such as resnet18, timm/NAME, or package.module:factory",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="images in a batch")
    parser.add_argument(
        "--size", type=int, metavar="PX", help="sides of the images, by default the model's own"
    )
    parser.add_argument(
        "--switches",
        action="store_true",
        help="instead: what each inefficiency of the published code costs",
    )
    if part == "step":
        parser.add_argument(
            "--aging", action="store_true", help="instead: the 2,000th step beside the first"
        )


def run(options: argparse.Namespace) -> int:
    """Measure; 1 where a check failed."""
    from synq_fast.cli import suites

    whole = options.part in suites.WHOLE
    names = [options.part] if whole else suites.op_suites(options.op)
    given = vars(options)
    fields = ("model", "batch", "size", "switches", "aging")
    workload = suites.Workload(**{name: given[name] for name in fields if name in given})
    passed = suites.run(
        names,
        device=options.device,
        threads=options.threads,
        rounds=options.rounds,
        json=options.json,
        plot=getattr(options, "plot", None),
        workload=workload,
    )
    if not passed:
        print("synq-fast: not every benchmark passed its check; see above", file=sys.stderr)
    return 0 if passed else 1
