"""The ``synq-fast recipes`` command."""

from __future__ import annotations

import argparse
from typing import Any

from synq_fast.cli.command import add_command


def add(commands: Any) -> None:
    """Add the command to the subparsers ``commands``."""
    parser = add_command(
        commands, "recipes", run, "list recipes, or show one", "synq-fast recipes synq-cifar"
    )
    parser.add_argument("name", nargs="?", help="a recipe's name or path")


def run(options: argparse.Namespace) -> None:
    """Print one recipe, or a line for each."""
    from synq_fast import recipes

    if options.name:
        recipes.read(options.name)  # a wrong name shows at once
        recipe = recipes.load_recipe(options.name)
        print(recipes.dump_recipe(recipe, explained=True), end="")
        return
    for name in recipes.list_recipes():
        print(f"{name:16} {recipes.read(name)[0]['summary']}")
