"""Prints constraints that pin every requirement of pyproject.toml to its lower bound."""

import re
from itertools import chain
from pathlib import Path

try:
    import tomllib
except ImportError:
    # Python 3.10, where pip brings a copy; mypy takes the second import for a redefinition.
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(pyproject: dict) -> list[str]:
    """Return the requirements of building, running and testing, the extras included."""
    project = pyproject["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    return [*pyproject["build-system"]["requires"], *project["dependencies"], *extras]


def lower_bounds(requirements: list[str]) -> list[str]:
    """Return `name==bound` for each `name>=bound`, with its marker; what has no bound is free."""
    bounded = (re.match(r"([\w.-]+)\s*>=\s*([^\s,;]+)[^;]*(;.*)?", text) for text in requirements)
    return sorted({f"{found[1]}=={found[2]}{found[3] or ''}" for found in bounded if found})


if __name__ == "__main__":
    print("\n".join(lower_bounds(requirements(tomllib.loads(PYPROJECT.read_text())))))
