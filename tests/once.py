"""What takes long is made once for all processes of a test run, or of all runs."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by the first process that asks for it; the others wait."""
    base = folders.getbasetemp()
    # Each worker of a parallel run has a folder of its own in the common one.
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return filled(common / name, make)


def filled(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, filled unless it has been."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder
