"""The suite in processes of their own: what is chosen once, when a process begins."""

import json
import os
import subprocess
import sys

import pytest
import torch

from synq_fast.testing import CASES
from tests.conformance.registered import calls, fresh
from tests.conformance.targets import INTERPRETED, native
from tests.ops.processes import NOT_BUILT, ROOT, run

VALUES = "tests/conformance/test_values.py"
# Parts can run beside each other; more of them would spend their time on imports.
PARTS = 2


def run_tests(*arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-5_000:]
    assert " passed" in result.stdout, result.stdout
    return result.stdout


@pytest.mark.parametrize("isa", ["default", "avx2", "avx512"])
def test_every_instruction_set(isa: str) -> None:
    native()
    from synq_fast import _C

    if isa not in _C.supported_cpu_isas():
        pytest.skip(f"{isa} is not built or not on this processor")
    program = "import torch; from synq_fast import _C; print(_C.cpu_isa())"
    assert run(program, SYNQ_FAST_CPU_ISA=isa).stdout == f"{isa}\n"
    if isa == _C.cpu_isa():
        pytest.skip(f"{isa} runs in this process")
    run_tests(VALUES, SYNQ_FAST_CPU_ISA=isa, SYNQ_FAST_TEST_TARGET="cpu")


def interpret(*arguments: str) -> None:
    """Triton reads TRITON_INTERPRET when it is imported."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if INTERPRETED:
        pytest.skip("TRITON_INTERPRET=1 is set, so the kernels are interpreted in this process")
    run_tests(*arguments, TRITON_INTERPRET="1")


@pytest.mark.parametrize("part", range(PARTS))
def test_triton_interpreter(part: int) -> None:
    chosen = " or ".join(f"{name}-" for name in sorted(CASES)[part::PARTS])
    interpret(f"{VALUES}::test_values_and_gradients", "-k", chosen)


def test_triton_interpreter_beyond_values() -> None:
    beyond = (f"tests/conformance/test_{name}.py" for name in ("registration", "golden"))
    interpret("tests/kernels", *beyond)


REPLAY = """
import json, sys
import torch
from synq_fast import ops
from tests.conformance.registered import replayed

print(ops.available_backends()["cpu"])
found = []
seen = set()
for name, arguments in torch.load(sys.argv[1], weights_only=True):
    found.append([name, [float(x.double().square().sum()) for x in replayed(name, arguments)]])
    if ops.available_backends()["cpu"] is not None:
        op = getattr(torch.ops.synq_fast, name).default
        utils = ["test_schema", "test_faketensor"]
        if name not in seen:
            utils += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
        seen.add(name)
        torch.library.opcheck(op, tuple(arguments), test_utils=utils)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_without_the_extension(tmp_path) -> None:
    """The registered ops with and without native kernels: Python registrations take over."""
    native()
    made = [call for case in CASES.values() for call in calls(case, case.typical())]
    # The first of each op, with the most gradients, is what the compiler is tried on.
    made.sort(key=lambda call: -call.trained)
    recorded = [(call.name, fresh(call)) for call in made]
    torch.save(recorded, tmp_path / "calls.pt")
    bare, built = (
        run(start + REPLAY.replace("sys.argv[1]", repr(str(tmp_path / "calls.pt"))))
        for start in (NOT_BUILT, "")
    )
    assert bare.returncode == 0, bare.stderr
    assert built.returncode == 0, built.stderr
    reason, numbers = bare.stdout.splitlines()
    assert reason == "no compiler"
    found, expected = json.loads(numbers), json.loads(built.stdout.splitlines()[-1])
    assert len(found) == len(expected) == len(recorded)
    for (name, mine), (_, theirs) in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-8, nan_ok=True), name
