"""Recipes from what files and people say, strict about every key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from synq_fast.errors import RecipeError, SynqFastWarning
from synq_fast.recipes.consistency import check_consistency
from synq_fast.recipes.described import comments
from synq_fast.recipes.effects import without_effect
from synq_fast.recipes.files import read
from synq_fast.recipes.schema import OPTIONAL_STAGES, Recipe, as_table
from synq_fast.recipes.toml import dumps

Section = TypeVar("Section")

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def load_recipe(
    name_or_path: str | Path | Recipe, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe and apply overrides; warns of overrides that can have no effect.

    Args:
        name_or_path: a name of ``list_recipes()``, the path of a TOML file, or a recipe.
        overrides: values by dotted key, e.g. ``{"finetune.steps": 500}``, or sections of them,
            ``{"finetune": {"steps": 500}}``. NumPy's numbers and arrays count as Python's.

    Raises:
        RecipeError: no such recipe, not TOML, an unknown key, or a value of the wrong type or out
            of its bounds, or values that do not go together; the message names the key and what
            it takes.
    """
    if isinstance(name_or_path, Recipe):
        values: dict[str, Any] = as_table(name_or_path)
        source = name_or_path.name
    else:
        values, source = read(name_or_path)
    _name_default_parts(Recipe, values)
    for key, value in _flat(overrides or {}):
        *sections, last = key.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise RecipeError(f'override "{key}": "{section}" is a value, not a section')
        table[last] = value
    recipe: Recipe = _build(Recipe, values, "", source)
    check_consistency(recipe, source)
    for sentence in without_effect(recipe, overrides or {}):
        warnings.warn(sentence, SynqFastWarning, stacklevel=2)
    return recipe


def read_section(kind: type[Section], values: Mapping[str, Any], name: str, source: str) -> Section:
    """One section of a recipe alone.

    Args:
        kind: its class.
        values: by key.
        name: of the section.
        source: where the values are from, for errors.

    Raises:
        RecipeError: as ``load_recipe``.
    """
    section: Section = _build(kind, values, f"{name}.", source)
    return section


def dump_recipe(recipe: Recipe, *, explained: bool = False) -> str:
    """The recipe as TOML, every value written out; ``load_recipe`` reads it back unchanged.

    Args:
        recipe: what to write; sections of stages that it does without are left out.
        explained: put the meaning and the bounds of every value above it.
    """
    table = {
        key: value
        for key, value in as_table(recipe).items()
        if key not in OPTIONAL_STAGES or key in recipe.stages
    }
    return dumps(table, comments() if explained else None)


def _flat(overrides: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key, those of nested sections as well."""
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise RecipeError(
            f'overrides are values by dotted key, e.g. {{"finetune.steps": 500}}, got {overrides!r}'
        )
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _build(kind: type[Any], values: Mapping[str, Any], prefix: str, source: str) -> Any:
    hints = typing.get_type_hints(kind)
    registries = {f.name: f.metadata["parts"] for f in dataclasses.fields(kind) if _holds_parts(f)}
    fields = {f.name: f for f in dataclasses.fields(kind) if not _holds_parts(f)}
    sections = {n: hints[n] for n in fields if dataclasses.is_dataclass(hints[n])}
    for registry in registries.values():
        sections |= registry
    for key in values:
        if key not in fields and key not in sections:
            known = [*fields, *(n for n in sections if n not in fields)]
            close = difflib.get_close_matches(key, known, 1)
            hint = f'; did you mean "{prefix}{close[0]}"?' if close else ""
            raise RecipeError(
                f'{source}: unknown key "{prefix}{key}"{hint} (known here: {", ".join(known)})'
            )
    built: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{source}: {prefix}{name}"
        if name not in sections:
            built[name] = _value(hints[name], value, fields[name].metadata, where)
        elif isinstance(value, Mapping):
            built[name] = _build(sections[name], value, f"{prefix}{name}.", source)
        else:
            raise RecipeError(f"{where} is a section, got {value!r}")
    for name, registry in registries.items():
        named = tuple(built.pop(part) for part in registry if part in built)
        if named:
            built[name] = named
    return kind(**built)


def _name_default_parts(kind: type[Any], values: dict[str, Any]) -> None:
    """Write down the parts of every section that names none, so that overrides change them."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            table = values.setdefault(field.name, {})
            if isinstance(table, dict):
                _name_default_parts(hints[field.name], table)
        elif _holds_parts(field):
            registry = field.metadata["parts"]
            if not any(name in values for name in registry):
                names = {part: name for name, part in registry.items()}
                default: Any = field.default
                values |= {names[type(each)]: as_table(each) for each in default}


def _holds_parts(field: dataclasses.Field[Any]) -> bool:
    return "parts" in field.metadata


def _plain(value: Any) -> Any:
    """A value as Python's own type: those of NumPy, and subclasses of str and int, look like it."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def _value(hint: Any, value: Any, bounds: Mapping[str, Any], where: str) -> Any:
    value = _plain(value)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        open_ended = inner[-1] is Ellipsis
        if not isinstance(value, list | tuple) or not (open_ended or len(value) == len(inner)):
            length = "any number of" if open_ended else str(len(inner))
            raise RecipeError(
                f"{where} must be a list of {length} values, in brackets with commas between "
                f"them, got {value!r}"
            )
        items = tuple(_value(inner[0], item, bounds, where) for item in value)
        if bounds.get("ascending") and list(items) != sorted(items):
            raise RecipeError(f"{where} must hold low <= high, got {list(items)}")
        return items
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            value = float(value)
    if type(value) is not hint:
        raise RecipeError(f"{where} must be {_KINDS[hint]}, got {value!r}")
    if bounds.get("options") and value not in bounds["options"]:
        raise RecipeError(f"{where} must be one of {', '.join(bounds['options'])}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where} must be finite, got {value!r}")
    off = bounds.get("or_zero", False)
    if "low" in bounds and not (bounds["low"] <= value <= bounds["high"] or (off and value == 0)):
        limit = f"{'0 or ' if off else ''}{bounds['low']:.10g} to {bounds['high']:.10g}"
        raise RecipeError(f"{where} must be {limit}, got {value!r}")
    return value
