"""Runs tests/kernels in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KERNEL_TESTS = sorted(map(str, (ROOT / "tests" / "kernels").glob("test_*.py")))
# A few parts can run beside each other; one for each file would spend its time on imports.
PARTS = 3


@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_in_the_interpreter(part: int) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set, so tests/kernels runs in this process")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *KERNEL_TESTS[part::PARTS],
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-5_000:]
    assert " passed" in result.stdout, result.stdout
