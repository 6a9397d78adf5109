"""Fields of recipe sections: each says its default, its meaning, its unit and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

# Wider than anything sensible, and narrow enough for float32, for memory and for an end in sight.
_LARGEST_COUNT = 10**8
_LARGEST_BATCH = 2**16
_LARGEST_FACTOR = 1e9
_SMALLEST_FACTOR = 1e-9


def number(
    default: float, meaning: str, low: float, high: float, unit: str = "", *, or_zero: bool = False
) -> Any:
    """A number from ``low`` to ``high``, or 0; whole where the field is annotated ``int``."""
    metadata = {"meaning": meaning, "unit": unit, "low": low, "high": high, "or_zero": or_zero}
    return field(default=default, metadata=metadata)


def count(default: int, meaning: str, low: int = 1, unit: str = "") -> Any:
    """How many steps or images."""
    return number(default, meaning, low, _LARGEST_COUNT, unit)


def batch(default: int, meaning: str, low: int = 1) -> Any:
    """How many images are worked on together."""
    return number(default, meaning, low, _LARGEST_BATCH, "images")


def factor(default: float, meaning: str) -> Any:
    """A factor, or the 0 that leaves its part out."""
    return number(default, meaning, _SMALLEST_FACTOR, _LARGEST_FACTOR, or_zero=True)


def rate(default: float, meaning: str) -> Any:
    """A learning rate."""
    return number(default, meaning, 1e-12, 1e3, "per step")


def area(low: float, high: float, meaning: str) -> Any:
    """The smallest and the largest share of an image's area."""
    bounds = {"low": 1e-3, "high": 1, "ascending": True, "unit": "of the area"}
    return field(default=(low, high), metadata={"meaning": meaning, **bounds})


def choice(default: str, meaning: str, *options: str) -> Any:
    """One of several names."""
    return field(default=default, metadata={"meaning": meaning, "options": options})


def flag(default: bool, meaning: str) -> Any:
    """Yes or no."""
    return field(default=default, metadata={"meaning": meaning})


def items(default: tuple[Any, ...], meaning: str, **bounds: Any) -> Any:
    """Any number of values."""
    return field(default=default, metadata={"meaning": meaning, **bounds})


def section(kind: type[Any], meaning: str) -> Any:
    """A section of its own, with its own defaults."""
    return field(default_factory=kind, metadata={"meaning": meaning})


def parts(registry: Mapping[str, type[Any]], meaning: str, default: tuple[Any, ...] = ()) -> Any:
    """The parts that a recipe names: a section for each, beside the other fields, in this order.

    Args:
        registry: every part that there is, by the name of its section.
        meaning: what they are.
        default: those of a recipe that names none.
    """
    return field(default=default, metadata={"meaning": meaning, "parts": registry})
