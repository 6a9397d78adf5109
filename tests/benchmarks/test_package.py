"""The benchmarks are part of the installed package, under another name than in the project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_they_import_each_other_relatively(path):
    absolute = re.findall(r"^\s*(?:from|import) +benchmarks\b.*", path.read_text(), re.MULTILINE)
    assert not absolute, "write `from . import harness`"


def test_the_package_does_not_import_them():
    code = (
        "import sys, synq_fast, synq_fast.cli, synq_fast.cli.suites;"
        "print([name for name in sys.modules if 'benchmarks' in name or name == 'pytest'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
