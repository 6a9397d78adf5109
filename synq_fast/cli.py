"""The ``synq-fast`` command.

Only what reads the arguments is imported here: help is there at once, torch when work begins.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from synq_fast import recipes
from synq_fast.cli_bench import add_bench_commands
from synq_fast.cli_command import add_command
from synq_fast.errors import LostRankError, RecipeError, SynqFastError
from synq_fast.first_process import is_first_process
from synq_fast.paths import user_path

EMBEDDED = "digits-resnet20"
_OWN_SET = {
    EMBEDDED: "digits",
    "cifar10-resnet20": "cifar10",
    "cifar100-resnet20kd": "cifar100",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when all went well, 1 when a benchmark's check failed, 2 for what the user can mend, 130
        after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    from synq_fast.progress import plain_warnings

    try:
        with plain_warnings():
            status: int | None = options.run(options)
    except SynqFastError as error:
        # Those that lost another process have nothing to add to what that one says.
        if is_first_process() or not isinstance(error, LostRankError):
            print(f"synq-fast: error{_of_rank()}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if is_first_process():
            print(f"\nsynq-fast: stopped. {_way_on(options, given)}".rstrip(), file=sys.stderr)
        return 130
    return status or 0


def _of_rank() -> str:
    return "" if is_first_process() else f" on rank {os.environ.get('RANK', '?')}"


def _way_on(options: argparse.Namespace, given: list[str]) -> str:
    if options.command not in ("quantize", "synthesize"):
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

    quantize = add_command(
        commands,
        "quantize",
        _quantize,
        "quantize a model without data",
        "synq-fast quantize --model cifar10-resnet20 --weights resnet20.safetensors \\\n"
        "      --bits w4a4 w3a3 --data cifar10 --output runs/cifar10",
    )
    _model_options(quantize)
    quantize.add_argument(
        "--bits", nargs="+", default=["w4a4"], metavar="wXaY", help="one or several bit widths"
    )
    _synthesis_options(quantize)
    quantize.add_argument(
        "--output", type=user_path, metavar="FOLDER", help="run folder, one per width"
    )
    quantize.add_argument("--resume", action="store_true", help="continue an interrupted run")
    quantize.add_argument(
        "--bank", type=user_path, metavar="FOLDER", help="synthetic images to share"
    )
    quantize.add_argument("--data", metavar="SET", help="labelled images to report accuracy on")
    quantize.add_argument(
        "--evaluate-every",
        type=_at_least(0),
        default=0,
        metavar="STEPS",
        help="also during fine-tuning",
    )

    synthesize = add_command(
        commands,
        "synthesize",
        _synthesize,
        "make the synthetic images only",
        "synq-fast synthesize --output bank --set synthesis.images=2048",
    )
    _model_options(synthesize)
    _synthesis_options(synthesize)
    synthesize.add_argument("--output", type=user_path, required=True, metavar="FOLDER")

    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy of a teacher or of a quantized model",
        "synq-fast evaluate runs/digits/w4a4 --data digits",
    )
    evaluate.add_argument("saved", nargs="?", type=user_path, help="run folder or saved model")
    _model_options(evaluate)
    evaluate.add_argument("--data", metavar="SET", help="labelled images: a name or a path")
    evaluate.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    evaluate.add_argument("--batch-size", type=_at_least(1), default=256, metavar="N")
    evaluate.add_argument(
        "--precision", choices=["float32", "tf32", "bf16"], default="float32", help="of the network"
    )
    evaluate.add_argument(
        "--workers", type=_at_least(0), metavar="N", help="processes that decode a folder's images"
    )

    add_bench_commands(commands)
    add_command(commands, "info", _info, "versions, backends and what is missing", "synq-fast info")
    show = add_command(
        commands, "recipes", _recipes, "list recipes, or show one", "synq-fast recipes synq-cifar"
    )
    show.add_argument("name", nargs="?", help="a recipe's name or path")
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"teacher: {EMBEDDED} (default), cifar10-resnet20, cifar100-resnet20kd, a torchvision "
        f"name, or package.module:factory",
    )
    parser.add_argument("--weights", metavar="PATH", help="its checkpoint (.safetensors or .pt)")
    parser.add_argument("--input-shape", metavar="C,H,W", type=_shape, help="for your own models")
    parser.add_argument(
        "--model-option",
        dest="model_options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the model's builder, e.g. --model-option transform_input=false",
    )


def _synthesis_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="recipe's name or path, by default one for the model's image size; see: synq-fast "
        "recipes",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a recipe value, e.g. --set finetune.steps=500",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU where there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected C,H,W such as 3,32,32, got {text!r}") from None
    return channels, height, width


def _at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low}, got {text!r}")
        return int(text)

    return parse


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    return _assignments(options.overrides, "--set", "finetune.steps=500")


def _assignments(texts: Sequence[str], flag: str, example: str) -> dict[str, Any]:
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{flag} takes KEY=VALUE, e.g. {example}, got {text!r}")
        values[key.strip()] = recipes.parse_value(value)
    return values


def _teacher(options: argparse.Namespace) -> Any:
    from synq_fast.models import load_teacher

    builder = _assignments(options.model_options, "--model-option", "transform_input=false")
    return load_teacher(
        options.model, weights=options.weights, input_shape=options.input_shape, options=builder
    )


def _quantize(options: argparse.Namespace) -> None:
    from synq_fast.engine import quantize
    from synq_fast.quant import BitWidths

    if options.resume and options.output is None:
        raise RecipeError("--resume continues the run in a folder: name it with --output")
    widths = [BitWidths.parse(text) for text in options.bits]
    overrides = _overrides(options)
    if options.recipe is not None:
        # A mistake shows before a model is fetched.
        recipes.load_recipe(options.recipe, overrides)
    teacher = _teacher(options)
    data = options.data or ("digits" if options.model == EMBEDDED else None)
    rows: dict[str, dict[str, Any]] = {}
    for bits in widths:
        output = options.output / str(bits) if options.output else None
        shared = options.bank or (options.output / "bank" if options.output else None)
        result = quantize(
            teacher,
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
            overrides=overrides,
        )
        recipe = result.recipe.name
        rows[str(bits)] = result.metrics
    if is_first_process():
        _print_metrics(teacher.name, recipe, data, rows, options.output)


def _print_metrics(
    teacher: str,
    recipe: str,
    data: str | None,
    rows: dict[str, dict[str, Any]],
    output: Path | None,
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if data is not None:
        stages = ("float32", "post-training", "quantized", "best seen")
        shown = [s for s in stages if any(s in metrics for metrics in rows.values())]
        table = Table(title=f"{teacher}, {recipe}: top-1 in % on {data}")
        titles = {
            "quantized": f"{recipe} (last step)",
            "best seen": "best seen (not the result)",
        }
        for column in ("bits", *(titles.get(stage, stage) for stage in shown), "seconds"):
            table.add_column(column, justify="right")
        for bits, metrics in rows.items():
            accuracies = [
                f"{metrics[stage]['top1']:.2f}" if stage in metrics else "-" for stage in shown
            ]
            table.add_row(bits, *accuracies, f"{sum(metrics['seconds'].values()):.0f}")
        console.print(table)
    if output is not None:
        console.print(f"Models, logs and metrics: {', '.join(str(output / b) for b in rows)}")


def _synthesize(options: argparse.Namespace) -> None:
    from synq_fast.engine import synthesize

    bank = synthesize(
        _teacher(options),
        options.output,
        options.recipe,
        seed=options.seed,
        overrides=_overrides(options),
        device=options.device,
        progress=not options.quiet,
    )
    if is_first_process():
        print(f"{len(bank)} images in {options.output}")


def _evaluate(options: argparse.Namespace) -> None:
    from synq_fast.devices import chosen_device
    from synq_fast.evaluation import evaluate
    from synq_fast.saved_model import coverage, load_quantized

    if options.saved and (options.weights or options.input_shape or options.model != EMBEDDED):
        raise RecipeError(
            f"{options.saved} holds a whole model: --model, --weights and --input-shape belong to "
            f"teachers; leave out one or the other"
        )
    teacher = load_quantized(options.saved) if options.saved else _teacher(options)
    data = options.data or _OWN_SET.get(teacher.name)
    if data is None:
        raise RecipeError("name the labelled images to evaluate on with --data")
    device = chosen_device(options.device)
    result = evaluate(
        teacher,
        data,
        batch_size=options.batch_size,
        device=device,
        progress=sys.stderr.isatty(),
        precision=options.precision,
        workers=options.workers,
    )
    if options.saved:
        print(coverage(teacher.module))
    print(
        f"{teacher.name} on {data}: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %, "
        f"loss {result.loss:.4f}, {result.count} images"
    )


def _info(options: argparse.Namespace) -> None:
    from synq_fast import info

    print(info.render(info.report()))


def _recipes(options: argparse.Namespace) -> None:
    if options.name:
        print(recipes.dump_recipe(recipes.load_recipe(options.name)), end="")
        return
    for name in recipes.list_recipes():
        print(f"{name:16} {recipes.load_recipe(name).summary}")


if __name__ == "__main__":
    sys.exit(main())
