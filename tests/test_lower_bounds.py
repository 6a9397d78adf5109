"""`make oldest` can pin whatever pyproject.toml declares, and the ops suit the oldest torch."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))


@pytest.mark.parametrize(
    ("requirement", "pins"),
    [
        ("torch>=2.6", ["torch==2.6"]),
        ("tomli>=2; python_version < '3.11'", ["tomli==2; python_version < '3.11'"]),
        ("numpy >= 1.26, <3", ["numpy==1.26"]),
        ("wheel", []),
        ("synq-fast[bench]", []),
    ],
)
def test_a_bound_becomes_a_pin(requirement, pins):
    assert SCRIPT["lower_bounds"]([requirement]) == pins


def test_everything_that_a_user_installs_has_a_bound():
    pyproject = SCRIPT["tomllib"].loads(SCRIPT["PYPROJECT"].read_text())
    declared = [text.split(">=")[0] for text in pyproject["project"]["dependencies"]]
    pinned = [
        pin.split("==")[0] for pin in SCRIPT["lower_bounds"](SCRIPT["requirements"](pyproject))
    ]
    assert set(declared) <= set(pinned) and {"torch", "timm", "pytest"} <= set(pinned)
    assert len(pinned) == len(set(pinned))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "synq_fast" / "ops").rglob("*.py")), ids=lambda path: path.stem
)
def test_what_is_compiled_tests_types_with_tuples(path):
    # torch.compile of torch 2.6 cannot trace isinstance(value, int | float).
    unions = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and isinstance(node.args[1], ast.BinOp)
    ]
    assert unions == []
