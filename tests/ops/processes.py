"""Programs in processes of their own, with and without native kernels."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

NOT_BUILT = """
import json, pathlib
read_text = pathlib.Path.read_text
def pretend(path, *args, **kwargs):
    if path.name == "_build_info.json":
        return json.dumps({"native": False, "reason": "no compiler", "torch": None})
    return read_text(path, *args, **kwargs)
pathlib.Path.read_text = pretend
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(program: str, checks: str) -> tuple[str, str]:
    """The last line of a program without native kernels, and of the same one with them.

    `checks` run in the first process alone: others run them with native kernels.
    """
    bare, native = run(NOT_BUILT + program + checks), run(program)
    assert bare.returncode == 0, bare.stderr
    assert native.returncode == 0, native.stderr
    reason, numbers = bare.stdout.splitlines()
    assert reason == "no compiler"
    return numbers, native.stdout.splitlines()[-1]
