"""The Triton kernels of the patch similarity entropy compile for every GPU and spill nothing."""

import pytest
import torch

from tests.compile.ptx_checks import entries, resources, widest_access
from tests.compile.test_triton_compile import DTYPES, Compiler, compiler, pytestmark

__all__ = ["compiler", "pytestmark"]  # used by pytest

MAXIMUM_REGISTERS = 255  # the tiles of a product live in registers
KERNELS = {
    "normalize_kernel",
    "similarity_kernel",
    "range_kernel",
    "density_kernel",
    "entropy_kernel",
    "slope_kernel",
    "direction_kernel",
    "project_kernel",
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches(compiler: Compiler, dtype: torch.dtype) -> None:
    from synq_fast import kernels

    tokens = torch.zeros(2, 192, 192, dtype=dtype)
    kernels.patch_similarity_entropy(tokens, 10, 0.01, 1e-4)
    kernels.patch_similarity_entropy_with_gradient(tokens, 10, 0.01, 1e-4)
    if dtype == torch.float32:
        kernels.patch_similarity_entropy_with_gradient(tokens[:1, :7, :5], 40, 0.01, 1e-4)
    assert {name for name, _ in compiler.ptx} == KERNELS
    compiled = resources(compiler.log.getvalue())
    assert compiled
    assert [kernel for kernel in compiled if kernel.spilled_bytes > 0] == []
    assert [kernel for kernel in compiled if kernel.registers > MAXIMUM_REGISTERS] == []
    wide = set()
    for name, ptx in compiler.ptx:
        for instructions in entries(ptx).values():
            # No sum in no fixed order, and no product of fewer bits than float32 has.
            for instruction in instructions:
                assert not instruction.startswith(("atom", "red.")), (name, instruction)
                assert "tf32" not in instruction, (name, instruction)
            if widest_access(instructions, "ld") >= 128:
                wide.add(name)
            if name in ("similarity_kernel", "direction_kernel"):
                # In pairs from Blackwell on.
                assert any(i.startswith("fma.rn.f32") for i in instructions), name
    assert wide >= {"similarity_kernel", "direction_kernel", "slope_kernel"}
