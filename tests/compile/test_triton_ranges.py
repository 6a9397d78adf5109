"""The Triton kernels of the range ops compile for every GPU, spill nothing and round exactly."""

import re

import pytest
import torch

from tests.compile.ptx_checks import divisions, entries, inexact, resources, widest_access
from tests.compile.test_triton_compile import (
    DTYPES,
    MAXIMUM_REGISTERS,
    Compiler,
    compiler,
    pytestmark,
)

__all__ = ["compiler", "pytestmark"]  # used by pytest

# The errors are exact; their logarithms and powers need not be, and never meet a subnormal that
# decides.
POWERS = {"ex2.approx.ftz.f32", "fma.rn.ftz.f32"}
SUMS = re.compile(r"add(?:\.rn)?\.f64")


def launch_all(dtype: torch.dtype) -> None:
    """Calls both launchers on a small and on a large tensor."""
    from synq_fast import kernels

    state = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)
    for x in (torch.zeros(64, 64, dtype=dtype), torch.zeros(64, 64, 56, 56, dtype=dtype)):
        kernels.update_range(x, *state, 0.9)
        kernels.search_range(x, 4, 80, 2.4)
    weights = torch.zeros(64, 64, 48, dtype=dtype)
    for axis in (0, 1, 2):
        kernels.search_range(weights, 4, 80, 2.4, axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    launch_all(dtype)
    assert {name for name, _ in compiler.ptx} == {
        "choose_kernel",
        "errors_kernel",
        "finish_kernel",
        "ranges_kernel",
        "total_kernel",
        "update_kernel",
    }
    assert set(compiler.fused) <= {"total_kernel"}
    kernels = resources(compiler.log.getvalue())
    assert kernels
    assert [kernel for kernel in kernels if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in kernels if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = 0
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            allowed = POWERS if name == "errors_kernel" else set()
            assert set(inexact(instructions)) <= allowed, name
            if name == "errors_kernel":
                # Errors are the quantizer's own; sums beyond a block are double.
                assert divisions(instructions) > 0
                assert any(SUMS.fullmatch(instruction) for instruction in instructions)
                wide += widest_access(instructions, "ld") >= 128
            if name == "ranges_kernel":
                assert widest_access(instructions, "ld") >= 128
    # All but channels in pieces.
    assert wide >= 3
