"""The files of recipes, read without anything that takes time to import."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from synq_fast.errors import RecipeError
from synq_fast.storage.paths import user_path
from synq_fast.storage.text_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    # Where the standard library has tomllib, tomli is not installed and mypy cannot see it.
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

_FOLDER = Path(__file__).parent


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def parse_value(text: str) -> Any:
    """An override's value as TOML, or the text itself: ``3``, ``true``, ``[0.5, 1]``, ``mse``."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def read(name_or_path: str | Path) -> tuple[dict[str, Any], str]:
    """What a recipe's file holds, its name among it, and the file's name.

    Raises:
        RecipeError: there is no such recipe, or it is not TOML.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise RecipeError(f"a recipe is a name, a path or a Recipe, got {name_or_path!r}")
    path = user_path(name_or_path)
    if path.suffix.lower() != ".toml":
        path = _FOLDER / f"{name_or_path}.toml"
    try:
        return {"name": path.stem, **tomllib.loads(read_text(path))}, path.name
    except OSError as error:
        known = ", ".join(list_recipes())
        raise RecipeError(
            f'no recipe "{name_or_path}" ({error.strerror}); known: {known}, or the path of a '
            f".toml file"
        ) from error
    except ValueError as error:  # not TOML, or in no known encoding
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
