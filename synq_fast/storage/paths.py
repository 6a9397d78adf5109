"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` or ``~name`` at its start replaced by that home folder.

    A shell does this only for a word that starts with it, not for ``--output=~/runs``.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name: a file may still be called so
        return Path(path)
