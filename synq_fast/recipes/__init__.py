"""Recipes: one TOML file per method and family of models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from synq_fast.recipes.files import list_recipes, parse_value, read

if TYPE_CHECKING:
    from synq_fast.recipes.default import default_recipe
    from synq_fast.recipes.loading import dump_recipe, load_recipe, read_section
    from synq_fast.recipes.schema import Recipe

# The parts of a recipe are the mathematics itself, and bring torch: to list names is no reason.
_LAZY = {
    "Recipe": "schema",
    "default_recipe": "default",
    "dump_recipe": "loading",
    "load_recipe": "loading",
    "read_section": "loading",
}

__all__ = [
    "Recipe",
    "default_recipe",
    "dump_recipe",
    "list_recipes",
    "load_recipe",
    "parse_value",
    "read",
    "read_section",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
