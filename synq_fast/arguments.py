"""Checks of what callers pass in, whichever library their numbers come from."""

from __future__ import annotations

import operator
from typing import Any

from synq_fast.errors import ArgumentError


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """A Python int of an int, a NumPy integer or anything else that is exactly one.

    Raises:
        ArgumentError: it is none (a bool, a float), or below ``least``; names the argument.
    """
    wanted = "a whole number" if least is None else f"a whole number from {least}"
    try:
        number = int(operator.index(value))
    except TypeError:
        raise ArgumentError(f"{name} must be {wanted}, got {value!r}") from None
    if type(value).__name__ in ("bool", "bool_") or (least is not None and number < least):
        raise ArgumentError(f"{name} must be {wanted}, got {value!r}")
    return number
