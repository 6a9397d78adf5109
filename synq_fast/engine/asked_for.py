"""The teacher and the recipe that a run is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from synq_fast.errors import TraceError
from synq_fast.graph.attention import find_attentions
from synq_fast.graph.trace import trace
from synq_fast.models import Teacher, load_teacher
from synq_fast.quant.bits import LOWEST, Bits, BitWidths
from synq_fast.recipes import Recipe, default_recipe, load_recipe


def asked_for(
    teacher: str | nn.Module | Teacher,
    recipe: str | Path | Recipe | None,
    input_shape: tuple[int, int, int] | None,
    overrides: Mapping[str, Any] | None,
    bits: Bits | None = None,
) -> tuple[Teacher, Recipe, str]:
    """Find both; without a recipe the one that suits the teacher, and the widths where given.

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
    lowest = min(bits.weight, bits.activation) if isinstance(bits, BitWidths) else LOWEST
    attends = _is_transformer(loaded)
    name, reason = default_recipe(loaded.input_shape, attends=attends, lowest=lowest)
    line = f"recipe {name}, {reason} (choose another with recipe=NAME or --recipe NAME)"
    return loaded, load_recipe(name, overrides), line


def _is_transformer(teacher: Teacher) -> bool:
    """Whether there are attentions, and no BatchNorm whose statistics say more."""
    kinds = [type(module) for module in teacher.module.modules()]
    if not any(issubclass(kind, nn.LayerNorm) for kind in kinds):
        return False
    if any(issubclass(kind, nn.BatchNorm2d) for kind in kinds):
        return False
    try:
        return bool(find_attentions(trace(teacher.module, teacher.example())))
    except TraceError:
        return False  # the run says why
