"""What is imported when: help needs neither torch nor rich, and names arrive when they are used."""

import os
import subprocess
import sys

import pytest

import synq_fast

HELP = """
import contextlib, io, runpy, sys
from synq_fast.cli import main
commands = "quantize synthesize sensitivity evaluate compare study report bench info".split()
commands.append("recipes")
parts = [["bench", part] for part in ("ops", "step", "synthesis")]
for command in [[], *([name] for name in commands), *parts]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main([*command, "--help"])
        except SystemExit as end:
            assert end.code == 0
    assert "usage: synq-fast" in printed.getvalue(), command
assert main(["recipes"]) == 0
assert main(["recipes", "synq-nothing"]) == 2
sys.argv = ["synq-fast", "--help"]
try:
    runpy.run_module("synq_fast.cli", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
"""

NAMES = """
import sys
import synq_fast
from synq_fast import list_recipes
assert "synq-cifar" in list_recipes()
assert {"ops", "reference", "quantize"} <= set(dir(synq_fast))
"""


@pytest.mark.parametrize("program", [HELP, NAMES], ids=["help", "names"])
def test_without_torch(program):
    end = 'print(sorted({"torch", "torchvision", "numpy"} & set(sys.modules)), file=sys.stderr)'
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program + end], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("variable", ["SYNQ_FAST_BACKEND", "SYNQ_FAST_CPU_ISA"])
def test_a_wrong_environment_variable_is_one_line(variable):
    if variable == "SYNQ_FAST_CPU_ISA" and synq_fast.ops.available_backends()["cpu"] is not None:
        pytest.skip("needs the native kernels")
    done = subprocess.run(
        [sys.executable, "-m", "synq_fast.cli", "info"],
        capture_output=True,
        text=True,
        env={**os.environ, variable: "nonsense"},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"synq-fast: error: {variable} ") and "nonsense" in done.stderr
    assert done.stderr.count("\n") == 1


def test_submodules_are_there_when_they_are_used():
    program = (
        "import synq_fast\n"
        "assert synq_fast.ops.fake_quantize is not synq_fast.reference.fake_quantize\n"
        "from synq_fast import ops, reference\n"
        "assert ops is synq_fast.ops and reference is synq_fast.reference\n"
        "try:\n"
        "    synq_fast.nothing\n"
        "except AttributeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'synq_fast' has no attribute 'nothing'\n"
