"""States of several parts in one mapping of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part, ``PART.NAME``."""
    return {f"{part}.{name}": value for name, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """What ``named`` was given."""
    prefix = f"{part}."
    return {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
