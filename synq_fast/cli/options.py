"""Options and values that several commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from synq_fast.errors import RecipeError

EMBEDDED = "digits-resnet20"
"""The model that is taken where none is named; it comes with the package."""


def model_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a teacher; ``teacher`` reads it."""
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"teacher: {EMBEDDED} (default), cifar10-resnet20, cifar100-resnet20kd, a torchvision "
        f"name such as resnet18, timm/NAME, or package.module:factory",
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


def run_options(parser: argparse.ArgumentParser) -> None:
    """Add what chooses a recipe and where it runs."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="recipe's name or path, by default one that suits the model; see: synq-fast recipes",
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


def at_least(low: int) -> Callable[[str], int]:
    """A type of option: a whole number from ``low``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low}, got {text!r}")
        return int(text)

    return parse


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The values of ``--set`` by dotted key."""
    return assignments(options.overrides, "--set", "finetune.steps=500")


def teacher(options: argparse.Namespace) -> Any:
    """The teacher that ``model_options`` chose."""
    from synq_fast.models import load_teacher

    builder = assignments(options.model_options, "--model-option", "transform_input=false")
    return load_teacher(
        options.model, weights=options.weights, input_shape=options.input_shape, options=builder
    )


def assignments(texts: Sequence[str], flag: str, example: str) -> dict[str, Any]:
    """The values of an option that is given as KEY=VALUE, as often as wanted."""
    from synq_fast.recipes import parse_value

    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{flag} takes KEY=VALUE, e.g. {example}, got {text!r}")
        values[key.strip()] = parse_value(value)
    return values
