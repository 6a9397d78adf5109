"""Results that are made one after the other and kept in one file, each by what it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from synq_fast.errors import DataError

Result = TypeVar("Result")


def read_results(path: Path, name: str, make: Callable[..., Result]) -> dict[str, Result]:
    """The results under ``name`` of a JSON file, by their fingerprint; none where it is not there.

    Args:
        path: the file.
        name: of the list in it.
        make: takes the values of each, one of which is its ``fingerprint``.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))[name]
        return {each["fingerprint"]: make(**each) for each in found}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it to run again") from error
