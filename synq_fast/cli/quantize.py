"""The ``synq-fast quantize`` command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from synq_fast.cli.command import add_command
from synq_fast.cli.options import (
    EMBEDDED,
    at_least,
    model_options,
    overrides,
    run_options,
    teacher,
)
from synq_fast.errors import RecipeError
from synq_fast.runtime.first_process import is_first_process
from synq_fast.storage.paths import user_path


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands,
        "quantize",
        run,
        "quantize a model without data",
        "synq-fast quantize --model cifar10-resnet20 --weights resnet20.safetensors \\\n"
        "      --bits w4a4 w3a3 --data cifar10 --output runs/cifar10",
    )
    model_options(parser)
    parser.add_argument(
        "--bits",
        nargs="+",
        default=["w4a4"],
        metavar="wXaY|auto:N",
        help="one or several bit widths, or widths found for an average such as auto:4.0",
    )
    run_options(parser)
    parser.add_argument(
        "--output",
        type=user_path,
        metavar="FOLDER",
        help="run folder, one per width; without it the figures are shown and nothing is kept",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument(
        "--bank", type=user_path, metavar="FOLDER", help="synthetic images to share"
    )
    parser.add_argument("--data", metavar="SET", help="labelled images to report accuracy on")
    parser.add_argument(
        "--evaluate-every",
        type=at_least(0),
        default=0,
        metavar="STEPS",
        help="also during fine-tuning",
    )
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="records and images for TensorBoard, in each run folder",
    )


def run(options: argparse.Namespace) -> None:
    """Quantize at each width and print a table."""
    from synq_fast.engine import quantize
    from synq_fast.quant.bits import folder_name, parse_bits
    from synq_fast.recipes import load_recipe

    if options.resume and options.output is None:
        raise RecipeError("--resume continues the run in a folder: name it with --output")
    if options.tensorboard and options.output is None:
        raise RecipeError("--tensorboard shows the run in a folder: name it with --output")
    widths = [parse_bits(text) for text in options.bits]
    changes = overrides(options)
    if options.recipe is not None:
        # A mistake shows before a model is fetched.
        load_recipe(options.recipe, changes)
    taught = teacher(options)
    if options.output is None and not options.quiet and is_first_process():
        print("Without --output FOLDER no model is kept, only figures are shown", file=sys.stderr)
    data = options.data or ("digits" if options.model == EMBEDDED else None)
    rows: dict[str, dict[str, Any]] = {}
    recipes: dict[str, str] = {}
    folders: list[Path] = []
    for bits in widths:
        output = options.output / folder_name(bits) if options.output else None
        shared = options.bank or (options.output / "bank" if options.output else None)
        if output is not None:
            folders.append(output)
        result = quantize(
            taught,
            options.recipe,
            bits,
            seed=options.seed,
            output=output,
            device=options.device,
            progress=not options.quiet,
            resume=bool(options.resume and output and (output / "run.json").exists()),
            bank=shared,
            evaluation=data,
            evaluate_every=options.evaluate_every,
            overrides=changes,
            tensorboard=options.tensorboard,
        )
        recipes[str(bits)] = result.recipe.name
        rows[str(bits)] = result.metrics
    if is_first_process():
        _print_metrics(taught.name, recipes, data, rows)
        if folders:
            print(f"Models, logs and metrics: {', '.join(map(str, folders))}")


def _print_metrics(
    teacher: str,
    recipes: dict[str, str],
    data: str | None,
    rows: dict[str, dict[str, Any]],
) -> None:
    """Print a row for each width; a recipe is named with its row where there are several."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if data is not None:
        stages = ("float32", "post-training", "quantized", "best seen")
        shown = [s for s in stages if any(s in metrics for metrics in rows.values())]
        several = len(set(recipes.values())) > 1
        named = " and ".join(dict.fromkeys(recipes.values()))
        table = Table(title=f"{teacher}, {named}: top-1 in % on {data}")
        titles = {
            "quantized": "last step" if several else f"{named} (last step)",
            "best seen": "best seen (not the result)",
        }
        columns = ["bits", *(["recipe"] if several else [])]
        for column in (*columns, *(titles.get(stage, stage) for stage in shown), "seconds"):
            table.add_column(column, justify="right")
        for bits, metrics in rows.items():
            accuracies = [
                f"{metrics[stage]['top1']:.2f}" if stage in metrics else "-" for stage in shown
            ]
            named_row = [bits, *([recipes[bits]] if several else [])]
            table.add_row(*named_row, *accuracies, f"{sum(metrics['seconds'].values()):.0f}")
        console.print(table)
