"""`make oldest` can pin whatever pyproject.toml declares."""

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).resolve().parents[1] / ".ci" / "lower_bounds.py"))


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
