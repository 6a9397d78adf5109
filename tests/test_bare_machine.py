"""A machine with a GPU but without the development tools can import all of this."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What such a machine has; anything else is imported where it is needed, or skipped without.
KNOWN = {
    "PIL",
    "benchmarks",
    "filelock",
    "hypothesis",
    "matplotlib",
    "numpy",
    "pytest",
    "pytest_benchmark",
    "rich",
    "safetensors",
    "setuptools",
    "sklearn",
    "synq_fast",
    "tests",
    "tools",
    "torch",
    "torchvision",
    "triton",
    *sys.stdlib_module_names,
    "tomli",  # in place of tomllib before Python 3.11
}


def imported(path: Path) -> set[str]:
    """Packages without which a file cannot be imported."""
    found, skipped = set(), set()
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += [*node.body, *node.orelse]
        elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
            call = node.value
            if ast.unparse(call.func).endswith("importorskip"):
                skipped.add(str(ast.literal_eval(call.args[0])).split(".")[0])
        # A function's imports come later, and a try says what to do without.
    return found - skipped


@pytest.mark.parametrize("folder", ["synq_fast", "kernels", "benchmarks", "tests"])
def test_nothing_else_is_imported_at_the_top(folder):
    files = [path for path in (ROOT / folder).rglob("*.py") if ".venv" not in path.parts]
    assert len(files) > 10
    foreign = {str(path.relative_to(ROOT)): imported(path) - KNOWN for path in files}
    assert {path: names for path, names in foreign.items() if names} == {}


def test_a_foreign_import_is_found(tmp_path):
    file = tmp_path / "one.py"
    file.write_text(
        "import os\nimport pytest\nx = pytest.importorskip('timm')\nimport timm.models\n"
        "if True:\n    import tomli_w.x\ndef f():\n    import onnx\n"
    )
    assert imported(file) == {"os", "pytest", "tomli_w"}
