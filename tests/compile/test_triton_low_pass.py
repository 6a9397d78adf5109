"""The Triton low-pass kernel compiles for every GPU, with tensor cores and without spills."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from tests.compile.ptx_checks import entries, resources, widest_access
from tests.compile.test_triton_compile import DTYPES, Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]

MAXIMUM_REGISTERS = 255  # a tile of sums and its operands; what counts is that nothing spills


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    from synq_fast import kernels

    image = torch.zeros(4, 3, 64, 96, dtype=dtype)
    kernels.low_pass(image, 8.0, "gaussian", 2, "auto")
    assert {name for name, _ in compiler.ptx} == {"axis_kernel"}
    compiled = resources(compiler.log.getvalue())
    assert compiled
    assert [kernel for kernel in compiled if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in compiled if kernel.registers > MAXIMUM_REGISTERS] == []
    # Images and results leave the cache first, not what lies between the passes.
    for kind in ("ld", "st"):
        assert sum(f"{kind}.global.L1::evict_first" in ptx for _, ptx in compiler.ptx) == 1
    wide = 0
    for _, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            products = sum(count for name, count in instructions.items() if "mma" in name)
            assert products > 0
            wide = max(wide, widest_access(instructions, "ld"))
    assert wide >= 64 or any("cp.async" in ptx for _, ptx in compiler.ptx)
