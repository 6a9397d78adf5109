"""The ``synq-fast evaluate`` command."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import EMBEDDED, at_least, model_options, teacher
from synq_fast.errors import RecipeError
from synq_fast.storage.paths import user_path

_OWN_SET = {
    EMBEDDED: "digits",
    "cifar10-resnet20": "cifar10",
    "cifar100-resnet20kd": "cifar100",
}


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "evaluate",
        run,
        "accuracy of a teacher or of a quantized model",
        "synq-fast evaluate runs/digits/w4a4 --data digits",
    )
    parser.add_argument("saved", nargs="?", type=user_path, help="run folder or saved model")
    model_options(parser)
    parser.add_argument("--data", metavar="SET", help="labelled images: a name or a path")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1; by default a GPU where there is one, for int8 the CPU"
    )
    parser.add_argument("--batch-size", type=at_least(1), default=256, metavar="N")
    parser.add_argument(
        "--execution",
        choices=["fake", "frozen", "int8"],
        default="fake",
        help="of a saved model: fake-quantized (default), exact integers, or integer products: "
        "oneDNN's on a CPU, Triton's on a GPU",
    )
    parser.add_argument(
        "--precision", choices=["float32", "tf32", "bf16"], default="float32", help="of the network"
    )
    parser.add_argument(
        "--workers", type=at_least(0), metavar="N", help="processes that decode a folder's images"
    )


def run(options: argparse.Namespace) -> None:
    """Print coverage and accuracy."""
    from synq_fast.deployment.freezing import is_frozen
    from synq_fast.engine.evaluation import evaluate
    from synq_fast.engine.saved_model import coverage, executed, load_quantized
    from synq_fast.runtime.devices import chosen_device

    if options.saved and (options.weights or options.input_shape or options.model != EMBEDDED):
        raise RecipeError(
            f"{options.saved} holds a whole model: --model, --weights and --input-shape belong to "
            f"teachers; leave out one or the other"
        )
    if options.execution != "fake" and not options.saved:
        raise RecipeError("--execution belongs to saved models: name one")
    model = load_quantized(options.saved) if options.saved else teacher(options)
    data = options.data or _OWN_SET.get(model.name)
    if data is None:
        raise RecipeError("name the labelled images to evaluate on with --data")
    # Integer products are made for CPUs; a GPU is asked for them by name.
    default = "cpu" if options.execution == "int8" else None
    device = chosen_device(options.device or default)
    result = evaluate(
        replace(model, module=executed(model.module, options.execution, device)),
        data,
        batch_size=options.batch_size,
        device=device,
        progress=sys.stderr.isatty(),
        precision=options.precision,
        workers=options.workers,
    )
    if options.saved and not is_frozen(model.module):
        print(coverage(model.module))
    print(
        f"{model.name} on {data}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"loss {result.loss:.4f}, {result.count} images"
    )
