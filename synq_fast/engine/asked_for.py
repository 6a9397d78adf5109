"""The teacher and the recipe that a run is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from synq_fast.models import Teacher, load_teacher
from synq_fast.recipes import Recipe, default_recipe, load_recipe


def asked_for(
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe | None,
    input_shape: tuple[int, int, int] | None,
    overrides: Mapping[str, Any] | None,
) -> tuple[Teacher, Recipe, str]:
    """Find both; without a recipe the one that suits the teacher.

    Returns:
        The teacher, the recipe, and a line that says which recipe it is and why.

    Raises:
        SynqFastError: one of its kinds, for a model or a recipe that is not there or malformed.
    """
    if recipe is not None:
        # First, so that a mistake shows before a model is fetched.
        chosen = load_recipe(recipe, overrides)
        return load_teacher(teacher, input_shape=input_shape), chosen, f"recipe {chosen.name}"
    loaded = load_teacher(teacher, input_shape=input_shape)
    name, reason = default_recipe(loaded.input_shape)
    line = f"recipe {name}, {reason} (choose another with recipe=NAME or --recipe NAME)"
    return loaded, load_recipe(name, overrides), line
