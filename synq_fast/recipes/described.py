"""Recipes that explain themselves: what each value means, in which unit, within which bounds."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, NamedTuple

from synq_fast.recipes.schema import Recipe


class Description(NamedTuple):
    """A key of recipes."""

    key: str
    """Dotted."""
    meaning: str
    takes: str
    """Unit and bounds, or the names to choose from; empty for a section."""
    default: Any
    """None for a section."""


def descriptions(kind: type[Any] = Recipe, prefix: str = "") -> Iterator[Description]:
    """Every key in the order in which recipes are written; a section comes before its keys."""
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        metadata, key = field.metadata, prefix + field.name
        if "parts" in metadata:
            for name, part in metadata["parts"].items():
                yield Description(prefix + name, _first_line(part), "", None)
                yield from descriptions(part, f"{prefix}{name}.")
        elif is_dataclass(hints[field.name]):
            yield Description(key, _first_line(hints[field.name]), "", None)
            yield from descriptions(hints[field.name], f"{key}.")
        elif "meaning" in metadata:
            yield Description(
                key, metadata["meaning"], _takes(field, hints[field.name]), field.default
            )


def comments() -> dict[str, str]:
    """What to write above each key of a recipe."""
    return {
        d.key: _sentence(d.meaning) + (f" ({d.takes})" if d.takes else "") for d in descriptions()
    }


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").splitlines()[0].rstrip(".")


def _sentence(meaning: str) -> str:
    return meaning[:1].upper() + meaning[1:]


def _takes(field: Field[Any], hint: Any) -> str:
    bounds: Mapping[str, Any] = field.metadata
    if bounds.get("options"):
        return " | ".join(bounds["options"])
    said = [bounds["unit"]] if bounds.get("unit") else []
    if "low" in bounds:
        zero = "0 or " if bounds.get("or_zero") else ""
        said.append(f"{zero}{bounds['low']:.10g} to {bounds['high']:.10g}")
    if hint is bool:
        said.append("true | false")
    return ", ".join(said)
