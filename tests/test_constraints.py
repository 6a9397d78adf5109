"""The tested set of packages installs on the oldest Python that the project declares."""

import importlib.metadata
import re
from pathlib import Path

import pytest

pytest.importorskip("packaging", reason="packaging is not installed")

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def oldest_python() -> str:
    declared = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert declared is not None
    return declared[1]


def pinned_for(python: str) -> list[Requirement]:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)]


def test_each_package_has_one_version_for_each_python() -> None:
    for python in (oldest_python(), "3.11", "3.12", "3.13"):
        names = [pin.name for pin in pinned_for(python)]
        assert len(names) == len(set(names)), python


def test_no_version_asks_for_a_newer_python() -> None:
    """What is installed says which Pythons its version is for."""
    python, looked_at = oldest_python(), 0
    for pin in pinned_for(python):
        try:
            found = importlib.metadata.distribution(pin.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if found.version not in pin.specifier:
            continue  # the one for newer Pythons
        looked_at += 1
        needed = SpecifierSet(found.metadata.get("Requires-Python") or "")
        assert f"{python}.0" in needed, f"{pin} needs Python {needed}"
    assert looked_at > 50
