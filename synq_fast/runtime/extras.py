"""Packages that only some of the work needs."""

from __future__ import annotations

import importlib.util

from synq_fast.errors import MissingExtraError


def needs(extra: str, *modules: str) -> None:
    """Make sure that what an extra installs is there.

    Args:
        extra: as in ``pip install "synq-fast[extra]"``.
        modules: top-level modules that it brings.

    Raises:
        MissingExtraError: one is missing; says how to get it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"this needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f'installed: pip install "synq-fast[{extra}]"'
        )
